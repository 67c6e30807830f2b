# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A criterion that reads the weights of a unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.layers import weight_rows
from pyro_bmrs.pruning.noise.attachment import NoiseSite, noise_sites
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.noise.recognition.recurrences import CELLS, is_recurrent, rows_of_units
from pyro_bmrs.pruning.noise.steps.precision import at_least_single
from pyro_bmrs.pruning.streams.experts import experts_of, rows_of_hidden_units


@dataclass(frozen=True)
class WeightNorm(Criterion):
    """
    The Euclidean norm of a unit's incoming weights, by which the smallest go first.

    H. Li et al. (2017), *Pruning filters for efficient ConvNets*, https://arxiv.org/abs/1608.08710, do so by the sum of
    their absolute values.

    A head's weights are those of the output projection that it is multiplied by; a block's are those of the last layer
    of its branch.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, WeightNorm, attach_noise, prune
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> prune(net, guide, WeightNorm(), fraction=0.5).num_kept
        2
    """

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """The norm; 0 for units that are gone."""
        with torch.no_grad():
            return {
                name: torch.where(site.noise.kept, incoming_weights(net, site).norm(dim=1), 0.0)
                for name, site in noise_sites(net).items()
            }


def incoming_weights(net: nn.Module, site: NoiseSite) -> Tensor:
    """
    The weights of each unit of a noise site, of shape ``(num_units, weights)``, in single precision at least.

    :raises ReductionError: where the layer has no weight, or is not known.
    """
    layer: Any = net.get_submodule(site.place if site.kind == "heads" else site.module)
    if site.kind == "units" and experts_of(layer) is not None:
        return at_least_single(rows_of_hidden_units(layer))
    if site.kind == "units" and (is_recurrent(layer) or type(layer) in CELLS):
        return at_least_single(rows_of_units(layer, site.part))
    if site.kind == "block" and not isinstance(getattr(layer, "weight", None), Tensor):
        inner = [module for module in layer.modules() if isinstance(getattr(module, "weight", None), Tensor)]
        layer = inner[-1] if inner else layer
    if not site.module or not isinstance(getattr(layer, "weight", None), Tensor):
        raise ReductionError(f"the layer of noise site {site.name!r} is not known, or has no weight to go by")
    rows = weight_rows(layer)
    if site.kind == "units" and len(rows) == 2 * site.noise.num_units:  # A gate, and what it is for.
        rows = rows.unflatten(0, (2, -1)).transpose(0, 1).flatten(1)
    return at_least_single(rows.T if site.kind == "heads" else rows).reshape(site.noise.num_units, -1)

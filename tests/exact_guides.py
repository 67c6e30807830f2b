# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Normal guides that are put where fitting would bring them, so that no test waits for it."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuide, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from tests import conjugate


@torch.no_grad()
def put_posterior(guide: AutoGuide, posterior: dist.MultivariateNormal, *args: Any) -> AutoGuide:
    """
    Puts a guide where the ELBO is largest, under a joint normal posterior over all sites of a model.

    A joint normal guide becomes the posterior. The mean-field normal closest to it has its mean and its conditional
    variances.

    :param posterior: over the elements of the sites, in the model's order.
    :param args: the model's arguments.
    """
    guide(*args)
    like = next(guide.parameters())
    loc, root = posterior.loc.to(like), posterior.scale_tril.to(like)
    if isinstance(guide, AutoMultivariateNormal):
        guide.loc.copy_(loc)
        guide.scale = root.diagonal().clone()
        guide.scale_tril = root / guide.scale.unsqueeze(-1)
        return guide
    scale = posterior.precision_matrix.diagonal().rsqrt().to(like)
    if isinstance(guide, AutoDiagonalNormal):
        guide.loc.copy_(loc)
        guide.scale = scale
        return guide
    assert isinstance(guide, AutoNormal)
    start = 0
    for name, _ in guide.prototype_trace.iter_stochastic_nodes():
        at = getattr(guide.locs, name)
        here = slice(start, start + at.numel())
        at.copy_(loc[here].reshape(at.shape))
        setattr(guide.scales, name, scale[here].reshape(at.shape))
        start = here.stop
    return guide


def exact_guide(
    kind: type[AutoGuide] = AutoMultivariateNormal, num_columns: int = 4
) -> tuple[AutoGuide, Tensor, Tensor]:
    """A guide that is the posterior of the conjugate regression, or the closest of its kind, with the data."""
    x, y = conjugate.data(num_columns=num_columns)
    posterior = conjugate.exact_posterior(x, y, *conjugate.prior(num_columns))
    return put_posterior(kind(conjugate.model), posterior, x, y), x, y

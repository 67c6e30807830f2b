# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The log likelihood of data with the noise of one unit changed, for all units of a network, in one pass over the data.

The changed networks are one run of the network under :func:`torch.func.vmap`, in which nothing before a unit's layer is
computed more than once; of a network that vmap cannot run they are run one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from tqdm.auto import tqdm

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.criteria.evidence.unit_profile import NUM_PLACES, Places
from pyro_bmrs.pruning.examples import evaluation
from pyro_bmrs.pruning.noise.steps.turns import TURN
from pyro_bmrs.pruning.training.batches import prediction, run_on_batch, targets_of
from pyro_bmrs.pruning.training.models import Likelihood
from pyro_bmrs.structure.vectorised import Vectorised

# Examples that are run together: many units of few examples are cheaper than few units of many.
_MOST_EXAMPLES = 512


@dataclass
class UnitLikelihoods:
    """
    What the units of a site do to the log likelihood of the data, summed over examples; in double precision.

    :param values: the log likelihood at the places less that at the mean, of shape ``(units, 3)``.
    :param products: of these differences of single examples, of shape ``(units, 3, 3)``.
    :param slope: the derivative of the log likelihood in the noise at the mean, of shape ``(units,)``.
    """

    values: Tensor
    products: Tensor
    slope: Tensor


def unit_likelihoods(
    net: nn.Module,
    likelihood: Likelihood,
    batches: Iterable[Any],
    at: Mapping[str, Places],
    kept: Mapping[str, Tensor],
    *,
    progress: bool = False,
) -> tuple[dict[str, UnitLikelihoods], int]:
    """
    Runs the data through the network, with the noise of each unit in turn at each of its places.

    The network runs in evaluation mode, and stays as it is.

    :param net: a network with noise.
    :param likelihood: says how likely targets are given the network's outputs.
    :param batches: pairs of inputs and targets, or mappings that hold both, as in training; gone through once.
    :param at: where to evaluate, by site; the others' noise is at its mean.
    :param kept: which units to look at, by site.
    :param progress: whether to show a progress bar.
    :return: the sums by site, and the number of examples.
    :raises ReductionError: for batches without examples, or more examples than the likelihood's, and for a log
        likelihood that is not finite.
    """
    means = {name: places.mean for name, places in at.items()}
    rows = {name: kept[name].nonzero().repeat_interleave(NUM_PLACES, 0).squeeze(-1) for name in at}
    sums = {name: _nothing(mean) for name, mean in means.items()}
    count, vectorised = 0, Vectorised("units")
    # Values that are no numbers are told below, by the name of their site.
    with TURN, evaluation(net), pyro.validation_enabled(False):
        for batch in tqdm(batches, desc="evidence of units", disable=not progress, leave=False):
            for inputs, targets in _parts(*_examples(batch, means)):
                log_likelihoods = partial(_log_likelihoods, net, likelihood, inputs, targets)
                base, slopes = _at_mean(log_likelihoods, means)
                _check_finite(base, "where all noise is at its mean")
                for name, total in sums.items():
                    total.slope += slopes[name].double().cpu()
                    if len(rows[name]):
                        noise = _changed(at[name], rows[name])
                        changed = vectorised(partial(_with_site, log_likelihoods, means, name), noise)
                        _add(total, kept[name].cpu(), (changed - base).double().cpu(), name)
                count += len(base)
            if count > likelihood.num_examples:
                raise ReductionError(
                    f"the batches hold more examples than the {likelihood.num_examples} that the likelihood is told of "
                    "(num_examples): give each example of the training data once, or some of them"
                )
    if not count:
        raise ReductionError("there is no example to evaluate the evidence of units on")
    return sums, count


def _nothing(mean: Tensor) -> UnitLikelihoods:
    zeros = torch.zeros(len(mean), dtype=torch.double)
    values = zeros.unsqueeze(-1).repeat(1, NUM_PLACES)
    return UnitLikelihoods(values, values.unsqueeze(-1).repeat(1, 1, NUM_PLACES), zeros)


def _log_likelihoods(net: nn.Module, likelihood: Likelihood, x: Any, y: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
    """Of each example, of shape ``(examples,)``."""
    with poutine.condition(data=dict(noise)):
        predicted = prediction(run_on_batch(net, x))

    def of_one(output: Tensor, target: Tensor) -> Tensor:
        return -likelihood.negative_log_likelihood(output.unsqueeze(0), target.unsqueeze(0))

    log_likelihoods: Tensor = torch.func.vmap(of_one)(predicted, y)
    return log_likelihoods


def _with_site(log_likelihoods: Any, means: Mapping[str, Tensor], name: str, noise: Tensor) -> Tensor:
    """The log likelihoods with other noise at one site."""
    changed: Tensor = log_likelihoods({**means, name: noise})
    return changed


def _at_mean(log_likelihoods: Any, means: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The log likelihoods of the examples, and the derivative of their sum in the noise."""
    with torch.inference_mode(False), torch.enable_grad():
        noise = {name: mean.clone().requires_grad_() for name, mean in means.items()}
        base = log_likelihoods(noise)
        gradients = torch.autograd.grad(base.sum(), list(noise.values()), allow_unused=True)
    slopes = {
        name: torch.zeros_like(mean) if gradient is None else gradient
        for (name, mean), gradient in zip(means.items(), gradients)
    }
    return base.detach(), slopes


def _changed(at: Places, units: Tensor) -> Tensor:
    """The noise of a site with one unit of it changed, in each row: all places of the first unit, then the second's."""
    noise = at.mean.repeat(len(units), 1)
    noise[torch.arange(len(units), device=units.device), units] = at.noise[units[::NUM_PLACES]].flatten()
    return noise


def _add(total: UnitLikelihoods, kept: Tensor, differences: Tensor, name: str) -> None:
    """Adds differences of log likelihoods, of shape ``(rows, examples)``."""
    _check_finite(differences, f"where a unit at noise site {name!r} is changed")
    by_unit = differences.reshape(-1, NUM_PLACES, differences.shape[-1])
    total.values[kept] += by_unit.sum(-1)
    total.products[kept] += by_unit @ by_unit.mT


def _check_finite(log_likelihoods: Tensor, where: str) -> None:
    if not log_likelihoods.isfinite().all():
        raise ReductionError(
            f"the log likelihood of the data is NaN or infinite {where}: the weights, the noise, the inputs or the "
            "targets are not finite"
        )


def _examples(batch: Any, means: Mapping[str, Tensor]) -> tuple[Any, Tensor]:
    """The inputs and the targets of a batch, where the network is."""
    x, y = (batch, None) if isinstance(batch, Mapping) else batch
    targets = targets_of(x, y)
    if targets is None:
        raise ReductionError("there are no targets: a batch is a pair of inputs and targets, or has 'labels'")
    device = next(iter(means.values())).device
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), x)
    return inputs, targets.to(device)


def _parts(x: Any, y: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """A batch in parts of not too many examples, where all its tensors have the examples along the first dimension."""
    lengths = {len(leaf) if leaf.dim() else 0 for leaf in tree_leaves((x, y)) if torch.is_tensor(leaf)}
    if lengths != {len(y)} or len(y) <= _MOST_EXAMPLES:
        yield x, y
        return
    for start in range(0, len(y), _MOST_EXAMPLES):
        take = itemgetter(slice(start, start + _MOST_EXAMPLES))
        yield tree_map_only(Tensor, take, x), take(y)

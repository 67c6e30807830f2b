# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The log likelihood of data with the noise of one unit changed, for all units of a network, in one pass over the data.

The changed networks are one run of the network under :func:`torch.func.vmap`, in which nothing before a unit's layer
is computed more than once; of a network that vmap cannot run they are run one by one. Still there is a run for each
unit and each place. So a share of the examples is run, and of all of them the network's outputs are taken to be linear
in the noise of a unit, which takes one run backwards for each output. What that misses is little, and known from few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
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
from pyro_bmrs.pruning.criteria.evidence.linear_outputs import linear_outputs, log_likelihood_of_each
from pyro_bmrs.pruning.criteria.evidence.unit_moments import UnitLikelihoods
from pyro_bmrs.pruning.criteria.evidence.unit_profile import NUM_PLACES, Places
from pyro_bmrs.pruning.examples import evaluation
from pyro_bmrs.pruning.training.batches import pair_of, prediction, run_on_batch
from pyro_bmrs.pruning.training.models import Likelihood
from pyro_bmrs.structure.vectorised import TURN, Vectorised

# Examples that are run together: many units of few examples are cheaper than few units of many.
_MOST_EXAMPLES = 512


def unit_likelihoods(
    net: nn.Module,
    likelihood: Likelihood,
    batches: Iterable[Any],
    at: Mapping[str, Places],
    kept: Mapping[str, Tensor],
    *,
    share: float = 1.0,
    progress: bool = False,
) -> dict[str, UnitLikelihoods]:
    """
    Runs the data through the network, with the noise of each unit in turn at each of its places.

    The network runs in evaluation mode, and stays as it is.

    :param net: a network with noise.
    :param likelihood: says how likely targets are given the network's outputs.
    :param batches: pairs of inputs and targets, or mappings that hold both, as in training; gone through once.
    :param at: where to evaluate, by site; the others' noise is at its mean.
    :param kept: which units to look at, by site.
    :param share: of the examples, drawn at random from each batch, that are run with each unit changed. The others have
        outputs that are linear in the noise; of a network of many outputs, or one with noise on the heads of torch's
        attention, they count for the slope alone.
    :param progress: whether to show a progress bar.
    :return: the sums by site.
    :raises ReductionError: for batches without examples, or more examples than the likelihood's, and for a log
        likelihood that is not finite.
    """
    means = {name: places.mean for name, places in at.items()}
    rows = {name: kept[name].nonzero().repeat_interleave(NUM_PLACES, 0).squeeze(-1) for name in at}
    sums = {name: UnitLikelihoods.nothing(len(mean)) for name, mean in means.items()}
    vectorised, generator, count = Vectorised("units"), torch.Generator().manual_seed(0), 0
    # Values that are no numbers are told below, by the name of their site.
    with TURN, evaluation(net), pyro.validation_enabled(False):
        for batch in tqdm(batches, desc="evidence of units", disable=not progress, leave=False):
            for x, y in _parts(*_examples(batch, means)):
                base, slopes = _at_mean(partial(_log_likelihoods, net, likelihood, x, y), means)
                _check_finite(base, "where all noise is at its mean")
                some = _chosen(x, y, count, share, generator).to(base.device)
                linear = linear_outputs(net, likelihood, x, y, at) if len(some) < len(base) else None
                exactly = partial(_log_likelihoods, net, likelihood, _take(x, some), y[some])
                for name, total in sums.items():
                    total.add_slope(slopes[name], len(base))
                    if len(rows[name]):
                        noise = _changed(at[name], rows[name])
                        changed = (
                            vectorised(partial(_with_site, exactly, means, name), noise) if len(some) else base[:0]
                        )
                        exact = _by_place(changed - base[some], kept[name], name)
                        total.add(exact, None if linear is None else linear(name, base), some, kept[name])
                count += len(base)
            if count > likelihood.num_examples:
                raise ReductionError(
                    f"the batches hold more examples than the {likelihood.num_examples} that the likelihood is told of "
                    "(num_examples): give each example of the training data once, or some of them"
                )
    if not count:
        raise ReductionError("there is no example to evaluate the evidence of units on")
    return sums


def _log_likelihoods(net: nn.Module, likelihood: Likelihood, x: Any, y: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
    """Of each example, of shape ``(examples,)``."""
    with poutine.condition(data=dict(noise)):
        predicted = prediction(run_on_batch(net, x))
    return log_likelihood_of_each(likelihood, predicted, y)


def _with_site(log_likelihoods: Any, means: Mapping[str, Tensor], name: str, noise: Tensor) -> Tensor:
    """The log likelihoods with other noise at one site."""
    changed: Tensor = log_likelihoods({**means, name: noise})
    return changed


def _at_mean(log_likelihoods: Any, means: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The log likelihoods of the examples, and the derivative of their sum in the noise."""
    with torch.enable_grad():
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


def _by_place(differences: Tensor, kept: Tensor, name: str) -> Tensor:
    """Differences of log likelihoods, of shape ``(rows, examples)``, by unit and place; 0 for units that are gone."""
    _check_finite(differences, f"where a unit at noise site {name!r} is changed")
    by_place = differences.new_zeros(len(kept), NUM_PLACES, differences.shape[-1])
    by_place[kept] = differences.reshape(int(kept.sum()), NUM_PLACES, differences.shape[-1])
    return by_place


def _check_finite(log_likelihoods: Tensor, where: str) -> None:
    if not log_likelihoods.isfinite().all():
        raise ReductionError(
            f"the log likelihood of the data is NaN or infinite {where}: the weights, the noise, the inputs or the "
            "targets are not finite"
        )


def _examples(batch: Any, means: Mapping[str, Tensor]) -> tuple[Any, Tensor]:
    """The inputs and the targets of a batch, where the network is, and as they can be differentiated by."""
    x, y = pair_of(batch)
    device = next(iter(means.values())).device

    def ready(tensor: Tensor) -> Tensor:
        moved = tensor.to(device)
        return moved.clone() if moved.is_inference() else moved

    return tree_map_only(Tensor, ready, x), ready(y)


def _parts(x: Any, y: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """A batch in parts of not too many examples, where they can be told apart."""
    if not _is_by_example(x, y) or len(y) <= _MOST_EXAMPLES:
        yield x, y
        return
    for start in range(0, len(y), _MOST_EXAMPLES):
        part = slice(start, start + _MOST_EXAMPLES)
        yield _take(x, part), y[part]


def _is_by_example(x: Any, y: Tensor) -> bool:
    """Whether all tensors of a batch have the examples along the first dimension."""
    return {len(leaf) if leaf.dim() else 0 for leaf in tree_leaves((x, y)) if torch.is_tensor(leaf)} == {len(y)}


def _take(x: Any, which: Any) -> Any:
    return tree_map_only(Tensor, itemgetter(which), x)


def _chosen(x: Any, y: Tensor, before: int, share: float, generator: torch.Generator) -> Tensor:
    """Which examples of a batch to run with units changed: of all so far it is the share, rounded up."""
    if not _is_by_example(x, y):
        return torch.arange(len(y))
    number = math.ceil(share * (before + len(y))) - math.ceil(share * before)
    return torch.randperm(len(y), generator=generator)[:number]

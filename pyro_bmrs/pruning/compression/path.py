# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A path of networks from large to small, and which of them the data cannot tell from the whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError

# From prices at which hardly a unit is worth removing to those at which few are worth keeping.
_LOW, _HIGH = 2.0**-2, 2.0**4
# Where a path begins that looks how far it may go.
FIRST = 2.0**-4
# Where more than this share of the parameters goes in a step, networks between are looked at too, but at most so many.
_MOST_LOSS, MOST_BETWEEN = 0.2, 4
# Where more than this share goes, the step is taken back, if the temperature has risen by more than this.
_MOST_AT_ONCE, _LEAST_RISE = 0.4, 1.3
# How fast temperatures rise where nearly nothing happens in a step, to less than this share of the parameters and
# units; where little does, to less than that; and where it does to more.
_FASTEST, _HARDLY, _FAST, _FEW, _SLOW = 4.0, 0.02, 2.0, 0.1, math.sqrt(2)
# As much accuracy as is ever lost by itself: few examples would allow for more.
_MOST_ACCURACY = 0.005
# By how many errors of the difference the best of several may be better by luck.
_LUCK = 2.0


def temperatures(num_steps: int, first: float = _LOW, last: float = _HIGH) -> list[float]:
    """
    A geometric ladder of temperatures for the prices of units.

    :param num_steps: how many there are.
    :param first: the lowest; at 1 units pay their prices.
    :param last: the highest.
    :raises ReductionError: for no step, or temperatures that are not ``0 < first <= last < inf``.

    Example::

        >>> from pyro_bmrs.pruning import temperatures
        >>> temperatures(3, 0.25, 4.0)
        [0.25, 1.0, 4.0]
    """
    if num_steps < 1:
        raise ReductionError(f"a path has at least one step, not {num_steps}")
    if not 0 < first <= last < math.inf:
        raise ReductionError(f"temperatures rise from {first!r} to {last!r}; 0 < first <= last < inf is needed")
    ratio = (last / first) ** (1 / max(num_steps - 1, 1))
    return [first * ratio**step for step in range(num_steps)]


def next_temperature(temperature: float, went: float, leaving: float, has_waited: bool = False) -> float:
    """
    The temperature of the next step of a path, by how much of the network went in this one, and is about to go.

    What units cost compared with what they earn depends on the network and on how many examples there are. So the
    temperature rises fourfold while nearly nothing happens, to less than a fiftieth of the network, doubles while less
    than a tenth of the parameters go, and rises to the square root of 2 times itself else. It waits where more than a
    tenth of the units are about to go: what leaves takes a few steps, and would be overtaken by what a higher
    temperature sends after it. It waits no longer where that was in vain: what is tied to units that stay does not go.

    :param temperature: of this step.
    :param went: the share of the parameters that went in it.
    :param leaving: the share of the units left whose noise is louder than its signal.
    :param has_waited: whether it was that of the step before, too.

    Example::

        >>> from pyro_bmrs.pruning.compression.path import next_temperature
        >>> next_temperature(1.0, 0.0, 0.0), next_temperature(1.0, 0.04, 0.01), next_temperature(1.0, 0.5, 0.3)
        (4.0, 2.0, 1.0)
    """
    if leaving > _FEW and not (has_waited and went <= _FEW):
        return temperature
    if went > _FEW:
        return _SLOW * temperature
    return temperature * (_FASTEST if max(went, leaving) < _HARDLY else _FAST)


def is_too_fast(went: float, temperature: float, last: float) -> bool:
    """
    Whether a step of the path is to be taken back, and done again at a temperature between.

    What goes at once is chosen by noise that had no time to settle, and by units that did not know what others do.

    :param went: the share of the parameters that went in it.
    :param temperature: of this step.
    :param last: of the step before.

    Example::

        >>> from pyro_bmrs.pruning.compression.path import is_too_fast
        >>> is_too_fast(0.5, 4.0, 1.0), is_too_fast(0.2, 4.0, 1.0), is_too_fast(0.5, 4.0, 3.5)
        (True, False, False)
    """
    return went > _MOST_AT_ONCE and temperature > _LEAST_RISE * last


def num_between(before: int, after: int) -> int:
    """
    How many networks to look at between two of a path, so that none is more than a fifth smaller than the one before.

    :param before: the parameters of the larger one.
    :param after: those of the smaller one.

    Example::

        >>> from pyro_bmrs.pruning.compression.path import num_between
        >>> num_between(1000, 850), num_between(1000, 500)
        (0, 3)
    """
    if after <= 0:
        return MOST_BETWEEN
    steps = math.log(after / before) / math.log(1 - _MOST_LOSS)
    return min(max(math.ceil(steps) - 1, 0), MOST_BETWEEN)


def standard_error(values: Tensor) -> Tensor:
    """
    The standard error of a mean over examples.

    :param values: by example along the last dimension.
    """
    return values.std(-1, correction=1) / math.sqrt(values.shape[-1])


def near(values: Tensor, reference: Tensor, num_errors: float = 1.0) -> Tensor:
    """
    Which networks are within one standard error of another, or better, on average over held-out examples.

    :param values: of each example under each network, the larger the better; shape ``(networks, examples)``. A network
        with a value that is not finite is not among them.
    :param reference: of each example under the other; shape ``(examples,)``.
    :param num_errors: how many standard errors are allowed.
    :return: which, shape ``(networks,)``.
    :raises ReductionError: for fewer than two examples.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.compression.path import near
        >>> values = torch.tensor([[-1.0, -2.0, -3.0], [-1.4, -2.4, -3.4], [-5.0, -5.0, -6.0]])
        >>> near(values, values[0])
        tensor([ True,  True, False])
    """
    if values.dim() != 2 or values.shape[1] < 2:
        raise ReductionError("the rule of one standard error needs at least two held-out examples")
    means, reference = values.double().mean(1), reference.double()
    return means.isfinite() & (means >= reference.mean() - num_errors * standard_error(reference))


def one_standard_error(log_likelihoods: Tensor, right: Tensor | None = None, num_errors: float = 1.0) -> Tensor:
    """
    Which networks are within one standard error of the best on held-out examples.

    It is the rule of L. Breiman, J. Friedman, R. Olshen and C. Stone (1984), *Classification and regression trees*.
    Where labels are observed, accuracy and log likelihood are held against the whole network's: of several accuracies
    the best is so by luck as much as by merit, and a network that is too sure of itself may have a poor log likelihood
    and more labels right than any. But where one does better than the whole in both, and in one of them by more than
    two errors of the difference, as where the whole network was short of training, what it does beyond these two is the
    measure: that is no luck. Of several the most accurate counts. Where an error of accuracy
    is more than half a point, half a point is allowed; two examples more, one of them right, keep the error of those
    that have all right from being 0 (A. Agresti and B. Coull (1998), https://doi.org/10.2307/2685469). Else log
    likelihood alone is held against the best: the whole network may be overfitted, and say little of others.

    The error is that of a mean, not of a difference paired over examples. The latter is smaller than what comes of
    training the same network once more from other random numbers, of which it knows nothing.

    :param log_likelihoods: of each held-out example under each network in nats, the whole network's first; shape
        ``(networks, examples)``.
    :param right: whether each label is the most probable one, of the same shape, where labels are observed.
    :param num_errors: how many standard errors are allowed, in the place of one.
    :return: which, shape ``(networks,)``.
    :raises ReductionError: as for :func:`near`, and for a whole network whose log likelihoods are not finite.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning.compression.path import one_standard_error
        >>> whole, middle, small = [[-1.0, -2.0, -3.0], [-1.1, -1.9, -3.0], [-5.0, -5.0, -6.0]]
        >>> one_standard_error(torch.tensor([whole, middle, small]))
        tensor([ True,  True, False])
    """
    if not log_likelihoods[0].isfinite().all():
        raise ReductionError(
            "the whole network gives held-out examples a log likelihood that is not finite: train it at a lower rate"
        )
    means = log_likelihoods.double().mean(1)
    means = means.where(means.isfinite(), -math.inf)
    if right is None:
        return near(log_likelihoods, log_likelihoods[means.argmax()], num_errors)
    right = torch.cat([right.double(), right.new_tensor([[0.0, 1.0]]).double().expand(len(right), -1)], 1)
    accuracies = right.mean(1)
    is_no_worse = (means >= means[0]) & (accuracies >= accuracies[0])
    best = accuracies.where(is_no_worse, -math.inf).argmax()
    accuracy, log_likelihood = (_surely_reached(values[0], values[best]) for values in (right, log_likelihoods))
    keeps = accuracies >= accuracy.mean() - num_errors * _MOST_ACCURACY
    return keeps & near(right, accuracy, num_errors) & near(log_likelihoods, log_likelihood, num_errors)


def _surely_reached(whole: Tensor, best: Tensor) -> Tensor:
    """By example, what the whole network does, or the best one less what may be luck, if that is more."""
    whole, best = whole.double(), best.double()
    best = best - _LUCK * torch.hypot(standard_error(whole), standard_error(best))
    return best if best.mean() > whole.mean() else whole

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""For which numbers a decision holds: where a function crosses a level, to the last digits, and in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Function = Callable[[float], float]

_MOST_STEPS = 100
_ACCURACY = 1e-12


@dataclass(frozen=True)
class Stretch:
    """
    Numbers from ``low`` to ``high`` for which the decision is the same.

    :param low: the least.
    :param high: the largest.
    :param sign: 1 where the function is above all levels, -1 where it is below, 0 between; None where it is not known.
    """

    low: float
    high: float
    sign: int | None

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def stretches(
    function: Function, numbers: Sequence[float], values: Sequence[float], threshold: float
) -> tuple[Stretch, ...]:
    """
    The stretches in which a function is above a threshold, below its negative, or between.

    What happens between two numbers and is undone before the second is not seen.

    :param function: of one number.
    :param numbers: in ascending order.
    :param values: of the function there; NaN where it has none.
    :param threshold: not negative.

    Example::

        >>> stretches(lambda x: 2.0 - x, [0.0, 1.5, 4.0], [2.0, 0.5, -2.0], 0.0)
        (Stretch(low=0.0, high=2.0, sign=1), Stretch(low=2.0, high=4.0, sign=-1))
    """
    found: list[Stretch] = []
    low, sign = numbers[0], _sign(values[0], threshold)
    for (a, b), (at_a, at_b) in zip(zip(numbers, numbers[1:]), zip(values, values[1:])):
        for place, after in _changes(function, a, b, at_a, at_b, threshold):
            if after != sign:
                found.append(Stretch(low, place, sign))
                low, sign = place, after
    return (*found, Stretch(low, numbers[-1], sign))


def _sign(value: float, threshold: float) -> int | None:
    if math.isnan(value):
        return None
    return 1 if value > threshold else -1 if value < -threshold else 0


def _changes(
    function: Function, a: float, b: float, at_a: float, at_b: float, threshold: float
) -> list[tuple[float, int | None]]:
    """Where between two numbers the decision changes, and what it is after that."""
    before, after = _sign(at_a, threshold), _sign(at_b, threshold)
    if before == after:
        return []
    if before is None or after is None:
        return [(b if before is None else a, after)]  # up to the last number at which something is known
    crossed = [level for level in {threshold, -threshold} if (at_a - level > 0) != (at_b - level > 0)]
    rising = after > before
    places = sorted((_crossing(function, level, a, b, at_a, at_b), level) for level in crossed)
    if len(places) == 1:
        return [(places[0][0], after)]
    # Over both levels, and between them nothing is decided.
    (first, _), (second, _) = places
    return [(first, 0), (second, 1 if rising else -1)]


def _crossing(function: Function, level: float, a: float, b: float, at_a: float, at_b: float) -> float:
    return root(lambda x: function(x) - level, a, b, at_a - level, at_b - level)


def root(function: Function, a: float, b: float, at_a: float, at_b: float) -> float:
    """
    Where a continuous function is 0 between two numbers at which its signs differ, by the Illinois method.

    The secant through two points that bracket it; a point that stays has its value halved, so that it does not stay for
    ever (M. Dowell and P. Jarratt (1971), *A modified regula falsi method*, BIT 11).

    Example::

        >>> round(root(lambda x: x**2 - 2.0, 0.0, 2.0, -2.0, 2.0), 12)
        1.414213562373
    """
    side = 0
    for _ in range(_MOST_STEPS):
        if abs(b - a) <= _ACCURACY * max(abs(a), abs(b)) or at_a == at_b:
            break
        x = (a * at_b - b * at_a) / (at_b - at_a)
        value = function(x)
        if value == 0:
            return x
        if (value > 0) == (at_b > 0):
            b, at_b = x, value
            at_a *= 0.5 if side == 1 else 1.0
            side = 1
        else:
            a, at_a = x, value
            at_b *= 0.5 if side == -1 else 1.0
            side = -1
    return a if abs(at_a) < abs(at_b) else b

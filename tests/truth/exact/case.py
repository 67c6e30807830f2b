# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A model and the questions asked of it, as integrals over the few parameters that are left.

Priors are SciPy's; a number in the place of a prior fixes a parameter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from tests.truth.exact.integrals import Integral, integral

Array = NDArray[np.float64]
Priors = Mapping[str, Any]
FOLDER = Path(__file__).parents[1]

normal, half_normal, half_cauchy = stats.norm, stats.halfnorm, stats.halfcauchy


@dataclass(frozen=True)
class Case:
    """
    :param priors: of each parameter, or a number at which it is fixed.
    :param log_likelihood: of the parameters that are left, by name, and of all priors.
    :param questions: the priors that differ, for each question.
    :param closed: parameters over which ``log_likelihood`` has integrated.
    :param by_lattice: whether a lattice is affordable.
    """

    priors: Priors
    log_likelihood: Callable[[Mapping[str, Array], Priors], Array]
    questions: Mapping[str, Priors]
    closed: tuple[str, ...] = ()
    by_lattice: bool = True


def evidence(case: Case, changes: Priors) -> Integral:
    priors = dict(case.priors) | dict(changes)
    fixed = {name: prior for name, prior in priors.items() if isinstance(prior, float)}
    free = [name for name in priors if name not in fixed and name not in case.closed]

    def log_density(points: Array) -> Array:
        values = {name: np.full(len(points), at) for name, at in fixed.items() if name not in case.closed}
        total = np.zeros(len(points))
        for name, coordinate in zip(free, points.T):
            values[name], log_jacobian = placed(priors[name], coordinate)
            total = total + priors[name].logpdf(values[name]) + log_jacobian
        return total + case.log_likelihood(values, priors)

    start = np.array([unplaced(priors[name]) for name in free])
    return integral(log_density, start, by_lattice=case.by_lattice)


def placed(prior: Any, coordinate: Array) -> tuple[Array, Array | float]:
    """A real coordinate, moved to the support of a prior, and the logarithm of the Jacobian."""
    low, high = prior.support()
    if np.isneginf(low):
        return coordinate, 0.0
    if np.isposinf(high):
        return low + np.exp(coordinate), coordinate
    share = special.expit(coordinate)
    return low + (high - low) * share, np.log(high - low) - np.logaddexp(0, coordinate) - np.logaddexp(0, -coordinate)


def unplaced(prior: Any) -> float:
    """The coordinate of a prior's median."""
    low, high = prior.support()
    median = prior.median()
    if np.isneginf(low):
        return float(median)
    return float(np.log(median - low) if np.isposinf(high) else special.logit((median - low) / (high - low)))


def table(name: str, *keys: str) -> list[Array]:
    read = json.loads((FOLDER / "data" / f"{name}.json").read_text())
    return [np.array(read[key], dtype=np.float64) for key in keys]


def standardised(values: Array) -> Array:
    return (values - values.mean(0)) / values.std(0)


def loc_and_scale(priors: Priors, names: tuple[str, ...]) -> tuple[Array, Array]:
    """Of normal priors; a parameter that is fixed has the scale 0."""
    pairs = [(p, 0.0) if isinstance(p := priors[name], float) else (p.mean(), p.std()) for name in names]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def zero(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 0.0)

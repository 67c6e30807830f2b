# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models of other kinds: simplexes, correlations, shrinkage, a funnel, modes far apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from tests.truth.exact import likelihoods
from tests.truth.exact.case import Case, Priors, half_cauchy, half_normal, normal, standardised, table, zero

Array = NDArray[np.float64]


def peas() -> Case:
    """Dirichlet and multinomial distributions are conjugate: nothing is left to integrate over."""
    (count,) = table("peas", "count")
    questions = {
        "as 9 to 3 to 3 to 1": {"share": np.array([9, 3, 3, 1]) / 16},
        "narrow shares": {"concentration": 10.0},
        "shares alike": {"share": np.full(4, 0.25)},
    }

    def log_likelihood(_: Mapping[str, Array], priors: Priors) -> Array:
        if priors["share"] is not None:
            return np.array([stats.multinomial.logpmf(count, count.sum(), priors["share"])])
        return np.array([stats.dirichlet_multinomial.logpmf(count, np.full(4, priors["concentration"]), count.sum())])

    return Case({"share": None, "concentration": 1.0}, log_likelihood, questions, closed=("share", "concentration"))


def blood() -> Case:
    """A Dirichlet distribution as a stick that is broken twice."""
    (count,) = table("blood", "count")
    questions = {
        "narrow shares": {"a": stats.beta(10, 20), "b": stats.beta(10, 10)},
        "rare B": {"a": stats.beta(2, 6), "b": stats.beta(1, 5)},
        "as 2 to 1 to 7": {"a": 0.2, "b": 0.125},
    }
    factorials = special.gammaln(count.sum() + 1) - special.gammaln(count + 1).sum()

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        a = values["a"]
        b = (1 - a) * values["b"]
        o = 1 - a - b
        types = np.stack([a**2 + 2 * a * o, b**2 + 2 * b * o, 2 * a * b, o**2], -1)
        return factorials + np.log(types) @ count

    return Case({"a": stats.beta(1, 2), "b": stats.beta(1, 1)}, log_likelihood, questions)


def leukaemia() -> Case:
    week, positive = table("leukaemia", "week", "positive")
    questions = {
        "no effect": zero("effect"),
        "exponential": {"shape": 1.0},
        "narrow effect": {"effect": normal(0, 0.2)},
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        shape = values["shape"][:, None]
        scale = np.exp(values["intercept"][:, None] + values["effect"][:, None] * positive) / shape
        return stats.gamma.logpdf(week, shape, scale=scale).sum(1)

    return Case({"intercept": normal(3, 2), "effect": normal(0, 1), "shape": stats.gamma(2)}, log_likelihood, questions)


def eyes_apart() -> Case:
    """One mode of two that are alike: the lower mean, and how far the other is above it."""
    y = (table("eyes", "peak")[0] - 540) / 10
    gap = half_normal(0, 2)
    questions = {
        "narrow means": {"low": normal(0, 1)},
        "first mean of 0": {"low": 0.0, "gap": normal(0, 2)},
        "small errors": {"sigma": half_normal(0, 0.2)},
    }

    def log_likelihood(values: Mapping[str, Array], priors: Priors) -> Array:
        half = np.full(len(values["gap"]), 0.5)
        total = likelihoods.two_normals(y, half, values["low"], values["gap"], values["sigma"])
        if isinstance(priors["low"], float):
            return total
        # The prior of the gap is in the way of the second mean's, and the other order counts as much.
        return total + priors["low"].logpdf(values["low"] + values["gap"]) - gap.logpdf(values["gap"]) + np.log(2)

    return Case({"low": normal(0, 2), "gap": gap, "sigma": half_normal(0, 1)}, log_likelihood, questions)


def shrunk() -> Case:
    """Linear given the scales."""
    loss, *columns = table("stacks", "loss", "air", "temperature", "acid")
    x = np.stack([np.ones(len(loss)), *map(standardised, columns)], 1)
    own = ("own0", "own1", "own2")
    questions = {
        "narrow tau": {"tau": half_cauchy(0, 0.05)},
        "no effect": {"tau": 0.0} | dict.fromkeys(own, 1.0),
        "no horseshoe": dict.fromkeys(own, 1.0),
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        scales = np.stack([values["tau"] * values[name] for name in own], -1)
        scales = np.concatenate([np.ones((len(scales), 1)), scales], 1)[:, None, :]
        loc = np.array([2.0, 0.0, 0.0, 0.0])
        return likelihoods.linear(x * scales, loss / 10 - x @ loc, np.zeros(4), np.ones(4), values["sigma"])

    priors = {"tau": half_cauchy(0, 0.5)} | dict.fromkeys(own, half_cauchy(0, 1)) | {"sigma": half_normal(0, 1)}
    return Case(priors, log_likelihood, questions, by_lattice=False)


def funnel() -> Case:
    effect, error = table("schools", "effect", "standard_error")
    questions = {
        "narrow log scale": {"log_scale": normal(0, 1)},
        "scale of 10": {"log_scale": 4.605170185988092},
        "schools alike": {"log_scale": -10.0},
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        variance = error**2 + np.exp(values["log_scale"])[:, None]
        return likelihoods.normal_group(effect, variance, 0.0, 0.0)

    return Case({"log_scale": normal(0, 3)}, log_likelihood, questions)


def correlated() -> Case:
    """
    Partial correlations are independent under the prior.

    D. Lewandowski, D. Kurowicka and H. Joe (2009), Journal of Multivariate Analysis 100, 1989-2001.
    """
    x = np.stack([standardised(column) for column in table("stacks", "air", "temperature", "acid")], 1)
    scatter = x.T @ x
    questions = {"narrow correlations": partial(5.0), "no correlation": zero("first", "second", "last")}

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        r12, r13 = values["first"], values["second"]
        r23 = r12 * r13 + values["last"] * np.sqrt((1 - r12**2) * (1 - r13**2))
        one = np.ones_like(r12)
        matrix = np.stack([one, r12, r13, r12, one, r23, r13, r23, one], -1).reshape(-1, 3, 3)
        squares = np.trace(np.linalg.solve(matrix, np.broadcast_to(scatter, matrix.shape)), axis1=1, axis2=2)
        return -0.5 * (len(x) * (3 * np.log(2 * np.pi) + np.linalg.slogdet(matrix)[1]) + squares)

    return Case(partial(1.0), log_likelihood, questions)


def partial(concentration: float) -> dict[str, Priors]:
    first, last = (stats.beta(at, at, loc=-1, scale=2) for at in (concentration + 0.5, concentration))
    return {"first": first, "second": first, "last": last}

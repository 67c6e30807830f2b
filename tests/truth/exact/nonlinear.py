# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models that are not linear, or whose errors are not normal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from tests.truth.exact import likelihoods
from tests.truth.exact.case import Case, Priors, half_normal, loc_and_scale, normal, standardised, table, zero

Array = NDArray[np.float64]


def sleep() -> Case:
    first, second = table("sleep", "first", "second")
    difference = second - first
    questions = {
        "no effect": zero("effect"),
        "narrow effect": {"effect": normal(0, 0.3)},
        "effect of -1": {"effect": -1.0},
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        sigma = values["sigma"][:, None]
        return stats.norm.logpdf(difference, values["effect"][:, None] * sigma, sigma).sum(1)

    return Case({"effect": stats.cauchy(0, 0.5**0.5), "sigma": stats.lognorm(1)}, log_likelihood, questions)


def stacks() -> Case:
    loss, *covariates = table("stacks", "loss", "air", "temperature", "acid")
    x = np.stack([np.ones(len(loss)), *map(standardised, covariates)], 1)
    names = ("intercept", "air", "temperature", "acid")
    questions = {
        "no acid": zero("acid"),
        "no temperature, no acid": zero("temperature", "acid"),
        "no air": zero("air"),
        "no effect": zero("air", "temperature", "acid"),
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        mean = likelihoods.predictor(x, [values[name] for name in names])
        return likelihoods.student(loss / 10, mean, values["scale"], 4.0)

    priors = {"intercept": normal(2, 1)} | dict.fromkeys(names[1:], normal(0, 1)) | {"scale": half_normal(0, 1)}
    return Case(priors, log_likelihood, questions)


def dugongs() -> Case:
    """Linear given gamma."""
    length, age = table("dugongs", "length", "age")
    questions = {
        "gamma of 0.9": {"gamma": 0.9},
        "gamma from 0.8 to 0.9": {"gamma": stats.uniform(0.8, 0.1)},
        "beta of 0.5": {"beta": 0.5},
        "no growth": zero("beta"),
    }
    closed = ("alpha", "beta")

    def log_likelihood(values: Mapping[str, Array], priors: Priors) -> Array:
        falling = -(values["gamma"][:, None] ** age)
        x = np.stack([np.ones_like(falling), falling], -1)
        return likelihoods.linear(x, length, *loc_and_scale(priors, closed), values["sigma"])

    priors = {
        "alpha": normal(2.5, 1),
        "beta": normal(1, 1),
        "gamma": stats.uniform(0.5, 0.5),
        "sigma": half_normal(0, 0.5),
    }
    return Case(priors, log_likelihood, questions, closed=closed)


def eyes() -> Case:
    y = (table("eyes", "peak")[0] - 540) / 10
    questions = {
        "parts alike": {"share": 0.5},
        "narrow share": {"share": stats.beta(10, 10)},
        "small gap": {"gap": half_normal(0, 0.2)},
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        return likelihoods.two_normals(y, *(values[name] for name in ("share", "low", "gap", "sigma")))

    priors = {"share": stats.beta(1, 1), "low": normal(0, 1), "gap": half_normal(0, 2), "sigma": half_normal(0, 1)}
    return Case(priors, log_likelihood, questions)


def mice() -> Case:
    """Given the shape and the baseline, the groups are independent: each difference is integrated by itself."""
    week, seen, group = table("mice", "week", "tumour", "group")
    members = [(week[group == g], seen[group == g]) for g in (1, 2, 3, 4)]
    differences = tuple(f"difference{g}" for g in (2, 3, 4))
    questions = {
        "groups alike": zero(*differences),
        "narrow differences": dict.fromkeys(differences, normal(0, 0.2)),
        "exponential": {"shape": 1.0},
    }
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    log_weights = np.log(weights) - 0.5 * np.log(2 * np.pi)

    def of_group(g: int, location: Array, shape: Array) -> Array:
        return likelihoods.weibull(*members[g], location[:, None], shape)

    def log_likelihood(values: Mapping[str, Array], priors: Priors) -> Array:
        baseline, shape = values["baseline"], values["shape"]
        total = of_group(0, baseline, shape)
        for g, name in enumerate(differences, 1):
            if isinstance(prior := priors[name], float):
                total = total + of_group(g, baseline + prior, shape)
                continue
            at = [of_group(g, baseline + prior.std() * node, shape) for node in nodes]
            total = total + special.logsumexp(np.stack(at) + log_weights[:, None], axis=0)
        return total

    priors = {"baseline": normal(3.5, 0.5), "shape": stats.gamma(2)} | dict.fromkeys(differences, normal(0, 0.5))
    return Case(priors, log_likelihood, questions, closed=differences)

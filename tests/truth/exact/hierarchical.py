# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models with groups, whose members are integrated in closed form, or one by one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tests.truth.exact import likelihoods
from tests.truth.exact.case import Case, Priors, half_cauchy, half_normal, normal, table, zero

Array = NDArray[np.float64]


def schools() -> Case:
    """The parameter ``spread`` scales the differences between schools."""
    effect, error = table("schools", "effect", "standard_error")
    questions = {
        "no mean effect": zero("mu"),
        "narrow tau": {"tau": half_normal(0, 2)},
        "schools half as different": {"spread": 0.5},
        "mean effect of 25": {"mu": 25.0},
        "schools alike": {"spread": 0.0},
    }

    def log_likelihood(values: Mapping[str, Array], priors: Priors) -> Array:
        variance = error**2 + (values["spread"] * values["tau"])[:, None] ** 2
        return normal_mean(effect, variance, priors["mu"])

    priors = {"mu": normal(0, 5), "tau": half_cauchy(0, 5), "spread": 1.0}
    return Case(priors, log_likelihood, questions, closed=("mu",))


def normal_mean(y: Array, variance: Array, mean: object) -> Array:
    """Of members with a common mean, fixed or with a normal prior."""
    if isinstance(mean, float):
        return likelihoods.normal_group(y, variance, mean, 0.0)
    return likelihoods.normal_group(y, variance, mean.mean(), mean.std())


def dyes() -> Case:
    """Means of batches, and what the samples differ from these by."""
    amount = (table("dyes", "yield")[0] - 1500) / 50
    samples = amount.shape[1]
    rest = np.sum((amount - amount.mean(1, keepdims=True)) ** 2)
    questions = {
        "batches alike": {"spread": 0.0},
        "narrow between batches": {"between": half_normal(0, 0.2)},
        "mean of 1500": zero("mean"),
    }

    def log_likelihood(values: Mapping[str, Array], priors: Priors) -> Array:
        within, between = values["within"], values["spread"] * values["between"]
        # Along the unit vector in the direction of equal samples, and across it.
        variance = np.repeat((within**2 / samples + between**2)[:, None], len(amount), 1)
        along = normal_mean(amount.mean(1), variance, priors["mean"]) - len(amount) / 2 * np.log(samples)
        return along + across(rest, len(amount) * (samples - 1), within)

    priors = {"mean": normal(0, 1), "between": half_normal(0, 1), "within": half_normal(0, 1), "spread": 1.0}
    return Case(priors, log_likelihood, questions, closed=("mean",))


def across(squares: float, count: int, sigma: Array) -> Array:
    """The log density of ``count`` normal errors whose squares add up to ``squares``."""
    return -count / 2 * np.log(2 * np.pi * sigma**2) - squares / (2 * sigma**2)


def rats() -> Case:
    """Weeks are centred, so that levels and growths are independent given the three scales."""
    weight, day = table("rats", "weight", "day")
    weight, week = weight / 100, (day - 22) / 7
    count, weeks = weight.shape
    level, growth = weight.mean(1), weight @ week / np.sum(week**2)
    rest = np.sum((weight - level[:, None] - growth[:, None] * week) ** 2)
    questions = {
        "narrow level": {"level": normal(2.5, 0.1)},
        "growth nearly alike": {"growth_scale": half_normal(0, 0.01)},
        "growth of 50 a week": {"growth": 0.5},
    }

    def log_likelihood(values: Mapping[str, Array], priors: Priors) -> Array:
        noise = values["sigma"] ** 2
        total = across(rest, count * (weeks - 2), values["sigma"])
        for name, estimates, size in (("level", level, weeks), ("growth", growth, np.sum(week**2))):
            variance = np.repeat((noise / size + values[f"{name}_scale"] ** 2)[:, None], count, 1)
            total = total + normal_mean(estimates, variance, priors[name]) - count / 2 * np.log(size)
        return total

    priors = {
        "level": normal(2.5, 1),
        "growth": normal(0.5, 0.5),
        "level_scale": half_normal(0, 0.5),
        "growth_scale": half_normal(0, 0.2),
        "sigma": half_normal(0, 0.2),
    }
    return Case(priors, log_likelihood, questions, closed=("level", "growth"))


def pumps() -> Case:
    failures, time = table("pumps", "failures", "time")
    questions = {
        "exponential": {"alpha": 1.0},
        "other beta": {"beta": stats.gamma(4, scale=1 / 4)},
        "beta of 20": {"beta": 20.0},
    }
    return Case(
        {"alpha": stats.expon(), "beta": stats.gamma(0.1)},
        lambda values, _: likelihoods.poisson_gamma(failures, time, values["alpha"], values["beta"]),
        questions,
    )


def surgical() -> Case:
    deaths, operations = table("surgical", "deaths", "operations")
    questions = {
        "hospitals nearly alike": {"sigma": half_normal(0, 0.1)},
        "narrow mean": {"mu": normal(-2.5, 0.2)},
        "mean of -1": {"mu": -1.0},
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        eta = np.repeat(values["mu"][:, None], len(deaths), 1)
        return likelihoods.with_effects(deaths, operations, eta, values["sigma"])

    return Case({"mu": normal(-2.5, 1), "sigma": half_normal(0, 1)}, log_likelihood, questions)


def seeds() -> Case:
    germinated, sown, kind, root = table("seeds", "germinated", "seeds", "kind", "root")
    x = np.stack([np.ones(len(sown)), kind, root, kind * root], 1)
    names = ("intercept", "kind", "root", "interaction")
    questions = {
        "no interaction": zero("interaction"),
        "plates nearly alike": {"sigma": half_normal(0, 0.1)},
        "no root": zero("root", "interaction"),
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        eta = likelihoods.predictor(x, [values[name] for name in names])
        return likelihoods.with_effects(germinated, sown, eta, values["sigma"])

    priors = dict.fromkeys(names, normal(0, 1)) | {"sigma": half_normal(0, 1)}
    return Case(priors, log_likelihood, questions, by_lattice=False)


def salmonella() -> Case:
    colonies, dose = table("salmonella", "colonies", "dose")
    count, dose = colonies.ravel(), np.repeat(dose, 3)
    x = np.stack([np.ones(len(dose)), np.log(dose + 10), dose / 1000], 1)
    names = ("intercept", "mutagen", "poison")
    questions = {
        "no poison": zero("poison"),
        "narrow sigma": {"sigma": half_normal(0, 0.2)},
        "hardly more variation than Poisson's": {"sigma": 0.05},
    }

    def log_likelihood(values: Mapping[str, Array], _: Priors) -> Array:
        eta = likelihoods.predictor(x, [values[name] for name in names])
        return likelihoods.with_effects(count, None, eta, values["sigma"])

    priors = {
        "intercept": normal(2, 1),
        "mutagen": normal(0, 1),
        "poison": normal(0, 2),
        "sigma": half_normal(0, 1),
    }
    return Case(priors, log_likelihood, questions, by_lattice=False)

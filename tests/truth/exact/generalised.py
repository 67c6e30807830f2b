# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Regressions of counts and of binary outcomes, whose coefficients are all integrated numerically."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tests.truth.exact import likelihoods
from tests.truth.exact.case import Case, Priors, normal, standardised, table, zero

Array = NDArray[np.float64]


def generalised(columns: Mapping[str, Array], log_likelihood: Callable[[Array], Array], intercept: Any, scale: float,
                questions: Mapping[str, Priors], by_lattice: bool = True) -> Case:  # fmt: skip
    """A regression through a linear predictor, from which ``log_likelihood`` is told."""
    rows = max(map(len, columns.values()))
    x = np.stack([np.ones(rows), *columns.values()], 1)
    priors = {"intercept": intercept} | dict.fromkeys(columns, normal(0, scale))
    return Case(
        priors,
        lambda values, _: log_likelihood(likelihoods.predictor(x, [values[name] for name in priors])),
        questions,
        by_lattice=by_lattice,
    )


def counts() -> Case:
    count, year = table("counts", "count", "year")
    questions = {
        "no quadratic term": zero("quadratic"),
        "no cubic term": zero("cubic"),
        "constant": zero("linear", "quadratic", "cubic"),
    }
    columns = {"linear": year, "quadratic": year**2, "cubic": year**3}

    def log_likelihood(eta: Array) -> Array:
        return likelihoods.poisson(count, eta).sum(1) - special.gammaln(count + 1).sum()

    return generalised(columns, log_likelihood, normal(0, 5), 1.0, questions)


def nes() -> Case:
    party, ideology, race, age, education, gender, income = table(
        "nes", "partyid7", "real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income"
    )
    columns = {
        "ideology": standardised(ideology),
        "black": race == 2,
        "age30": age == 2,
        "age45": age == 3,
        "age65": age == 4,
        "education": standardised(education),
        "female": gender == 2,
        "income": standardised(income),
    }
    questions = {
        "no age": zero("age30", "age45", "age65"),
        "no income": zero("income"),
        "no race, no income": zero("black", "income"),
        "no ideology": zero("ideology"),
    }
    one = np.ones(len(party))

    def log_likelihood(eta: Array) -> Array:
        return likelihoods.binomial(np.where(party > 4, one, 0), one, eta).sum(1)

    return generalised(columns, log_likelihood, normal(0, 2.5), 1.0, questions, by_lattice=False)


def dogs() -> Case:
    (shocked,) = table("dogs", "y")
    shocks, avoidances = ((np.cumsum(one, 1) - one).ravel() for one in (shocked, 1 - shocked))
    questions = {
        "shocks teach as avoidances at -0.25": {"shock": -0.25},
        "no shock": zero("shock"),
        "narrow avoidance": {"avoidance": normal(0, 0.1)},
        "no avoidance": zero("avoidance"),
    }
    # Trials with the same history are alike.
    history, group = np.unique(np.stack([avoidances, shocks], 1), axis=0, return_inverse=True)
    size = np.bincount(group).astype(float)
    count = np.bincount(group, shocked.ravel())

    def log_likelihood(eta: Array) -> Array:
        return likelihoods.binomial(count, size, eta).sum(1)

    return generalised(
        {"avoidance": history[:, 0], "shock": history[:, 1]}, log_likelihood, normal(0, 5), 1.0, questions
    )


def beetles() -> Case:
    killed, exposed, dose = table("beetles", "killed", "exposed", "dose")
    x = (dose - 1.8) * 10
    questions = {
        "no curvature": zero("curvature"),
        "narrow slope": {"slope": normal(0, 1)},
        "no effect": zero("slope", "curvature"),
    }
    constant = likelihoods.binomial_factorials(killed, exposed)

    def log_likelihood(eta: Array) -> Array:
        return likelihoods.binomial(killed, exposed, eta).sum(1) + constant

    return generalised({"slope": x, "curvature": x**2}, log_likelihood, normal(0, 2.5), 5.0, questions)

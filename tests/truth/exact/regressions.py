# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Linear regressions, integrated over their coefficients in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.truth.exact import likelihoods
from tests.truth.exact.case import Case, Priors, half_normal, loc_and_scale, normal, standardised, table, zero

Array = NDArray[np.float64]


def regression(
    y: Array, columns: Mapping[str, Array], intercept: Any, noise: float, questions: Mapping[str, Priors]
) -> Case:
    """Integrated over all coefficients; what is left is the scale of the errors."""
    x = np.stack([np.broadcast_to(column, y.shape) for column in columns.values()], 1)
    names = tuple(columns)
    priors = {name: intercept if name == "intercept" else normal(0, 1) for name in names} | {
        "sigma": half_normal(0, noise)
    }

    def log_likelihood(values: Mapping[str, Array], priors: Priors) -> Array:
        return likelihoods.linear(x, y, *loc_and_scale(priors, names), values["sigma"])

    return Case(priors, log_likelihood, questions, closed=names)


def kidiq() -> Case:
    score, hs, iq = table("kidiq", "kid_score", "mom_hs", "mom_iq")
    columns = {"intercept": np.ones(1), "high_school": hs, "iq": iq / 100, "interaction": hs * iq / 100}
    questions = {
        "no interaction": zero("interaction"),
        "high school without effect": zero("high_school", "interaction"),
        "no slopes": zero("high_school", "iq", "interaction"),
    }
    return regression(score / 100, columns, normal(0, 1), 0.5, questions)


def mesquite() -> Case:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    weight, group, *sizes = table("mesquite", "weight", "group", *names)
    columns = {"intercept": np.ones(1)} | {name: np.log(size) for name, size in zip(names, sizes)} | {"group": group}
    questions = {
        "no total height": zero("total_height"),
        "no heights, no density": zero("canopy_height", "total_height", "density"),
        "no second diameter": zero("diam2"),
        "no diameters": zero("diam1", "diam2"),
    }
    return regression(np.log(weight), columns, normal(6, 2), 1.0, questions)


def earnings() -> Case:
    earned, height, male = table("earnings", "earn", "height", "male")
    z = standardised(height)
    columns = {"intercept": np.ones(1), "height": z, "male": male, "interaction": z * male}
    questions = {
        "no interaction": zero("interaction"),
        "no height": zero("height", "interaction"),
        "no sex": zero("male", "interaction"),
        "no slopes": zero("height", "male", "interaction"),
    }
    return regression(np.log(earned), columns, normal(9, 2), 1.0, questions)


def autoregression(y: Array, questions: Mapping[str, Priors]) -> Case:
    columns = {"intercept": np.ones(1)} | {f"lag{lag}": y[5 - lag : len(y) - lag] for lag in range(1, 6)}
    return regression(y[5:], columns, normal(0, 1), 1.0, questions)


def ar() -> Case:
    questions = {
        "no second lag": zero("lag2"),
        "no fifth lag": zero("lag5"),
        "narrow third lag": {"lag3": normal(0, 0.1)},
        "no first lag": zero("lag1"),
    }
    return autoregression(*table("ar", "y"), questions)


def lynx() -> Case:
    questions = {f"order {order}": zero(*(f"lag{lag}" for lag in range(order + 1, 6))) for order in (4, 2, 1)}
    return autoregression(np.log10(table("lynx", "trapped")[0]), questions)


def diabetes() -> Case:
    names = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
    progress, *covariates = table("diabetes", "progress", *names)
    columns = {name: standardised(column) for name, column in zip(names, covariates)}
    questions = {
        "no age": zero("age"),
        "no serum but s5": zero("s1", "s2", "s3", "s4", "s6"),
        "no bmi": zero("bmi"),
        "narrow slopes": dict.fromkeys(names, normal(0, 0.2)),
    }
    return regression(standardised(progress), columns, None, 1.0, questions)


def pines() -> Case:
    strength, density, adjusted = table("pines", "strength", "density", "adjusted")
    columns = {"intercept": np.ones(1), "density": standardised(density), "adjusted": standardised(adjusted)}
    questions = {
        "no density": zero("density"),
        "no adjusted density": zero("adjusted"),
        "adjusted density counts once": {"adjusted": 1.0},
    }
    return regression(strength / 1000, columns, normal(3, 1), 1.0, questions)

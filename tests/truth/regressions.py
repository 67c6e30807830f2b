# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Linear regressions and autoregressions."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.truth.studies import Study, columns, point, standardised, without


def regress(y: Tensor, intercept: dist.Distribution, terms: Mapping[str, Tensor], noise: float) -> None:
    """Normal errors, whose scale has a half-normal prior of scale ``noise``; standard normal priors on the slopes."""
    mean = pyro.sample("intercept", intercept)
    for name, column in terms.items():
        mean = mean + pyro.sample(name, dist.Normal(0.0, 1.0)) * column
    sigma = pyro.sample("sigma", dist.HalfNormal(noise))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def kidiq(score: Tensor, high_school: Tensor, iq: Tensor) -> None:
    """Uncentred, as in the book, so that the posterior is nearly singular."""
    terms = {"high_school": high_school, "iq": iq, "interaction": high_school * iq}
    regress(score, dist.Normal(0.0, 1.0), terms, 0.5)


def kidiq_data() -> tuple[Tensor, ...]:
    score, high_school, iq = columns("kidiq", "kid_score", "mom_hs", "mom_iq")
    return score / 100, high_school, iq / 100


MESQUITE = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")


def mesquite(weight: Tensor, sizes: Tensor) -> None:
    regress(weight, dist.Normal(6.0, 2.0), dict(zip(MESQUITE, sizes.unbind(1))), 1.0)


def mesquite_data() -> tuple[Tensor, ...]:
    weight, *sizes, group = columns("mesquite", "weight", *MESQUITE)
    return weight.log(), torch.stack([*(size.log() for size in sizes), group], 1)


def earnings(earned: Tensor, height: Tensor, male: Tensor) -> None:
    terms = {"height": height, "male": male, "interaction": height * male}
    regress(earned, dist.Normal(9.0, 2.0), terms, 1.0)


def earnings_data() -> tuple[Tensor, ...]:
    earned, height, male = columns("earnings", "earn", "height", "male")
    return earned.log(), standardised(height), male


def autoregress(y: Tensor) -> None:
    """Of order 5, given the first five values."""
    lags = {f"lag{lag}": y[5 - lag : len(y) - lag] for lag in range(1, 6)}
    regress(y[5:], dist.Normal(0.0, 1.0), lags, 1.0)


def ar(y: Tensor) -> None:
    autoregress(y)


def lynx(log_trapped: Tensor) -> None:
    autoregress(log_trapped)


def lynx_data() -> tuple[Tensor, ...]:
    return (columns("lynx", "trapped")[0].log10(),)


DIABETES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


def diabetes(progress: Tensor, x: Tensor) -> None:
    """All slopes in one site; the columns s1 to s5 are nearly collinear."""
    slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slopes, sigma), obs=progress)


def diabetes_data() -> tuple[Tensor, ...]:
    progress, *covariates = columns("diabetes", "progress", *DIABETES)
    return standardised(progress), standardised(torch.stack(covariates, 1))


def without_slopes(*names: str) -> dict[str, dist.Distribution]:
    kept = torch.tensor([name not in names for name in DIABETES])
    zeros = torch.zeros(len(DIABETES))
    return {"slopes": dist.MaskedMixture(kept, dist.Delta(zeros), dist.Normal(zeros, 1.0)).to_event(1)}


def pines(strength: Tensor, density: Tensor, adjusted: Tensor) -> None:
    """Either covariate nearly does for the other."""
    regress(strength, dist.Normal(3.0, 1.0), {"density": density, "adjusted": adjusted}, 1.0)


def pines_data() -> tuple[Tensor, ...]:
    strength, density, adjusted = columns("pines", "strength", "density", "adjusted")
    return strength / 1000, standardised(density), standardised(adjusted)


REGRESSIONS = (
    Study(
        kidiq,
        kidiq_data,
        {
            "no interaction": without("interaction"),
            "high school without effect": without("high_school", "interaction"),
            "no slopes": without("high_school", "iq", "interaction"),
        },
    ),
    Study(
        mesquite,
        mesquite_data,
        {
            "no total height": without("total_height"),
            "no heights, no density": without("canopy_height", "total_height", "density"),
            "no second diameter": without("diam2"),
            "no diameters": without("diam1", "diam2"),
        },
    ),
    Study(
        earnings,
        earnings_data,
        {
            "no interaction": without("interaction"),
            "no height": without("height", "interaction"),
            "no sex": without("male", "interaction"),
            "no slopes": without("height", "male", "interaction"),
        },
    ),
    Study(
        ar,
        lambda: columns("ar", "y"),
        {
            "no second lag": without("lag2"),
            "no fifth lag": without("lag5"),
            "narrow third lag": {"lag3": dist.Normal(0.0, 0.1)},
            "no first lag": without("lag1"),
        },
    ),
    Study(
        lynx,
        lynx_data,
        {
            "order 4": without("lag5"),
            "order 2": without("lag3", "lag4", "lag5"),
            "order 1": without("lag2", "lag3", "lag4", "lag5"),
        },
    ),
    Study(
        diabetes,
        diabetes_data,
        {
            "no age": without_slopes("age"),
            "no serum but s5": without_slopes("s1", "s2", "s3", "s4", "s6"),
            "no bmi": without_slopes("bmi"),
            "narrow slopes": {"slopes": dist.Normal(torch.zeros(10), 0.2).to_event(1)},
        },
    ),
    Study(
        pines,
        pines_data,
        {
            "no density": without("density"),
            "no adjusted density": without("adjusted"),
            "adjusted density counts once": {"adjusted": point(1.0)},
        },
    ),
)

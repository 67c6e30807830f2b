# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Regressions of counts and of binary outcomes."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.truth.studies import Study, columns, point, standardised, without


def predictor(intercept: dist.Distribution, terms: Mapping[str, Tensor], scale: float) -> Tensor:
    eta = pyro.sample("intercept", intercept)
    for name, column in terms.items():
        eta = eta + pyro.sample(name, dist.Normal(0.0, scale)) * column
    return eta


def counts(count: Tensor, year: Tensor) -> None:
    """A Poisson regression on a cubic polynomial."""
    eta = predictor(dist.Normal(0.0, 5.0), {"linear": year, "quadratic": year**2, "cubic": year**3}, 1.0)
    with pyro.plate("data", len(count)):
        pyro.sample("count", dist.Poisson(eta.exp()), obs=count)


NES = ("ideology", "black", "age30", "age45", "age65", "education", "female", "income")


def nes(republican: Tensor, x: Tensor) -> None:
    """Whether one leans to the Republicans."""
    logits = predictor(dist.Normal(0.0, 2.5), dict(zip(NES, x.unbind(1))), 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("republican", dist.Bernoulli(logits=logits), obs=republican)


def nes_data() -> tuple[Tensor, ...]:
    party, ideology, race, age, education, gender, income = columns(
        "nes", "partyid7", "real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income"
    )
    covariates = [standardised(ideology), race == 2, age == 2, age == 3, age == 4]
    covariates += [standardised(education), gender == 2, standardised(income)]
    return (party > 4).to(party.dtype), torch.stack([column.to(party.dtype) for column in covariates], 1)


def dogs(shocked: Tensor, avoidances: Tensor, shocks: Tensor) -> None:
    """Learning from avoidances and from shocks before a trial."""
    logits = predictor(dist.Normal(0.0, 5.0), {"avoidance": avoidances, "shock": shocks}, 1.0)
    with pyro.plate("data", len(shocked)):
        pyro.sample("shocked", dist.Bernoulli(logits=logits), obs=shocked)


def dogs_data() -> tuple[Tensor, ...]:
    (shocked,) = columns("dogs", "y")
    avoidances, shocks = ((one.cumsum(1) - one).flatten() for one in (1 - shocked, shocked))
    return shocked.flatten(), avoidances, shocks


def beetles(killed: Tensor, exposed: Tensor, dose: Tensor) -> None:
    logits = predictor(dist.Normal(0.0, 2.5), {"slope": dose, "curvature": dose**2}, 5.0)
    with pyro.plate("data", len(dose)):
        pyro.sample("killed", dist.Binomial(exposed, logits=logits), obs=killed)


def beetles_data() -> tuple[Tensor, ...]:
    killed, exposed, dose = columns("beetles", "killed", "exposed", "dose")
    return killed, exposed, (dose - 1.8) * 10


GENERALISED = (
    Study(
        counts,
        lambda: columns("counts", "count", "year"),
        {
            "no quadratic term": without("quadratic"),
            "no cubic term": without("cubic"),
            "constant": without("linear", "quadratic", "cubic"),
        },
    ),
    Study(
        nes,
        nes_data,
        {
            "no age": without("age30", "age45", "age65"),
            "no income": without("income"),
            "no race, no income": without("black", "income"),
            "no ideology": without("ideology"),
        },
    ),
    Study(
        dogs,
        dogs_data,
        {
            "shocks teach as avoidances at -0.25": {"shock": point(-0.25)},
            "no shock": without("shock"),
            "narrow avoidance": {"avoidance": dist.Normal(0.0, 0.1)},
            "no avoidance": without("avoidance"),
        },
    ),
    Study(
        beetles,
        beetles_data,
        {
            "no curvature": without("curvature"),
            "narrow slope": {"slope": dist.Normal(0.0, 1.0)},
            "no effect": without("slope", "curvature"),
        },
    ),
)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models with groups: centred and not, normal, binomial and Poisson."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.truth.studies import Study, columns, point, without


def schools(effect: Tensor, standard_error: Tensor) -> None:
    """Centred: a funnel."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effect)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, standard_error), obs=effect)


def half_as_broad() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        pyro.sample("theta", dist.Normal(mu, tau / 2))


def schools_apart(effect: Tensor, standard_error: Tensor) -> None:
    """Not centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effect)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mu + tau * z, standard_error), obs=effect)


def schools_data() -> tuple[Tensor, ...]:
    return columns("schools", "effect", "standard_error")


def dyes(amount: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    between = pyro.sample("between", dist.HalfNormal(1.0))
    within = pyro.sample("within", dist.HalfNormal(1.0))
    with pyro.plate("batches", amount.shape[0], dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("samples", amount.shape[1], dim=-1):
            pyro.sample("amount", dist.Normal(mean + between * z, within), obs=amount)


def dyes_data() -> tuple[Tensor, ...]:
    return ((columns("dyes", "yield")[0] - 1500) / 50,)


def rats(weight: Tensor, week: Tensor) -> None:
    """Each rat has a level and a growth of its own: 65 coordinates."""
    level = pyro.sample("level", dist.Normal(2.5, 1.0))
    growth = pyro.sample("growth", dist.Normal(0.5, 0.5))
    level_scale = pyro.sample("level_scale", dist.HalfNormal(0.5))
    growth_scale = pyro.sample("growth_scale", dist.HalfNormal(0.2))
    sigma = pyro.sample("sigma", dist.HalfNormal(0.2))
    with pyro.plate("rats", weight.shape[0], dim=-2):
        own_level = pyro.sample("own_level", dist.Normal(level, level_scale))
        own_growth = pyro.sample("own_growth", dist.Normal(growth, growth_scale))
        with pyro.plate("weeks", weight.shape[1], dim=-1):
            pyro.sample("weight", dist.Normal(own_level + own_growth * week, sigma), obs=weight)


def rats_data() -> tuple[Tensor, ...]:
    weight, day = columns("rats", "weight", "day")
    return weight / 100, (day - 22) / 7


def pumps(failures: Tensor, time: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Exponential(1.0))
    beta = pyro.sample("beta", dist.Gamma(0.1, 1.0))
    with pyro.plate("pumps", len(time)):
        rate = pyro.sample("rate", dist.Gamma(alpha, beta))
        pyro.sample("failures", dist.Poisson(rate * time), obs=failures)


def surgical(deaths: Tensor, operations: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(-2.5, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("hospitals", len(deaths)):
        logit = pyro.sample("logit", dist.Normal(mu, sigma))
        pyro.sample("deaths", dist.Binomial(operations, logits=logit), obs=deaths)


def seeds(germinated: Tensor, sown: Tensor, kind: Tensor, root: Tensor) -> None:
    logits = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    for name, column in {"kind": kind, "root": root, "interaction": kind * root}.items():
        logits = logits + pyro.sample(name, dist.Normal(0.0, 1.0)) * column
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("plates", len(sown)):
        plate = pyro.sample("plate", dist.Normal(0.0, sigma))
        pyro.sample("germinated", dist.Binomial(sown, logits=logits + plate), obs=germinated)


def salmonella(colonies: Tensor, dose: Tensor) -> None:
    """A Poisson regression with more than Poisson's variation."""
    log_mean = pyro.sample("intercept", dist.Normal(2.0, 1.0))
    log_mean = log_mean + pyro.sample("mutagen", dist.Normal(0.0, 1.0)) * (dose + 10).log()
    log_mean = log_mean + pyro.sample("poison", dist.Normal(0.0, 2.0)) * dose / 1000
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("plates", len(colonies)):
        own = pyro.sample("own", dist.Normal(0.0, sigma))
        pyro.sample("colonies", dist.Poisson((log_mean + own).exp()), obs=colonies)


def salmonella_data() -> tuple[Tensor, ...]:
    colonies, dose = columns("salmonella", "colonies", "dose")
    return colonies.flatten(), dose.repeat_interleave(3)


HIERARCHICAL = (
    Study(
        schools,
        schools_data,
        {
            "no mean effect": without("mu"),
            "narrow tau": {"tau": dist.HalfNormal(2.0)},
            "schools half as different": half_as_broad,
            "mean effect of 25": {"mu": point(25.0)},
        },
    ),
    Study(
        schools_apart,
        schools_data,
        {
            "no mean effect": without("mu"),
            "narrow tau": {"tau": dist.HalfNormal(2.0)},
            "schools alike": {"z": point(torch.zeros(8))},
        },
    ),
    Study(
        dyes,
        dyes_data,
        {
            "batches alike": {"z": point(torch.zeros(6, 1))},
            "narrow between batches": {"between": dist.HalfNormal(0.2)},
            "mean of 1500": without("mean"),
        },
    ),
    Study(
        rats,
        rats_data,
        {
            "narrow level": {"level": dist.Normal(2.5, 0.1)},
            "growth nearly alike": {"growth_scale": dist.HalfNormal(0.01)},
            "growth of 50 a week": {"growth": point(0.5)},
        },
    ),
    Study(
        pumps,
        lambda: columns("pumps", "failures", "time"),
        {
            "exponential": {"alpha": point(1.0)},
            "other beta": {"beta": dist.Gamma(4.0, 4.0)},
            "beta of 20": {"beta": point(20.0)},
        },
    ),
    Study(
        surgical,
        lambda: columns("surgical", "deaths", "operations"),
        {
            "hospitals nearly alike": {"sigma": dist.HalfNormal(0.1)},
            "narrow mean": {"mu": dist.Normal(-2.5, 0.2)},
            "mean of -1": {"mu": point(-1.0)},
        },
    ),
    Study(
        seeds,
        lambda: columns("seeds", "germinated", "seeds", "kind", "root"),
        {
            "no interaction": without("interaction"),
            "plates nearly alike": {"sigma": dist.HalfNormal(0.1)},
            "no root": without("root", "interaction"),
        },
    ),
    Study(
        salmonella,
        salmonella_data,
        {
            "no poison": without("poison"),
            "narrow sigma": {"sigma": dist.HalfNormal(0.2)},
            "hardly more variation than Poisson's": {"sigma": point(0.05)},
        },
    ),
)

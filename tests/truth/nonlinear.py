# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Models that are not linear, or whose errors are not normal: heavy tails, a mixture, survival."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.truth.studies import Study, columns, point, standardised, without


def sleep(difference: Tensor) -> None:
    """The t test of J. N. Rouder et al. (2009), Psychonomic Bulletin and Review 16, 225-237."""
    effect = pyro.sample("effect", dist.Cauchy(0.0, 0.5**0.5))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("patients", len(difference)):
        pyro.sample("difference", dist.Normal(effect * sigma, sigma), obs=difference)


def sleep_data() -> tuple[Tensor, ...]:
    first, second = columns("sleep", "first", "second")
    return (second - first,)


def stacks(loss: Tensor, x: Tensor) -> None:
    """A regression with errors of Student's t with 4 degrees of freedom."""
    mean = pyro.sample("intercept", dist.Normal(2.0, 1.0))
    for name, column in zip(("air", "temperature", "acid"), x.unbind(1)):
        mean = mean + pyro.sample(name, dist.Normal(0.0, 1.0)) * column
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("days", len(loss)):
        pyro.sample("loss", dist.StudentT(4.0, mean, scale), obs=loss)


def stacks_data() -> tuple[Tensor, ...]:
    loss, *covariates = columns("stacks", "loss", "air", "temperature", "acid")
    return loss / 10, standardised(torch.stack(covariates, 1))


def dugongs(length: Tensor, age: Tensor) -> None:
    """Growth towards a length that is never reached."""
    alpha = pyro.sample("alpha", dist.Normal(2.5, 1.0))
    beta = pyro.sample("beta", dist.Normal(1.0, 1.0))
    gamma = pyro.sample("gamma", dist.Uniform(0.5, 1.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(0.5))
    with pyro.plate("animals", len(age)):
        pyro.sample("length", dist.Normal(alpha - beta * gamma**age, sigma), obs=length)


def eyes(peak: Tensor) -> None:
    """A mixture of two normals, the second of which is the higher."""
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    gap = pyro.sample("gap", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    parts = dist.Normal(torch.stack([low, low + gap], -1), sigma.unsqueeze(-1))
    with pyro.plate("records", len(peak)):
        weights = dist.Categorical(torch.stack([share, 1 - share], -1))
        pyro.sample("peak", dist.MixtureSameFamily(weights, parts), obs=peak)


def eyes_data() -> tuple[Tensor, ...]:
    return ((columns("eyes", "peak")[0] - 540) / 10,)


def mice(week: Tensor, tumour: Tensor, group: Tensor) -> None:
    """Times with Weibull's distribution, some of which are known to be later only."""
    baseline = pyro.sample("baseline", dist.Normal(3.5, 0.5))
    difference = pyro.sample("difference", dist.Normal(week.new_zeros(3), 0.5).to_event(1))
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    location = baseline + torch.nn.functional.pad(difference, (1, 0))[..., group.long() - 1]
    log_ratio = week.log() - location
    log_hazard = shape.log() - week.log() + shape * log_ratio
    pyro.factor("times", (tumour * log_hazard - (shape * log_ratio).exp()).sum())


NONLINEAR = (
    Study(
        sleep,
        sleep_data,
        {
            "no effect": without("effect"),
            "narrow effect": {"effect": dist.Normal(0.0, 0.3)},
            "effect of -1": {"effect": point(-1.0)},
        },
    ),
    Study(
        stacks,
        stacks_data,
        {
            "no acid": without("acid"),
            "no temperature, no acid": without("temperature", "acid"),
            "no air": without("air"),
            "no effect": without("air", "temperature", "acid"),
        },
    ),
    Study(
        dugongs,
        lambda: columns("dugongs", "length", "age"),
        {
            "gamma of 0.9": {"gamma": point(0.9)},
            "gamma from 0.8 to 0.9": {"gamma": dist.Uniform(0.8, 0.9)},
            "beta of 0.5": {"beta": point(0.5)},
            "no growth": without("beta"),
        },
    ),
    Study(
        eyes,
        eyes_data,
        {
            "parts alike": {"share": point(0.5)},
            "narrow share": {"share": dist.Beta(10.0, 10.0)},
            "small gap": {"gap": dist.HalfNormal(0.2)},
        },
    ),
    Study(
        mice,
        lambda: columns("mice", "week", "tumour", "group"),
        {
            "groups alike": {"difference": point(torch.zeros(3), event_dim=1)},
            "narrow differences": {"difference": dist.Normal(torch.zeros(3), 0.2).to_event(1)},
            "exponential": {"shape": point(1.0)},
        },
    ),
)

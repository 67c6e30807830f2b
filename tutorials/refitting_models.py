# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Models that are not conjugate, on real data, with reduced priors to ask about.

The data ship with scikit-learn or are short enough to be written here, with their source. Each function at the end
returns one :class:`Study`; :data:`STUDIES` has them by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide, AutoMultivariateNormal, AutoNormal
from sklearn.datasets import load_breast_cancer, load_diabetes, load_linnerud
from torch import Tensor

# The reduced prior of a coefficient that should be nothing: for standardised covariates, far below what data can show.
NEGLIGIBLE = 0.01


@dataclass(frozen=True)
class Study:
    """
    A model with its data, and what to ask of it.

    :param model: the full model.
    :param data: its arguments.
    :param reductions: reduced priors, by what they say in words.
    :param guide: the family of guides to fit.
    """

    model: Callable[..., Any]
    data: tuple[Tensor, ...]
    reductions: Mapping[str, Any]
    guide: Callable[..., AutoGuide] = AutoMultivariateNormal


def standardised(values: Any) -> Tensor:
    """The columns of an array, each with mean 0 and standard deviation 1."""
    columns = torch.as_tensor(values, dtype=torch.get_default_dtype())
    return (columns - columns.mean(0)) / columns.std(0)


def linear_predictor(covariates: Tensor, coefficients: Tensor) -> Tensor:
    """One value for each row of the covariates; coefficients have shape ``(d,)`` or, in plates, ``(..., 1, d)``."""
    return (covariates @ torch.atleast_2d(coefficients).mT).squeeze(-1)


def without(place: int, size: int, scale: float = 1.0) -> dist.Distribution:
    """Independent normals, of mean 0 and the scale given, but for one that is next to nothing."""
    scales = torch.full((size,), scale)
    scales[place] = NEGLIGIBLE
    return dist.Normal(0.0, scales).to_event(1)


def logistic_model(covariates: Tensor, malignant: Tensor) -> None:
    """Logistic regression."""
    tumours, size = covariates.shape
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    coefficients = pyro.sample("coefficients", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    with pyro.plate("tumours", tumours):
        logits = intercept + linear_predictor(covariates, coefficients)
        pyro.sample("malignant", dist.Bernoulli(logits=logits), obs=malignant)


def logistic() -> Study:
    """Is a breast tumour malignant? Wisconsin study (Street, Wolberg and Mangasarian 1993): 569 tumours, ten means."""
    study = load_breast_cancer()
    covariates = standardised(study.data[:, :10])
    names = list(study.feature_names[:10])
    malignant = torch.as_tensor(study.target == 0, dtype=covariates.dtype)
    return Study(
        logistic_model,
        (covariates, malignant),
        {
            "without compactness": {"coefficients": without(names.index("mean compactness"), 10)},
            "without smoothness": {"coefficients": without(names.index("mean smoothness"), 10)},
            "without texture": {"coefficients": without(names.index("mean texture"), 10)},
        },
    )


def logistic_mean_field() -> Study:
    """The same by a guide that ignores the strong correlation of radius, perimeter and area."""
    full_rank = logistic()
    return Study(full_rank.model, full_rank.data, full_rank.reductions, AutoNormal)


def robust_model(covariates: Tensor, progression: Tensor) -> None:
    """Linear regression with Student t errors; the prior of their degrees of freedom is Juarez and Steel's (2010)."""
    patients, size = covariates.shape
    coefficients = pyro.sample("coefficients", dist.Normal(0.0, 0.5).expand([size]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    freedom = pyro.sample("freedom", dist.Gamma(2.0, 0.1))
    with pyro.plate("patients", patients):
        errors = dist.StudentT(freedom, linear_predictor(covariates, coefficients), scale)
        pyro.sample("progression", errors, obs=progression)


def robust() -> Study:
    """Progression of diabetes (Efron, Hastie, Johnstone and Tibshirani 2004): 442 patients, ten covariates."""
    study = load_diabetes(scaled=False)
    names = study.feature_names
    return Study(
        robust_model,
        (standardised(study.data), standardised(study.target)),
        {
            "without age": {"coefficients": without(names.index("age"), 10, 0.5)},
            "without bmi": {"coefficients": without(names.index("bmi"), 10, 0.5)},
            "heavier tails: freedom ~ Gamma(2, 0.5)": {"freedom": dist.Gamma(2.0, 0.5)},
        },
    )


def schools_model(effects: Tensor, errors: Tensor) -> None:
    """A hierarchical normal model, in the parametrisation that keeps scale and effects apart."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        deviation = pyro.sample("deviation", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mean + spread * deviation, errors), obs=effects)


def schools() -> Study:
    """Eight schools: what coaching adds to a test's score, with its standard error (Rubin 1981)."""
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return Study(
        schools_model,
        (effects, errors),
        {
            "schools alike: spread ~ HalfNormal(1)": {"spread": dist.HalfNormal(1.0)},
            "no effect on average: mean = 0": {"mean": dist.Delta(torch.tensor(0.0))},
        },
    )


def seeds_model(seed: Tensor, extract: Tensor, sown: Tensor, germinated: Tensor) -> None:
    """Logistic regression with a random effect for each plate of seeds."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    of_seed = pyro.sample("of seed", dist.Normal(0.0, 1.0))
    of_extract = pyro.sample("of extract", dist.Normal(0.0, 1.0))
    of_both = pyro.sample("of both", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("plates", len(sown)):
        deviation = pyro.sample("deviation", dist.Normal(0.0, 1.0))
        logits = intercept + of_seed * seed + of_extract * extract + of_both * seed * extract + spread * deviation
        pyro.sample("germinated", dist.Binomial(sown, logits=logits), obs=germinated)


def seeds() -> Study:
    """Germination of two seeds with two root extracts on 21 plates (Crowder 1978)."""
    seed = torch.cat([torch.zeros(11), torch.ones(10)])
    extract = torch.cat([torch.zeros(5), torch.ones(6), torch.zeros(5), torch.ones(5)])
    sown = torch.tensor([39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7])
    germinated = torch.tensor([10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3])
    return Study(
        seeds_model,
        (seed, extract, sown.to(seed), germinated.to(seed)),
        {
            "no interaction: of both = 0": {"of both": dist.Delta(torch.tensor(0.0))},
            "extracts alike: of extract = 0": {"of extract": dist.Delta(torch.tensor(0.0))},
            "plates alike: spread ~ HalfNormal(0.1)": {"spread": dist.HalfNormal(0.1)},
        },
    )


def pump_rates(number: int, alike: float = 1.0) -> Tensor:
    """Rates of failure from one Gamma distribution, whose variance, at the same mean, goes with 1 / ``alike``."""
    shape = pyro.sample("shape", dist.Exponential(1.0))
    inverse_scale = pyro.sample("inverse scale", dist.Gamma(0.1, 1.0))
    with pyro.plate("pumps", number):
        return pyro.sample("rate", dist.Gamma(alike * shape, alike * inverse_scale))


def pumps_model(hours: Tensor, failures: Tensor) -> None:
    """Counts of failures, each pump with a Poisson rate of its own."""
    rate = pump_rates(len(hours))
    with pyro.plate("counts", len(hours)):
        pyro.sample("failures", dist.Poisson(rate * hours), obs=failures)


def pumps() -> Study:
    """Failures of ten pumps of a power plant in so many thousand hours (Gaver and O'Muircheartaigh 1987)."""
    hours = torch.tensor([94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5])
    failures = torch.tensor([5.0, 1.0, 5.0, 14.0, 3.0, 19.0, 1.0, 1.0, 4.0, 22.0])
    return Study(
        pumps_model,
        (hours, failures),
        {
            "half the variance of the rates": lambda hours, failures: pump_rates(len(hours), 2.0),
            "a tenth of the variance of the rates": lambda hours, failures: pump_rates(len(hours), 10.0),
        },
    )


def poisson_model(covariates: Tensor, chin_ups: Tensor) -> None:
    """Poisson regression."""
    men, size = covariates.shape
    intercept = pyro.sample("intercept", dist.Normal(0.0, 3.0))
    coefficients = pyro.sample("coefficients", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    with pyro.plate("men", men):
        rate = (intercept + linear_predictor(covariates, coefficients)).exp()
        pyro.sample("chin-ups", dist.Poisson(rate), obs=chin_ups)


def poisson() -> Study:
    """Chin-ups of twenty men by their weight, waist and pulse (A. C. Linnerud, North Carolina State University)."""
    study = load_linnerud()
    covariates = standardised(study.target)
    names = [name.lower() for name in study.target_names]
    return Study(
        poisson_model,
        (covariates, torch.as_tensor(study.data[:, 0], dtype=covariates.dtype)),
        {f"without {name}": {"coefficients": without(names.index(name), 3)} for name in ("pulse", "weight", "waist")},
    )


def mixture_model(times: Tensor) -> None:
    """A mixture of good and, one in twenty, bad measurements of the same quantity."""
    time = pyro.sample("time", dist.Normal(25.0, 20.0))
    error = pyro.sample("error", dist.LogNormal(math.log(5.0), 1.0))
    ratio = pyro.sample("ratio", dist.LogNormal(math.log(5.0), 1.0))
    with pyro.plate("measurements", len(times)):
        good_or_bad = dist.Categorical(torch.tensor([0.95, 0.05]))
        scales = torch.stack([error, error * ratio], -1)
        pyro.sample("times", dist.MixtureSameFamily(good_or_bad, dist.Normal(time.unsqueeze(-1), scales)), obs=times)


def mixture() -> Study:
    """How long light took for 7442 metres, in nanoseconds above 24,800: Newcomb in 1882, in Stigler (1977)."""
    times = """
        28 26 33 24 34 -44 27 16 40 -2 29 22 24 21 25 30 23 29 31 19 24 20
        36 32 36 28 25 21 28 29 37 25 28 26 30 32 36 26 30 22 36 23 27 27
        28 27 31 27 26 33 26 32 32 24 39 28 24 25 32 25 29 27 28 29 16 23
    """
    return Study(
        mixture_model,
        (torch.tensor([float(time) for time in times.split()]),),
        {
            "time = 28": {"time": dist.Delta(torch.tensor(28.0))},
            "today's value: time = 33": {"time": dist.Delta(torch.tensor(33.0))},
            "bad ones twice as bad: ratio ~ LogNormal(log 2, 0.3)": {"ratio": dist.LogNormal(math.log(2.0), 0.3)},
        },
    )


def horseshoe_model(covariates: Tensor, progression: Tensor) -> None:
    """Linear regression with the horseshoe prior (Carvalho, Polson and Scott 2010) on the coefficients."""
    patients, size = covariates.shape
    overall = pyro.sample("overall", dist.HalfCauchy(0.5))
    local = pyro.sample("local", dist.HalfCauchy(1.0).expand([size]).to_event(1))
    direction = pyro.sample("direction", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("patients", patients):
        mean = linear_predictor(covariates, overall.unsqueeze(-1) * local * direction)
        pyro.sample("progression", dist.Normal(mean, scale), obs=progression)


def horseshoe() -> Study:
    """Progression of diabetes again, all ten covariates at once."""
    study = load_diabetes(scaled=False)
    names = study.feature_names
    return Study(
        horseshoe_model,
        (standardised(study.data), standardised(study.target)),
        {
            "without s6": {"direction": without(names.index("s6"), 10)},
            "without bmi": {"direction": without(names.index("bmi"), 10)},
            "more shrinkage: overall ~ HalfNormal(0.05)": {"overall": dist.HalfNormal(0.05)},
        },
    )


STUDIES: dict[str, Callable[[], Study]] = {
    "logistic": logistic,
    "logistic-mean-field": logistic_mean_field,
    "robust": robust,
    "schools": schools,
    "seeds": seeds,
    "pumps": pumps,
    "poisson": poisson,
    "mixture": mixture,
    "horseshoe": horseshoe,
}

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Models of other kinds: simplexes, correlations, shrinkage, a funnel, modes far apart.

What the package answers about the others could have been fitted to them; these were written down before it was put to
them.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.truth.studies import Study, columns, point, standardised


def peas(count: Tensor) -> None:
    share = pyro.sample("share", dist.Dirichlet(count.new_ones(4)))
    pyro.sample("count", dist.Multinomial(int(count.sum()), share), obs=count)


def blood(count: Tensor) -> None:
    """Alleles that meet at random."""
    a, b, o = pyro.sample("allele", dist.Dirichlet(count.new_ones(3))).unbind(-1)
    types = torch.stack([a**2 + 2 * a * o, b**2 + 2 * b * o, 2 * a * b, o**2], -1)
    pyro.sample("count", dist.Multinomial(int(count.sum()), types), obs=count)


def leukaemia(week: Tensor, positive: Tensor) -> None:
    """Times of a gamma distribution, whose mean is regressed on."""
    intercept = pyro.sample("intercept", dist.Normal(3.0, 2.0))
    effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    with pyro.plate("patients", len(week)):
        pyro.sample("week", dist.Gamma(shape, shape / (intercept + effect * positive).exp()), obs=week)


def eyes_apart(peak: Tensor) -> None:
    """A mixture of two normals in any order: two modes, far from each other."""
    first = pyro.sample("first", dist.Normal(0.0, 2.0))
    second = pyro.sample("second", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    parts = dist.Normal(torch.stack([first, second], -1), sigma.unsqueeze(-1))
    with pyro.plate("records", len(peak)):
        pyro.sample("peak", dist.MixtureSameFamily(dist.Categorical(peak.new_ones(2)), parts), obs=peak)


def shrunk(loss: Tensor, x: Tensor) -> None:
    """A regression with the horseshoe of C. M. Carvalho et al. (2010), Biometrika 97, 465-480."""
    intercept = pyro.sample("intercept", dist.Normal(2.0, 1.0))
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    own = pyro.sample("own", dist.HalfCauchy(x.new_ones(3)).to_event(1))
    z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("days", len(loss)):
        pyro.sample("loss", dist.Normal(intercept + x @ (tau * own * z), sigma), obs=loss)


def funnel(effect: Tensor, standard_error: Tensor) -> None:
    """The funnel of R. M. Neal (2003), Annals of Statistics 31, 705-767, with data that say little."""
    log_scale = pyro.sample("log_scale", dist.Normal(0.0, 3.0))
    with pyro.plate("schools", len(effect)):
        theta = pyro.sample("theta", dist.Normal(0.0, (log_scale / 2).exp()))
        pyro.sample("effect", dist.Normal(theta, standard_error), obs=effect)


def correlated(x: Tensor) -> None:
    root = pyro.sample("root", dist.LKJCholesky(3, 1.0))
    with pyro.plate("days", len(x)):
        pyro.sample("x", dist.MultivariateNormal(x.new_zeros(3), scale_tril=root), obs=x)


def covariates() -> Tensor:
    return standardised(torch.stack(columns("stacks", "air", "temperature", "acid"), 1))


HELD_OUT = (
    Study(
        peas,
        lambda: columns("peas", "count"),
        {
            "as 9 to 3 to 3 to 1": {"share": point(torch.tensor([9.0, 3.0, 3.0, 1.0]) / 16, event_dim=1)},
            "narrow shares": {"share": dist.Dirichlet(torch.full((4,), 10.0))},
            "shares alike": {"share": point(torch.full((4,), 0.25), event_dim=1)},
        },
    ),
    Study(
        blood,
        lambda: columns("blood", "count"),
        {
            "narrow shares": {"allele": dist.Dirichlet(torch.full((3,), 10.0))},
            "rare B": {"allele": dist.Dirichlet(torch.tensor([2.0, 1.0, 5.0]))},
            "as 2 to 1 to 7": {"allele": point(torch.tensor([0.2, 0.1, 0.7]), event_dim=1)},
        },
    ),
    Study(
        leukaemia,
        lambda: columns("leukaemia", "week", "positive"),
        {
            "no effect": {"effect": point(0.0)},
            "exponential": {"shape": point(1.0)},
            "narrow effect": {"effect": dist.Normal(0.0, 0.2)},
        },
    ),
    Study(
        eyes_apart,
        lambda: ((columns("eyes", "peak")[0] - 540) / 10,),
        {
            "narrow means": {"first": dist.Normal(0.0, 1.0), "second": dist.Normal(0.0, 1.0)},
            "first mean of 0": {"first": point(0.0)},
            "small errors": {"sigma": dist.HalfNormal(0.2)},
        },
    ),
    Study(
        shrunk,
        lambda: (columns("stacks", "loss")[0] / 10, covariates()),
        {
            "narrow tau": {"tau": dist.HalfCauchy(0.05)},
            "no effect": {"z": point(torch.zeros(3), event_dim=1)},
            "no horseshoe": {"own": point(torch.ones(3), event_dim=1)},
        },
    ),
    Study(
        funnel,
        lambda: columns("schools", "effect", "standard_error"),
        {
            "narrow log scale": {"log_scale": dist.Normal(0.0, 1.0)},
            "scale of 10": {"log_scale": point(4.605170185988092)},
            "schools alike": {"log_scale": point(-10.0)},
        },
    ),
    Study(
        correlated,
        lambda: (covariates(),),
        {
            "narrow correlations": {"root": dist.LKJCholesky(3, 5.0)},
            "no correlation": {"root": point(torch.eye(3), event_dim=2)},
        },
    ),
)

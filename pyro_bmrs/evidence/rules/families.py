# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
The exponential families, each stated as its members' natural parameters and how its log-normaliser grows.

One from outside the package is stated in the same way, and registered in its own file: an example is in
:mod:`~pyro_bmrs.evidence.rules.exponential_family`.

Accuracy, measured against 50-digit arithmetic: 1e-9 in nats (or relative, where larger) for shapes, concentrations and
rates from 1e-3 to 1e6. The change in log evidence is exactly 0 where the posterior is the prior, and where the reduced
prior is the prior. Gradients are those with respect to the logarithm, 0, where a probability or a rate is exactly 0.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as td
from torch.nn.functional import logsigmoid

from pyro_bmrs.evidence.numerics.log_gamma import binet, log1mexp, log_ratio
from pyro_bmrs.evidence.rules.exponential_family import Family, Member, Natural


def _log_gamma_growth(before: Tensor, after: Tensor, step: Tensor, unit: Tensor) -> Tensor:
    """log gamma(after) - log gamma(before) - step log(unit) + step."""
    elementary = step * (after / unit).log() + (before - 0.5) * log_ratio(after, before, step)
    return elementary + binet(after) - binet(before)


def _gamma_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    (a0, b0), (a1, b1), (da, db) = before, after, step
    return _log_gamma_growth(a0, a1, da, b1) - da - a0 * log_ratio(b1, b0, db)


def _dirichlet_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    (a0,), (a1,), (da,) = before, after, step
    n0, n1, dn = a0.sum(-1), a1.sum(-1), da.sum(-1)
    shares = _log_gamma_growth(a0, a1, da, n1.unsqueeze(-1)).sum(-1)
    return shares - _log_gamma_growth(n0, n1, dn, n1)


def _categorical_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    return torch.logsumexp(after[0], -1) - torch.logsumexp(before[0], -1)


def _poisson_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    return before[0].exp() * torch.expm1(step[0])


def _geometric_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    return log1mexp(before[0]) - log1mexp(after[0])


def _laplace_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    return -log_ratio(after[0], before[0], step[0])


def _von_mises_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    k0, k1 = _norm(*before), _norm(*after)
    # |after|^2 - |before|^2 = step · (before + after), from which the large concentrations have cancelled.
    lengthening = (step[0] * (before[0] + after[0]) + step[1] * (before[1] + after[1])) / (k0 + k1)
    growth: Tensor = lengthening + torch.special.i0e(k1).log() - torch.special.i0e(k0).log()
    return growth


def _norm(x: Tensor, y: Tensor) -> Tensor:
    zero = (x == 0) & (y == 0)
    return torch.where(zero, 0.0, torch.hypot(torch.where(zero, 1.0, x), y))


def _continuous_bernoulli_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    return 0.5 * step[0] + _log_sinhc(0.5 * after[0]) - _log_sinhc(0.5 * before[0])


def _log_sinhc(x: Tensor) -> Tensor:
    """log(sinh(x) / x)."""
    x = x.abs()
    small = x < 0.2
    near, far = torch.where(small, x, 0.0).square(), torch.where(small, 1.0, x)
    series = near * (1 / 6 - near * (1 / 180 - near * (1 / 2835 - near * (1 / 37800 - near / 467775))))
    return torch.where(small, series, far + torch.log1p(-torch.exp(-2 * far)) - (2 * far).log())


def _wishart_growth(before: Natural, after: Natural, step: Natural) -> Tensor:
    (a0, p0), (a1, p1), (da, _) = before, after, step
    n = p0.shape[-1]
    halves = 0.5 * torch.arange(n, dtype=p0.dtype, device=p0.device)
    shape0, shape1, dshape = a0.unsqueeze(-1) - halves, a1.unsqueeze(-1) - halves, da.unsqueeze(-1)
    gammas = _log_gamma_growth(shape0, shape1, dshape, torch.ones_like(shape1)).sum(-1) - n * da
    log_det0, log_det1 = _log_det(p0), _log_det(p1)
    return gammas + da * (n * math.log(2) - log_det1) - a0 * (log_det1 - log_det0)


def _log_det(precision: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.cholesky(precision)
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _wishart_valid(natural: Natural) -> Tensor:
    shape, precision = natural
    failed: Tensor = torch.linalg.cholesky_ex(precision).info
    return (shape > 0.5 * (precision.shape[-1] - 1)) & (failed == 0)


def _log(x: Tensor) -> Tensor:
    """The logarithm, with gradient 0 rather than NaN where x is 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).log(), -torch.inf)


def _log1m(x: Tensor) -> Tensor:
    """log(1 - x), with gradient 0 rather than NaN where x is 1."""
    below = x < 1
    return torch.where(below, torch.log1p(-torch.where(below, x, 0.0)), -torch.inf)


def _given_as_probs(distribution: Any) -> bool:
    # Torch caches the other spelling on first use, and clips it: a probability of 0 has no finite logit.
    own = vars(distribution)
    if "probs" in own and "logits" in own:
        return getattr(distribution, "_param", own["probs"]) is own["probs"]
    return "probs" in own


def _log_weights(distribution: Any) -> Natural:
    distribution = getattr(distribution, "_categorical", distribution)
    return (_log(distribution.probs) if _given_as_probs(distribution) else distribution.logits,)


def _log_odds(distribution: Any) -> tuple[Tensor, Tensor]:
    """log(1 - probs) and log(probs)."""
    if _given_as_probs(distribution):
        return _log1m(distribution.probs), _log(distribution.probs)
    return logsigmoid(-distribution.logits), logsigmoid(distribution.logits)


def _coin(distribution: Any) -> Natural:
    return (torch.stack(_log_odds(distribution), -1),)


def _logits(distribution: Any) -> Natural:
    failure, success = _log_odds(distribution)
    return (success - failure,)


def _resultant(distribution: Any) -> Natural:
    return distribution.concentration * distribution.loc.cos(), distribution.concentration * distribution.loc.sin()


def _spelling(natural: Natural) -> dict[str, Any]:
    failure, success = natural[0].unbind(-1)
    logits = success - failure
    return {"logits": logits} if torch.isfinite(logits).all() else {"probs": logits.sigmoid()}


def _beta(distribution: Any, natural: Natural) -> dist.Beta:
    concentration1, concentration0 = natural[0].unbind(-1)
    return dist.Beta(concentration1, concentration0)


def _negative_binomial(distribution: Any, natural: Natural) -> dist.NegativeBinomial:
    coin = (torch.stack([log1mexp(natural[0]), natural[0]], -1),)
    return dist.NegativeBinomial(distribution.total_count, **_spelling(coin))


def _wishart(distribution: Any, natural: Natural) -> dist.Wishart:
    return dist.Wishart(2 * natural[0], precision_matrix=natural[1])


def _positive(natural: Natural) -> Tensor:
    positive = natural[0] > 0
    return positive & (natural[1] > 0) if len(natural) > 1 else positive


def _concentrations(natural: Natural) -> Tensor:
    return (natural[0] > 0).all(-1)


def _below_infinity(natural: Natural) -> Tensor:
    return natural[0] < torch.inf


def _weights_below_infinity(natural: Natural) -> Tensor:
    return (natural[0] < torch.inf).all(-1)


def _negative(natural: Natural) -> Tensor:
    return natural[0] < 0


def _finite(natural: Natural) -> Tensor:
    finite = torch.isfinite(natural[0])
    return finite & torch.isfinite(natural[1]) if len(natural) > 1 else finite


GAMMA = Family(
    {
        td.Exponential: Member(lambda d: (torch.ones_like(d.rate), d.rate), lambda d, s: dist.Exponential(s[1])),
        td.Chi2: Member(lambda d: (d.concentration, d.rate), lambda d, s: dist.Chi2(2 * s[0])),
        td.Gamma: Member(lambda d: (d.concentration, d.rate), lambda d, s: dist.Gamma(s[0], s[1])),
    },
    _gamma_growth,
    _positive,
).register()

BETA = Family(
    {td.Beta: Member(lambda d: (torch.stack([d.concentration1, d.concentration0], -1),), _beta)},
    _dirichlet_growth,
    _concentrations,
).register()

DIRICHLET = Family(
    {td.Dirichlet: Member(lambda d: (d.concentration,), lambda d, s: dist.Dirichlet(s[0]))},
    _dirichlet_growth,
    _concentrations,
).register()

POISSON = Family(
    {td.Poisson: Member(lambda d: (_log(d.rate),), lambda d, s: dist.Poisson(s[0].exp()))},
    _poisson_growth,
    _below_infinity,
    has_zeros=True,
).register()

GEOMETRIC = Family(
    {td.Geometric: Member(lambda d: (_log_odds(d)[0],), lambda d, s: dist.Geometric(-torch.expm1(s[0])))},
    _geometric_growth,
    _negative,
    has_zeros=True,
).register()

NEGATIVE_BINOMIAL = Family(
    {td.NegativeBinomial: Member(lambda d: (_log_odds(d)[1],), _negative_binomial)},
    _geometric_growth,
    _negative,
    in_common=("total_count",),
    has_zeros=True,
).register()

BERNOULLI = Family(
    {td.Bernoulli: Member(_coin, lambda d, s: dist.Bernoulli(**_spelling(s)))},
    _categorical_growth,
    _weights_below_infinity,
    has_zeros=True,
).register()

BINOMIAL = Family(
    {td.Binomial: Member(_coin, lambda d, s: dist.Binomial(d.total_count, **_spelling(s)))},
    _categorical_growth,
    _weights_below_infinity,
    in_common=("total_count",),
    has_zeros=True,
).register()

CATEGORICAL = Family(
    {td.Categorical: Member(_log_weights, lambda d, s: dist.Categorical(logits=s[0]))},
    _categorical_growth,
    _weights_below_infinity,
    in_common=("_num_events",),
    has_zeros=True,
).register()

ONE_HOT_CATEGORICAL = Family(
    {td.OneHotCategorical: Member(_log_weights, lambda d, s: dist.OneHotCategorical(logits=s[0]))},
    _categorical_growth,
    _weights_below_infinity,
    has_zeros=True,
).register()

MULTINOMIAL = Family(
    {td.Multinomial: Member(_log_weights, lambda d, s: dist.Multinomial(d.total_count, logits=s[0]))},
    _categorical_growth,
    _weights_below_infinity,
    in_common=("total_count",),
    has_zeros=True,
).register()

CONTINUOUS_BERNOULLI = Family(
    {td.ContinuousBernoulli: Member(_logits, lambda d, s: dist.ContinuousBernoulli(logits=s[0]))},
    _continuous_bernoulli_growth,
    _finite,
).register()

LAPLACE = Family(
    {td.Laplace: Member(lambda d: (d.scale.reciprocal(),), lambda d, s: dist.Laplace(d.loc, s[0].reciprocal()))},
    _laplace_growth,
    _positive,
    in_common=("loc",),
).register()

VON_MISES = Family(
    {td.VonMises: Member(_resultant, lambda d, s: dist.VonMises(torch.atan2(s[1], s[0]), _norm(*s)))},
    _von_mises_growth,
    _finite,
).register()

WISHART = Family(
    {td.Wishart: Member(lambda d: (0.5 * d.df, d.precision_matrix), _wishart)},
    _wishart_growth,
    _wishart_valid,
).register()

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""log E_q[r/p] by numerical integration or summation in mpmath, from densities written here and not from torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import mpmath as mp
import pyro.distributions as dist
import torch
from mpmath import mpf
from torch import Tensor
from torch.distributions import Distribution

Parameters = tuple[float | list[float], ...]
LogDensity = Callable[[mpf], mpf]


@dataclass
class Case:
    """
    A family of distributions of one variable.

    :param build: the distribution, from one tensor for each parameter.
    :param log_density: from the parameters, the log density as a function of x.
    :param draw: random parameters of posterior, prior and reduced prior.
    :param breaks: from the parameters of the three, where to part the integral; or the values to sum over.
    """

    build: Callable[..., Distribution]
    log_density: Callable[..., LogDensity]
    draw: Callable[[Random], tuple[Parameters, Parameters, Parameters]]
    breaks: Callable[[Parameters, Parameters, Parameters], Sequence]
    discrete: bool = False
    tolerance_of_torch: float = 1e-9

    def triples(self, count: int, seed: int = 0) -> list[tuple[Parameters, Parameters, Parameters]]:
        random = Random(seed)
        return [self.draw(random) for _ in range(count)]

    def log_mean_ratio(self, q: Parameters, p: Parameters, r: Parameters) -> float:
        def density(x: mpf) -> mpf:
            return mp.exp(log_q(x) + log_r(x) - log_p(x))

        with mp.workdps(17):
            log_q, log_p, log_r = (self.log_density(*(mpf(x) for x in parameters)) for parameters in (q, p, r))
            breaks = self.breaks(q, p, r)
            total = mp.fsum(map(density, breaks)) if self.discrete else mp.quad(density, breaks)
            return float(mp.log(total))


def tensors(parameters: Sequence[Parameters], requires_grad: bool = False) -> list[Tensor]:
    """One float64 tensor for each parameter, batched over the sequence."""
    return [
        torch.tensor(values, dtype=torch.float64).requires_grad_(requires_grad)
        for values in zip(*parameters, strict=True)
    ]


def _gamma(a: mpf, b: mpf) -> LogDensity:
    constant = a * mp.log(b) - mp.loggamma(a)
    return lambda x: constant + (a - 1) * mp.log(x) - b * x


def _inverse_gamma(a: mpf, b: mpf) -> LogDensity:
    constant = a * mp.log(b) - mp.loggamma(a)
    return lambda x: constant - (a + 1) * mp.log(x) - b / x


def _draw_gamma(random: Random) -> tuple[Parameters, Parameters, Parameters]:
    p = random.uniform(0.5, 4), random.uniform(0.3, 4)
    q = p[0] + random.uniform(0, 8), p[1] + random.uniform(0, 8)
    return q, p, (random.uniform(0.5, 6), random.uniform(0.3, 6))


def _gamma_breaks(q: Parameters, p: Parameters, r: Parameters) -> Sequence:
    centre = (q[0] + r[0] - p[0]) / (q[1] + r[1] - p[1])
    return [0, centre, 5 * centre, mp.inf]


def _draw_exponential(random: Random) -> tuple[Parameters, Parameters, Parameters]:
    p = random.uniform(0.1, 4)
    return (p + random.uniform(0, 5),), (p,), (random.uniform(0.1, 5),)


def _draw_chi2(random: Random) -> tuple[Parameters, Parameters, Parameters]:
    p = random.uniform(1, 6)
    return (p + random.uniform(0, 9),), (p,), (random.uniform(1, 9),)


def _beta(a: mpf, b: mpf) -> LogDensity:
    constant = -mp.log(mp.beta(a, b))
    return lambda x: constant + (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x)


def _draw_beta(random: Random) -> tuple[Parameters, Parameters, Parameters]:
    p = random.uniform(0.6, 3), random.uniform(0.6, 3)
    q = p[0] + random.uniform(0.2, 9), p[1] + random.uniform(0.2, 9)
    return q, p, (random.uniform(0.8, 6), random.uniform(0.8, 6))


def _poisson(rate: mpf) -> LogDensity:
    log_rate = mp.log(rate)
    return lambda k: k * log_rate - rate - mp.loggamma(k + 1)


def _three(draw: Callable[[Random], float]) -> Callable[[Random], tuple[Parameters, Parameters, Parameters]]:
    return lambda random: ((draw(random),), (draw(random),), (draw(random),))


def _geometric(probs: mpf) -> LogDensity:
    success, failure = mp.log(probs), mp.log1p(-probs)
    return lambda k: success + k * failure


def _draw_geometric(random: Random) -> tuple[Parameters, Parameters, Parameters]:
    p = random.uniform(0.1, 0.5)
    return (p + random.uniform(0, 0.4),), (p,), (random.uniform(0.3, 0.9),)


def _negative_binomial(probs: mpf) -> LogDensity:
    success, failure = mp.log(probs), mp.log1p(-probs)
    return lambda k: mp.log(math.comb(k + 3, k)) + 4 * failure + k * success


def _draw_negative_binomial(random: Random) -> tuple[Parameters, Parameters, Parameters]:
    p = random.uniform(0.5, 0.9)
    return (random.uniform(0.1, p),), (p,), (random.uniform(0.05, 0.7),)


def _bernoulli(probs: mpf) -> LogDensity:
    return lambda k: mp.log(probs) if k else mp.log1p(-probs)


def _bernoulli_of_logits(logits: mpf) -> LogDensity:
    return lambda k: -mp.log1p(mp.exp(-logits if k else logits))


def _binomial(probs: mpf) -> LogDensity:
    return lambda k: mp.log(math.comb(7, k)) + k * mp.log(probs) + (7 - k) * mp.log1p(-probs)


def _continuous_bernoulli(probs: mpf) -> LogDensity:
    centred = 1 - 2 * probs
    constant = mp.log(2 * mp.atanh(centred) / centred)
    success, failure = mp.log(probs), mp.log1p(-probs)
    return lambda x: constant + x * success + (1 - x) * failure


def _laplace(scale: mpf) -> LogDensity:
    constant = -mp.log(2 * scale)
    return lambda x: constant - abs(x - mpf(0.3)) / scale


def _draw_laplace(random: Random) -> tuple[Parameters, Parameters, Parameters]:
    p = random.uniform(0.5, 3)
    return (p * random.uniform(0.05, 1),), (p,), (random.uniform(0.1, 3),)


def _von_mises(loc: mpf, concentration: mpf) -> LogDensity:
    constant = -mp.log(2 * mp.pi * mp.besseli(0, concentration))
    return lambda x: constant + concentration * mp.cos(x - loc)


def _draw_von_mises(random: Random) -> tuple[Parameters, Parameters, Parameters]:
    q, p, r = ((random.uniform(-3, 3), random.uniform(0.1, 8)) for _ in range(3))
    return q, p, r


CASES = {
    "Gamma": Case(dist.Gamma, _gamma, _draw_gamma, _gamma_breaks),
    "InverseGamma": Case(
        dist.InverseGamma,
        _inverse_gamma,
        _draw_gamma,
        lambda q, p, r: [0, *(1 / x for x in reversed(_gamma_breaks(q, p, r)[1:-1])), mp.inf],
    ),
    "Exponential": Case(
        dist.Exponential,
        lambda rate: _gamma(mpf(1), rate),
        _draw_exponential,
        lambda q, p, r: _gamma_breaks((1, q[0]), (1, p[0]), (1, r[0])),
    ),
    "Chi2": Case(
        dist.Chi2,
        lambda df: _gamma(df / 2, mpf(0.5)),
        _draw_chi2,
        lambda q, p, r: _gamma_breaks((q[0] / 2, 0.5), (p[0] / 2, 0.5), (r[0] / 2, 0.5)),
    ),
    "Beta": Case(dist.Beta, _beta, _draw_beta, lambda q, p, r: [0, 0.5, 1]),
    "Poisson": Case(dist.Poisson, _poisson, _three(lambda u: u.uniform(0.5, 9)), lambda *_: range(150), discrete=True),
    "Geometric": Case(dist.Geometric, _geometric, _draw_geometric, lambda *_: range(250), discrete=True),
    "NegativeBinomial": Case(
        lambda probs: dist.NegativeBinomial(4, probs),
        _negative_binomial,
        _draw_negative_binomial,
        lambda *_: range(250),
        discrete=True,
    ),
    "Bernoulli": Case(
        dist.Bernoulli, _bernoulli, _three(lambda u: u.uniform(0.02, 0.98)), lambda *_: [0, 1], discrete=True
    ),
    "Bernoulli of logits": Case(
        lambda logits: dist.Bernoulli(logits=logits),
        _bernoulli_of_logits,
        _three(lambda u: u.uniform(-40, 40)),
        lambda *_: [0, 1],
        discrete=True,
    ),
    "Binomial": Case(
        lambda probs: dist.Binomial(7, probs),
        _binomial,
        _three(lambda u: u.uniform(0.02, 0.98)),
        lambda *_: range(8),
        discrete=True,
    ),
    "ContinuousBernoulli": Case(
        dist.ContinuousBernoulli,
        _continuous_bernoulli,
        _three(lambda u: u.uniform(0.02, 0.98)),
        lambda *_: [0, 1],
        tolerance_of_torch=1e-7,  # torch expands its log-normaliser to second order about 0.5
    ),
    "Laplace": Case(
        lambda scale: dist.Laplace(torch.tensor(0.3, dtype=scale.dtype), scale),
        _laplace,
        _draw_laplace,
        lambda *_: [-mp.inf, 0.3, mp.inf],
    ),
    "VonMises": Case(
        dist.VonMises,
        _von_mises,
        _draw_von_mises,
        lambda *_: mp.linspace(-mp.pi, mp.pi, 5),
        tolerance_of_torch=1e-6,  # torch approximates its log-normaliser by polynomials
    ),
}

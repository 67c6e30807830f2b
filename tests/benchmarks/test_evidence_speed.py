# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The evidence of a million noise variables, beside the textbook formula with ``torch.erf`` on the same tensors.

The textbook formula is what one would write down from the paper (D. Wright, C. Igel and R. Selvan (2024), *BMRS:
Bayesian model reduction for structured pruning*, https://arxiv.org/abs/2406.01345). It subtracts numbers of the size of
(location / scale)² and distribution functions that are both near 1, so that it loses up to all digits.
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.evidence import log_evidence_change

NUM_UNITS = 10**6
ROUNDS = 21
LOW, HIGH = -20.0, 0.0  # ends of the log of a noise variable
MOST_MEMORY = 16  # times that of the input


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def textbook_normal(loc: Tensor, scale: Tensor, reduced_loc: float, reduced_scale: float) -> Tensor:
    """Delta F of BMRS_N: a truncated log-normal reduced prior on the interval of the log-uniform prior."""
    variance, reduced_variance = scale**2, double(reduced_scale) ** 2
    product_variance = 1 / (1 / variance + 1 / reduced_variance)
    product_loc = product_variance * (loc / variance + reduced_loc / reduced_variance)
    product_scale = torch.sqrt(product_variance)
    mass = normal_cdf((HIGH - loc) / scale) - normal_cdf((LOW - loc) / scale)
    product_mass = normal_cdf((HIGH - product_loc) / product_scale) - normal_cdf((LOW - product_loc) / product_scale)
    reduced = double(reduced_loc), double(reduced_scale)
    reduced_mass = normal_cdf((HIGH - reduced[0]) / reduced[1]) - normal_cdf((LOW - reduced[0]) / reduced[1])
    return (
        0.5 * torch.log(product_variance / (2 * math.pi * variance * reduced_variance))
        - 0.5 * (loc**2 / variance + reduced_loc**2 / reduced_variance - product_loc**2 / product_variance)
        + math.log(HIGH - LOW)
        + torch.log(product_mass)
        - torch.log(mass)
        - torch.log(reduced_mass)
    )


def textbook_uniform(loc: Tensor, scale: Tensor, reduced_low: float, reduced_high: float) -> Tensor:
    """Delta F of BMRS_U: a log-uniform reduced prior on a part of the interval of the log-uniform prior."""
    mass = normal_cdf((HIGH - loc) / scale) - normal_cdf((LOW - loc) / scale)
    product_mass = normal_cdf((reduced_high - loc) / scale) - normal_cdf((reduced_low - loc) / scale)
    width = math.log((HIGH - LOW) / (reduced_high - reduced_low))
    return torch.log(product_mass) - torch.log(mass) + width


def ends(low: float, high: float) -> tuple[Tensor, Tensor]:
    return double(low).exp(), double(high).exp()


PRIOR = LogUniform(*ends(LOW, HIGH))
LOG_2 = math.log(2)
# The reduced prior, and the textbook formula for it.
CRITERIA = {
    "BMRS_N": (TruncatedLogNormal(double(LOW), double(1e-6), *ends(LOW, HIGH)), textbook_normal, (LOW, 1e-6)),
    "BMRS_U8": (LogUniform(*ends(LOW, -8 * LOG_2)), textbook_uniform, (LOW, -8 * LOG_2)),
    "BMRS_U4": (LogUniform(*ends(LOW, -4 * LOG_2)), textbook_uniform, (LOW, -4 * LOG_2)),
}


class Contest(NamedTuple):
    """Two ways to the same million numbers; the textbook's is the difference of terms as large as ``largest``."""

    ours: Callable[[], Tensor]
    textbook: Callable[[], Tensor]
    loc: Tensor
    scale: Tensor
    largest: float


@pytest.fixture(params=CRITERIA)
def contest(request: pytest.FixtureRequest) -> Contest:
    reduced_prior, textbook, reduced = CRITERIA[request.param]
    generator = torch.Generator().manual_seed(0)
    loc = -20 + 21 * torch.rand(NUM_UNITS, generator=generator, dtype=torch.float64)
    scale = 10 ** (3 * torch.rand(NUM_UNITS, generator=generator, dtype=torch.float64) - 2)
    posterior = TruncatedLogNormal(loc, scale, *ends(LOW, HIGH))
    return Contest(
        lambda: log_evidence_change(posterior, PRIOR, reduced_prior),
        lambda: textbook(loc, scale, *reduced),
        loc,
        scale,
        0.5 * (reduced[0] / reduced[1]) ** 2 if textbook is textbook_normal else 1.0,
    )


def test_agrees_with_the_textbook_where_that_has_digits(contest: Contest) -> None:
    value, expected = contest.ours(), contest.textbook()
    assert value.isfinite().all()
    # Where the posterior is broad and within the interval, and the reduced prior keeps much of it. What BMRS_N's
    # textbook formula then loses is in the differences of squares, of a size of (20 / 1e-6)² / 2 = 2e14: up to a tenth
    # of a nat and more.
    benign = (contest.scale > 3) & (contest.loc < -8) & (contest.loc > -19)
    rounding = torch.finfo(torch.float64).eps * contest.largest
    assert (value - expected)[benign].abs().max() < max(4 * rounding, 1e-12)


def test_takes_no_more_time_than_the_textbook(contest: Contest, benchmark) -> None:
    seconds: dict[Callable[[], Tensor], list[float]] = {contest.ours: [], contest.textbook: []}
    for _ in range(ROUNDS):  # in turns, so that both see the same machine
        for function, times in seconds.items():
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
    ours, textbook = (statistics.median(times) for times in seconds.values())
    benchmark.extra_info.update(ours=ours, textbook=textbook, ratio=ours / textbook)
    benchmark.pedantic(contest.ours, rounds=5)
    assert ours <= textbook


class PeakMemory(TorchDispatchMode):
    """The most bytes held at once by tensors that were made meanwhile, counted operation by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.tensors: dict[int, int] = {}  # how many tensors there are of each storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        known = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (_key(tensor) in self.tensors or _key(tensor) not in known):
                self._hold(_key(tensor), tensor)
        return result

    def _hold(self, key: int, tensor: Tensor) -> None:
        size = tensor.untyped_storage().nbytes()
        if not self.tensors.get(key):
            self.held += size
            self.peak = max(self.peak, self.held)
        self.tensors[key] = self.tensors.get(key, 0) + 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.tensors[key] -= 1
        if not self.tensors[key]:
            self.held -= size
            del self.tensors[key]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def test_peak_memory_counts_what_is_held_at_once() -> None:
    x = torch.zeros(1000, dtype=torch.float64)
    with PeakMemory() as memory:
        y = x + 1
        z = (y * 2)[:10]
        del y
        torch.stack([z, z])
    assert memory.peak == 16_000
    assert memory.held == 8_000


def test_takes_bounded_memory(contest: Contest) -> None:
    size = contest.loc.nbytes + contest.scale.nbytes
    with PeakMemory() as memory:
        contest.ours()
    assert contest.loc.nbytes <= memory.peak <= MOST_MEMORY * size
    assert memory.peak <= 3 * size

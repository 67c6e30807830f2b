# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import mpmath as mp
import pytest
import torch
from torch import Tensor

from pyro_bmrs.distributions.numerics.normal_hazard import cumulative_hazard, hazard, hazard_rise

STARTS = (0.0, 0.5, 3.0, 20.0, 30.0, 1e4)
LENGTHS = (1e-9, 1e-3, 0.2, 2.0, 12.0)


def exact_hazard(z: mp.mpf) -> mp.mpf:
    return mp.sqrt(2 / mp.pi) * mp.exp(-z * z / 2) / mp.erfc(z / mp.sqrt(2))


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.tensor(STARTS, dtype=dtype), torch.tensor(LENGTHS, dtype=dtype).unsqueeze(-1)


def exactly(function, dtype: torch.dtype) -> Tensor:
    start, length = grid(dtype)
    with mp.workdps(60):
        rows = [[float(function(mp.mpf(a.item()), mp.mpf(t.item()))) for a in start] for t in length]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-14), (torch.float32, 1e-5)])
def test_hazards_rises_and_integrals_keep_their_relative_accuracy(dtype: torch.dtype, tolerance: float) -> None:
    start, length = grid(dtype)
    with mp.workdps(60):
        exact = torch.tensor([float(exact_hazard(mp.mpf(a))) for a in STARTS], dtype=torch.float64)
    torch.testing.assert_close(hazard(start).double(), exact, rtol=tolerance, atol=0)

    integral, there = cumulative_hazard(start, hazard(start), length)
    exact = exactly(lambda a, t: -mp.log(mp.erfc((a + t) / mp.sqrt(2)) / mp.erfc(a / mp.sqrt(2))), dtype)
    torch.testing.assert_close(integral.double(), exact, rtol=500 * tolerance, atol=0)
    torch.testing.assert_close(there, hazard(start + length), rtol=0, atol=0)

    rise = hazard_rise(start, hazard(start), length, there)
    exact = exactly(lambda a, t: exact_hazard(a + t) - exact_hazard(a), dtype)
    torch.testing.assert_close(rise.double(), exact, rtol=5000 * tolerance, atol=0)


def test_beyond_an_infinite_distance_there_is_nothing() -> None:
    start = torch.tensor([0.0, 5.0])
    integral, there = cumulative_hazard(start, hazard(start), torch.tensor([torch.inf]))
    assert (integral == torch.inf).all() and (there == torch.inf).all()

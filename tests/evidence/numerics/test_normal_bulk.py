# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Many elements at once are as each by itself."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.distributions import TruncatedNormal
from pyro_bmrs.evidence import log_evidence_change

FAMILY = {
    "Normal": dist.Normal,
    "HalfNormal": dist.HalfNormal,
    "TruncatedNormal": TruncatedNormal,
    "Uniform": dist.Uniform,
}


def double(value: float | list[float]) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def many(count: int, dtype: torch.dtype) -> TruncatedNormal:
    """Locations within, at and up to 40 widths outside an interval; scales over 12 orders of magnitude."""
    generator = torch.Generator().manual_seed(4)
    loc = -20 * torch.rand(count, generator=generator, dtype=dtype)
    loc[::5] = 1600 * torch.rand(len(loc[::5]), generator=generator, dtype=dtype) - 800
    loc[::7] = -20
    scale = 10 ** (12 * torch.rand(count, generator=generator, dtype=dtype) - 6)
    return TruncatedNormal(loc, scale, -20.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "r",
    [
        TruncatedNormal(-20.0, 1e-6, -20.0, 0.0),
        TruncatedNormal(-25.0, 2.0, -20.0, 0.0),
        TruncatedNormal(-3.0, 0.1, -20.0, -2.0),
        dist.Uniform(-20.0, -5.5),
        dist.Uniform(-16.0, -15.9),
    ],
)
def test_many_elements_equal_few(r: Distribution, dtype: torch.dtype) -> None:
    # Many are taken in blocks and by closed forms, few by the general formula; both have all digits of ΔF.
    q, p = many(150_000, dtype), dist.Uniform(torch.tensor(-20.0, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    r = FAMILY[type(r).__name__](*(getattr(r, name).to(dtype) for name in r.arg_constraints))
    together = log_evidence_change(q, p, r)
    apart = [
        log_evidence_change(TruncatedNormal(loc, scale, -20.0, 0.0), p, r)
        for loc, scale in zip(q.loc.split(40_000), q.scale.split(40_000))
    ]
    assert together.isfinite().all()
    tolerance = 300 * torch.finfo(dtype).eps
    torch.testing.assert_close(together, torch.cat(apart), rtol=tolerance, atol=tolerance)


def test_many_elements_of_every_shape() -> None:
    q, p = many(150_000, torch.float64), dist.Uniform(double(-20.0), double(0.0))
    r = TruncatedNormal(q.loc.flip(0).clamp(-20, 0), double(0.5), -20.0, 0.0)
    value = log_evidence_change(q, p, r)
    few = [TruncatedNormal(d.loc[-9:], d.scale[-9:], -20.0, 0.0) for d in (q, r)]
    torch.testing.assert_close(value[-9:], log_evidence_change(few[0], p, few[1]))
    column = TruncatedNormal(q.loc[:300, None], q.scale[:300, None], -20.0, 0.0)
    row = TruncatedNormal(r.loc[:500], r.scale[:500], -20.0, 0.0)
    for prior in (p, TruncatedNormal(double(-10.0), double(3.0), -20.0, 0.0)):
        grid = log_evidence_change(column, prior, row)
        assert grid.shape == (300, 500)
        one = TruncatedNormal(q.loc[7], q.scale[7], -20.0, 0.0)
        torch.testing.assert_close(grid[7], log_evidence_change(one, prior, row))
    assert (log_evidence_change(q, q, r) == 0).all()

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import mpmath as mp
import torch

from pyro_bmrs.evidence.numerics.log_gamma import binet, log1mexp, log_ratio


def test_binet_is_what_stirling_leaves_of_log_gamma() -> None:
    x = torch.logspace(-3, 12, 400, dtype=torch.float64)
    with mp.workdps(50):
        exact = [
            mp.loggamma(a) - (a - mp.mpf(0.5)) * mp.log(a) + a - mp.log(2 * mp.pi) / 2 for a in map(mp.mpf, x.tolist())
        ]
    torch.testing.assert_close(
        binet(x), torch.tensor([float(e) for e in exact], dtype=torch.float64), rtol=1e-13, atol=2e-14
    )


def test_binet_has_a_gradient_on_both_sides_of_its_seam() -> None:
    x = torch.tensor([0.3, 5.0, 19.9, 20.1, 1e3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(binet(x).sum(), x)
    with mp.workdps(30):
        exact = [float(mp.digamma(a) - mp.log(a) + 1 / (2 * mp.mpf(a))) for a in x.tolist()]
    torch.testing.assert_close(slope, torch.tensor(exact, dtype=torch.float64), rtol=1e-10, atol=1e-15)


def test_log_ratio_keeps_small_changes_and_large_ones() -> None:
    old = torch.tensor([1.0, 1e6, 1.0, 1e-3], dtype=torch.float64)
    change = torch.tensor([1e-17, 1e-8, 1e9, -9.99e-4], dtype=torch.float64)
    with mp.workdps(40):
        exact = [float(mp.log1p(mp.mpf(d) / mp.mpf(o))) for d, o in zip(change.tolist(), old.tolist())]
    actual = log_ratio(old + change, old, change)
    torch.testing.assert_close(actual, torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=0)


def test_log1mexp_at_both_ends() -> None:
    x = -torch.logspace(-12, 2.8, 200, dtype=torch.float64)
    with mp.workdps(400):
        exact = [float(mp.log1p(-mp.exp(mp.mpf(a)))) for a in x.tolist()]
    torch.testing.assert_close(log1mexp(x), torch.tensor(exact, dtype=torch.float64), rtol=1e-14, atol=0)
    assert log1mexp(torch.tensor(-torch.inf)) == 0

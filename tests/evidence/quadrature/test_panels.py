# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_bmrs.evidence.quadrature.panels import nodes, resolve

TOLERANCE = 1e-10


def edges(*batch: int) -> Tensor:
    ends = torch.linspace(-8, 8, 9, dtype=torch.float64)
    return ends.reshape((-1,) + (1,) * len(batch)).expand((9, *batch))


def noiseless(log_density):
    return lambda t: (log_density(t), torch.zeros_like(t))


def test_nodes_integrate_polynomials_up_to_degree_31_exactly() -> None:
    left, right = (torch.tensor(x, dtype=torch.float64) for x in ([-1.0, 0.5], [2.0, 0.75]))
    t, weights = nodes(left, right)
    for degree in (0, 1, 17, 31):
        exact = (right ** (degree + 1) - left ** (degree + 1)) / (degree + 1)
        torch.testing.assert_close((weights * t**degree).sum(0), exact, rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [3.0, 1.0, 1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("loc", [0.0, 0.123456, 2.0, 2.0000001])
def test_a_peak_of_any_width_is_found_from_its_flanks(loc: float, scale: float) -> None:
    density = noiseless(lambda t: -(((t - loc) / scale) ** 2) / 2)
    panels = resolve(density, edges(), TOLERANCE)
    exact = math.log(scale) + 0.5 * math.log(2 * math.pi)
    exact += math.log((math.erf((8 - loc) / scale / 2**0.5) + math.erf((8 + loc) / scale / 2**0.5)) / 2)
    assert panels.total.item() == pytest.approx(exact, abs=1e-7 if scale < 1e-8 else 1e-9)
    assert len(panels.left) < 200


def test_each_element_of_a_batch_has_panels_of_its_own() -> None:
    loc = torch.tensor([[-3.0, 0.0], [0.1, 5.0]], dtype=torch.float64)
    scale = torch.tensor([[1e-3, 0.5], [1e-6, 1e-2]], dtype=torch.float64)
    panels = resolve(noiseless(lambda t: -(((t - loc) / scale) ** 2) / 2), edges(2, 2), TOLERANCE)
    torch.testing.assert_close(panels.total, scale.log() + 0.5 * math.log(2 * math.pi), rtol=0, atol=1e-9)
    ordered = panels.sort()
    torch.testing.assert_close(ordered.left[1:], ordered.right[:-1], rtol=0, atol=0)
    assert (ordered.left[0] == -8).all()
    assert (ordered.right[-1] == 8).all()
    assert (panels.error < 1e-8).all()


def test_logarithms_of_any_size_are_alike() -> None:
    for offset in (-1e5, 0.0, 1e5):
        panels = resolve(noiseless(lambda t: offset - t**2 / 2), edges(), TOLERANCE)  # noqa: B023
        assert panels.total.item() == pytest.approx(offset + 0.5 * math.log(2 * math.pi), abs=1e-9)


def test_the_error_bound_covers_the_error() -> None:
    exact = math.log(2 * (1 - math.exp(-8.0)))
    for offset in (0.0, 0.3, 1.7):
        panels = resolve(noiseless(lambda t: -(t - offset).abs()), edges(), 1e-3)  # noqa: B023
        truth = math.log(2 - math.exp(offset - 8.0) - math.exp(-8.0 - offset)) if offset else exact
        assert abs(panels.total.item() - truth) <= max(panels.error.item(), 1e-14)


def test_noise_is_not_chased_but_told() -> None:
    noise = 1e-6

    def rough(t: Tensor) -> tuple[Tensor, Tensor]:
        return -(t**2) / 2 + noise * torch.sin(1e9 * t), torch.full_like(t, noise)

    panels = resolve(rough, edges(), TOLERANCE)
    assert len(panels.left) < 200
    assert panels.error.item() == pytest.approx(noise, rel=0.5)
    assert panels.total.item() == pytest.approx(0.5 * math.log(2 * math.pi), abs=noise)


def test_what_cannot_be_evaluated_is_marked_and_parted() -> None:
    panels = resolve(noiseless(lambda t: torch.where(t > 1.2345, torch.nan, -(t**2) / 2)), edges(), TOLERANCE).sort()
    first = int(panels.broken.int().argmax())
    assert panels.right[first - 1].item() == pytest.approx(1.2345, abs=1e-6)
    assert panels.broken[first:].all()
    assert not panels.broken[: first - 1].any()


def test_an_empty_density_is_minus_infinity() -> None:
    panels = resolve(noiseless(lambda t: torch.full_like(t, -torch.inf)), edges(2), TOLERANCE)
    assert (panels.total == -torch.inf).all()

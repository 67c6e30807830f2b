# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What becomes of the hidden units of experts that are multiplied by 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, noise_sites

INPUTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double()


class Experts(nn.Module):
    """Two experts, all of whose outputs are added; their number of hidden units may be a number in the code."""

    def __init__(self, is_constant: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up_proj, self.down_proj = nn.Parameter(torch.randn(2, 6, 5)), nn.Parameter(torch.randn(2, 5, 6))
        self.is_constant, self.is_transposed = is_constant, False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bd,ehd->ebh", x, self.up_proj).relu()
        return torch.einsum("ebh,edh->bd", hidden.reshape(2, -1, 6) if self.is_constant else hidden, self.down_proj)


def reports(experts: Experts, gates: list[float], **options: object) -> tuple[Experts, list[str], set[str]]:
    """Compact experts, what became of each unit, and why."""
    net = attach_noise(nn.Sequential(experts, nn.Linear(5, 2)).double())
    (name,) = noise_sites(net)
    small = compact_gated(net, {name: torch.tensor(gates)}, noise_sites(net), INPUTS, **options)
    units = compaction_report(small).units
    return small[0], units["fate"].tolist(), set(units["reason"]) - {""}


def test_they_go_from_all_experts_and_the_others_are_multiplied() -> None:
    whole = Experts().double()
    small, fates, _ = reports(Experts(), [0.5, 0, 1, 0, 0, 1])
    assert fates == ["kept", "removed", "kept", "removed", "removed", "kept"]
    assert small.up_proj.shape == (2, 3, 5) and type(small) is Experts
    whole.down_proj.data *= torch.tensor([0.5, 0, 1, 0, 0, 1])
    torch.testing.assert_close(small(INPUTS), whole(INPUTS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("is_constant", "gates", "options", "left", "reason"),
    [
        (
            False,
            [0.0] * 6,
            {"importance": {"0": torch.arange(6.0)}},
            1,
            "a layer that would vanish keeps its best",
        ),
        (False, [1.0, 0, 0, 0, 0, 0], {"round_to": 4}, 4, "with them its size is a multiple of 4"),
        (True, [1.0, 1, 1, 0, 0, 0], {}, 6, "does not run without them"),
    ],
)
def test_those_that_stay(is_constant: bool, gates: list[float], options: dict, left: int, reason: str) -> None:
    small, fates, reasons = reports(Experts(is_constant), gates, **options)
    assert small.down_proj.shape == (2, 5, left) and fates.count("masked") == left - sum(map(bool, gates))
    assert len(reasons) == 1 and reason in reasons.pop()

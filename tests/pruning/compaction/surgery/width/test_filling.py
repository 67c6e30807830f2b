# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels of a stream that come back, for a size at which layers are fast, change nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, load_compact, noise_sites, save_compact

WIDTH = 24


class Stream(nn.Module):
    """A residual stream of 24 channels between norms, whose width its code may know as a number."""

    def __init__(self, norm: type[nn.Module], is_constant: bool = False) -> None:
        super().__init__()
        self.is_constant = is_constant
        self.embed, self.norm = nn.Linear(5, WIDTH), norm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.last_norm, self.head = norm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x.reshape(-1, WIDTH) if self.is_constant else x
        return self.head(self.last_norm(x + self.down(self.up(self.norm(x)).relu())))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_embd": WIDTH, "n_layer": 1, "n_head": 4, "n_positions": 10}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    return transformers.GPT2LMHeadModel(config).eval()


def gated(net: nn.Module, inputs: object, left: int) -> tuple[dict[str, Tensor], str]:
    """Gates of a network's one width, with as many units left."""
    attach_noise(net, kinds=["width"], example_inputs=inputs)
    (name,) = noise_sites(net)
    gates = torch.where(torch.arange(WIDTH) % WIDTH < left, torch.linspace(0.5, 1.0, WIDTH), 0.0)
    return {name: gates[torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))]}, name


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("round_to", [8, 10, 100])
def test_what_comes_back_says_nothing(norm: type[nn.Module], round_to: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = Stream(norm).double(), 3 + torch.randn(4, 5).double()
    whole = copy.deepcopy(net)
    gates, name = gated(net, inputs, 9)
    small, exact = (compact_gated(net, gates, noise_sites(net), inputs, round_to=how) for how in (round_to, None))
    size = {8: 16, 10: 10, 100: WIDTH}[round_to]
    assert (exact.up.in_features, small.up.in_features, small.down.out_features) == (9, size, size)
    assert type(small.norm) is norm and small.last_norm.weight.shape == (size,)
    torch.testing.assert_close(small(inputs), exact(inputs), rtol=1e-12, atol=1e-12)
    masked = compaction_report(small).masked
    assert len(masked) == size - 9 and masked["reason"].str.contains(f"a multiple of {round_to}").all()
    # Those first of which the evidence says least against it.
    evidence = {name: torch.arange(float(WIDTH))}
    best = compact_gated(net, gates, noise_sites(net), inputs, round_to=round_to, delta_evidence=evidence)
    back = compaction_report(best).masked.index.get_level_values("unit").tolist()
    assert back == (gates[name] == 0).nonzero().flatten().tolist()[: size - 9]
    save_compact(small, tmp_path / "small")
    assert torch.equal(load_compact(tmp_path / "small", whole)(inputs), small(inputs))


def test_a_weight_that_is_shared() -> None:
    net, inputs = gpt2(), {"input_ids": torch.arange(10).reshape(2, 5)}
    gates, _ = gated(net, inputs, 9)
    small, exact = (compact_gated(net, gates, noise_sites(net), inputs, round_to=how) for how in (8, None))
    assert small.lm_head.weight is small.transformer.wte.weight and small.lm_head.in_features == 16
    torch.testing.assert_close(small(**inputs).logits, exact(**inputs).logits)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_width_that_has_to_stay_has_its_norms_as_they_were(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, inputs = Stream(norm, is_constant=True), torch.randn(4, 5)
    gates, _ = gated(net, inputs, 9)
    masked = compact_gated(net, gates, noise_sites(net), inputs)
    assert type(masked.norm) is norm and masked.norm.weight.shape == (WIDTH,)
    assert set(compaction_report(masked).units["fate"]) == {"kept", "masked"}


def test_norms_over_places_are_not_filled() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, WIDTH, 3), nn.GroupNorm(4, WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, 5, 3), nn.Flatten()
    net, inputs = nn.Sequential(*layers, nn.Linear(80, 2)), torch.randn(2, 3, 8, 8)
    gates, _ = gated(net, inputs, 9)
    small = compact_gated(net, gates, noise_sites(net), inputs, round_to=8)
    assert small[0].out_channels == 9 and compaction_report(small).masked.empty

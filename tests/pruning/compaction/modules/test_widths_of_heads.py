# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attentions whose code takes the width of all heads for their input's lose heads and channels like others."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, load_compact, noise_sites, save_compact
from pyro_bmrs.pruning.compaction.modules.widths_of_heads import (
    WidthsOfHeads,
    forget_widths_of_heads,
    know_widths_of_heads,
    width_of_heads,
)

WIDTH, HEADS = 12, 3


class Tokens(nn.Module):
    """Attention as vision transformers have it, its bias added by hand, with fewer tokens for keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = HEADS, nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("k_bias", torch.zeros(WIDTH), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        B, N, C = x.shape
        x = x.reshape(B, C, N).reshape(B, N, C)
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        qkv = qkv.reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(*qkv.unbind(0), mask) * scale
        return self.proj(heads.transpose(1, 2).reshape(B, N, C))


class ClassToken(nn.Module):
    """Attention of one token alone, which asks for the size by a call."""

    def __init__(self) -> None:
        super().__init__()
        # A layer with a name that others have for the number of heads.
        self.heads, self.h = HEADS, nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        size = width // self.heads
        query = self.q(x[:, 0]).view(batch, 1, self.heads, size).transpose(1, 2)
        key, value = (part(x).view((batch, length, self.heads, size)).transpose(1, 2) for part in (self.k, self.v))
        heads = F.scaled_dot_product_attention(query, key, value)
        return self.h(heads.transpose(1, 2).reshape((batch, 1, width)))


class Network(nn.Module):
    """Attentions behind norms and beside shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.tokens = nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH), Tokens()
        self.norm2, self.token, self.norm3, self.head = nn.LayerNorm(WIDTH), ClassToken(), nn.LayerNorm(WIDTH), None
        self.last = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens(self.norm1(x), scale=0.5)
        return self.last(self.norm3(x[:, :1] + self.token(self.norm2(x))))


def halved(kinds: list[str]) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    net, inputs = Network().double().eval(), torch.randn(2, 4, 5, dtype=torch.float64)
    attach_noise(net, kinds=kinds, example_inputs=inputs)
    gates = {name: torch.linspace(0.5, 1.0, site.noise.num_units) for name, site in noise_sites(net).items()}
    for gate in gates.values():
        gate[::2] = 0.0
    return net, gates, inputs


@pytest.mark.parametrize("kinds", [["heads"], ["width"], ["heads", "width"]])
def test_heads_and_channels_go(kinds: list[str], tmp_path: Path) -> None:
    net, gates, inputs = halved(kinds)
    assert {site.kind for site in noise_sites(net).values()} == set(kinds)
    small = compact_gated(net, gates, noise_sites(net), inputs)
    report = compaction_report(small)
    assert set(report.units["fate"]) == {"kept", "removed"}
    assert type(small.tokens) is Tokens and small.tokens.k_bias.shape == small.tokens.q_bias.shape
    assert small.tokens.num_heads == (1 if "heads" in kinds else 3)
    # As is what it learns by.
    torch.export.export(small, (inputs,))
    assert torch.equal(torch.compile(small, backend="eager")(inputs), small(inputs))
    small.train()(inputs).sum().backward()
    save_compact(small, tmp_path / "small")
    loaded = load_compact(tmp_path / "small", Network().double())
    assert torch.equal(loaded(inputs), small(inputs))
    assert torch.equal(copy.deepcopy(loaded)(inputs), small(inputs))


def test_without_heads_that_are_gone_the_code_is_the_classes_own() -> None:
    net, gates, inputs = halved(["heads"])
    whole = compact_gated(net, {name: gate.clamp(0.5) for name, gate in gates.items()}, noise_sites(net), inputs)
    assert width_of_heads(whole.tokens) is None and "forward" not in vars(whole.token)


class Around(Tokens):
    """A forward around another."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Open(Tokens):
    """A size that is left open."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.qkv(x).unflatten(-1, (3, self.num_heads, -1))[..., 0, :, :].flatten(-2))


@pytest.mark.parametrize("module", [nn.Linear(WIDTH, WIDTH), Around(), Open(), nn.MultiheadAttention(WIDTH, HEADS)])
def test_what_is_left_alone(module: nn.Module) -> None:
    assert WidthsOfHeads.of(module) is None
    know_widths_of_heads(module)
    assert "forward" not in vars(module)


def test_an_input_of_another_width_than_the_projections_is_not_looked_at() -> None:
    other = ClassToken()
    other.k = nn.Linear(7, WIDTH)
    assert WidthsOfHeads.of(other) is None
    other = ClassToken()
    know_widths_of_heads(other)
    assert width_of_heads(other) == WIDTH // HEADS
    forget_widths_of_heads(other)
    assert width_of_heads(other) is None


def test_a_file_of_another_attention_is_refused(tmp_path: Path) -> None:
    net, gates, inputs = halved(["heads"])
    save_compact(compact_gated(net, gates, noise_sites(net), inputs), tmp_path / "small")
    other = Network().double()
    other.tokens = Open()
    with pytest.raises(ReductionError, match="does not fit"):
        load_compact(tmp_path / "small", other)

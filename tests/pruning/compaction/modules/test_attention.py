# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attention computes what torch's own does, and can lose heads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.pruning import Attention, attach_noise, compaction_report, load_compact, noise_sites, save_compact
from pyro_bmrs.pruning.compaction.compact import compact_gated
from tests.pruning.compaction.gated import difference, with_noise_at

BATCH, QUERIES, KEYS, WIDTH, HEADS = 2, 5, 7, 12, 3


def masks(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    blocked = torch.rand(QUERIES, KEYS) < 0.3
    blocked[:, 0] = False
    padding = torch.arange(KEYS) >= torch.tensor([[KEYS], [4]])
    by_head = torch.randn(BATCH * HEADS, QUERIES, KEYS).double()
    return {
        "none": {},
        "boolean": {"attn_mask": blocked},
        "float": {"attn_mask": torch.randn(QUERIES, KEYS).double()},
        "by head": {"attn_mask": by_head},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": blocked, "key_padding_mask": padding},
    }[kind]


@pytest.mark.parametrize("kind", ["none", "boolean", "float", "by head", "padding", "both"])
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"bias": False}, {"kdim": 8, "vdim": 10}, {"batch_first": True}, {"add_bias_kv": True}),
        *({"add_zero_attn": True}, {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True}),
    ],
)
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}])
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_is_torchs(kind: str, options: dict[str, Any], weights: dict[str, bool]) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, **options).double().eval()
    shapes = [(QUERIES, WIDTH), (KEYS, options.get("kdim", WIDTH)), (KEYS, options.get("vdim", WIDTH))]
    inputs = [torch.randn(BATCH, *shape).double() for shape in shapes]
    inputs = inputs if attention.batch_first else [values.transpose(0, 1) for values in inputs]
    # Both read a mask of numbers and one of truth values as what they are.
    expected, expected_weights = attention(*inputs, **masks(kind), **weights)
    for plain in (Attention.of(attention), Attention.of(attention).packed()):
        output, output_weights = plain(*inputs, **masks(kind), **weights)
        assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)
        assert (output_weights is None) == (expected_weights is None)
        if expected_weights is not None:
            assert torch.allclose(output_weights, expected_weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"bias": False}, {"kdim": 8, "vdim": 10}, {"batch_first": True, "dropout": 0.1}),
        {"add_bias_kv": True, "add_zero_attn": True},
    ],
)
def test_becomes_torchs_again(options: dict[str, Any]) -> None:
    attention = nn.MultiheadAttention(WIDTH, HEADS, **options).double().eval()
    plain = Attention.of(attention).packed()
    assert plain.is_packed == ("kdim" not in options)
    # The same number of each, whichever comes first.
    tokens = torch.randn(QUERIES, QUERIES, WIDTH).double()
    others = [torch.randn(QUERIES, QUERIES, options.get(name, WIDTH)).double() for name in ("kdim", "vdim")]
    for inputs in ((tokens, *others), (tokens, others[0], others[0]), (tokens, tokens, tokens)):
        if "kdim" not in options or inputs[1] is others[0] is not inputs[2]:
            assert torch.allclose(plain(*inputs)[0], attention(*inputs)[0], rtol=1e-12, atol=1e-12)
    again = plain.as_torchs()
    assert again is not None and again.state_dict().keys() == attention.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in attention.state_dict().items())
    assert repr(again) == repr(attention) and again.dropout == attention.dropout and not again.training
    unpacked = plain.unpacked()
    assert not unpacked.is_packed
    assert unpacked.state_dict().keys() == Attention.of(attention).state_dict().keys()


def test_is_not_torchs_with_fewer_heads() -> None:
    plain = Attention.of(nn.MultiheadAttention(WIDTH, HEADS))
    plain.keep_heads(torch.tensor([True, True, False]))
    assert plain.as_torchs() is None
    assert Attention(WIDTH, 2, 4).as_torchs() is None


def test_one_that_loses_no_head_stays_torchs(tmp_path: Path) -> None:
    """For its evaluation there are kernels that do the whole of it, or of a layer of a transformer."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True)
    original = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 2)).eval()
    net, tokens = attach_noise(copy.deepcopy(original)), torch.randn(BATCH, QUERIES, WIDTH)
    sites = noise_sites(net)
    gates = {name: torch.ones(site.noise.num_units) for name, site in sites.items()}
    gates["0.layers.0.self_attn"][0] = 0.0
    gates["0.layers.0.linear1"][2:] = gates["0.layers.1.linear1"][2:] = 0.0
    small = compact_gated(net, gates, sites, tokens)
    lost, whole = (small[0].layers[place].self_attn for place in (0, 1))
    assert type(lost) is Attention and lost.is_packed and type(whole) is nn.MultiheadAttention
    with torch.profiler.profile() as profile, torch.no_grad():
        small(tokens)
    assert "aten::_transformer_encoder_layer_fwd" in {event.key for event in profile.key_averages()}
    # Its layers are those of the rows of the report, once as they were and once as they are.
    layers = compaction_report(small).layers
    assert "0.layers.0.self_attn.in_proj" in layers.index and (layers["macs_after"] <= layers["macs_before"]).all()
    save_compact(small, tmp_path / "net")
    assert torch.equal(load_compact(tmp_path / "net", original)(tokens), small(tokens))
    # And once more, with the attention that has lost heads before.
    again = attach_noise(copy.deepcopy(small))
    gates = {name: torch.ones(site.noise.num_units) for name, site in noise_sites(again).items()}
    gates["0.layers.1.self_attn"][0] = 0.0
    smaller = compact_gated(again, gates, noise_sites(again), tokens)
    assert difference(with_noise_at(again, gates, tokens), smaller(tokens)) <= 1e-5
    save_compact(smaller, tmp_path / "net")
    assert torch.equal(load_compact(tmp_path / "net", original)(tokens), smaller(tokens))


def test_one_example_alone() -> None:
    attention = nn.MultiheadAttention(WIDTH, HEADS).eval()
    tokens = torch.randn(QUERIES, WIDTH)
    for expected, output in zip(attention(tokens, tokens, tokens), Attention.of(attention)(tokens, tokens, tokens)):
        assert torch.allclose(output, expected, atol=1e-6)


class Decoder(nn.Module):
    """Attention to another sequence, with a mask for each head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(WIDTH, HEADS, **options), nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        return self.last(self.attention(tokens, memory, memory, attn_mask=mask, need_weights=False)[0])


@pytest.mark.parametrize("kind", ["boolean", "float", "by head"])
@pytest.mark.parametrize("gates", [[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]])
def test_loses_heads(kind: str, gates: list[float]) -> None:
    net = attach_noise(Decoder(batch_first=True).double().eval())
    inputs = (torch.randn(BATCH, QUERIES, WIDTH).double(), torch.randn(BATCH, KEYS, WIDTH).double())
    inputs = (*inputs, masks(kind)["attn_mask"])
    values = {"attention": torch.tensor(gates)}
    small = compact_gated(net, values, noise_sites(net), inputs)
    assert small.attention.num_heads == sum(gate > 0 for gate in gates)
    assert small.attention.in_proj.out_features == 3 * small.attention.num_heads * WIDTH // HEADS
    assert difference(with_noise_at(net, values, *inputs), small(*inputs)) <= 1e-12


@pytest.mark.parametrize("kind", ["boolean", "by head"])
@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_loses_heads_with_keys_of_its_own(kind: str, options: dict[str, bool], tmp_path: Path) -> None:
    decoder = Decoder(batch_first=True, **options).double().eval()
    net = attach_noise(copy.deepcopy(decoder))
    inputs = (torch.randn(BATCH, QUERIES, WIDTH).double(), torch.randn(BATCH, KEYS, WIDTH).double())
    inputs = (*inputs, masks(kind)["attn_mask"])
    values = {"attention": torch.tensor([0.7, 0.0, 0.2])}
    small = compact_gated(net, values, noise_sites(net), inputs)
    assert small.attention.num_heads == 2 and small.attention.out_proj.in_features == 2 * WIDTH // HEADS
    assert difference(with_noise_at(net, values, *inputs), small(*inputs)) <= 1e-12
    save_compact(small, tmp_path / "net.pt")
    assert torch.equal(load_compact(tmp_path / "net.pt", decoder)(*inputs), small(*inputs))


def test_keeps_its_best_head() -> None:
    net = attach_noise(Decoder(batch_first=True).eval())
    inputs = (torch.randn(BATCH, QUERIES, WIDTH), torch.randn(BATCH, KEYS, WIDTH), torch.zeros(QUERIES, KEYS))
    importance = {"attention": torch.tensor([0.1, 0.3, 0.2])}
    small = compact_gated(net, {"attention": torch.zeros(HEADS)}, noise_sites(net), inputs, importance=importance)
    assert small.attention.mask_heads == (1,)
    assert compaction_report(small).masked.index.tolist() == [("attention", 1)]
    assert torch.allclose(small(*inputs), net.last(net.attention.out_proj.bias.expand(BATCH, QUERIES, -1)), atol=1e-6)


class Written(nn.Module):
    """Attention written as projections, which holds the width of its heads together, or takes it from its input."""

    def __init__(self, holds_width: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.all_head_size = WIDTH if holds_width else None
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys = self._heads(self.query(tokens)), self._heads(self.key(tokens))
        values = self._heads(self.value(tokens))
        heads = (queries @ keys.transpose(-1, -2) / self.head_dim**0.5).softmax(-1) @ values
        width = tokens.shape[2] if self.all_head_size is None else self.all_head_size
        return self.out(heads.transpose(1, 2).reshape(*tokens.shape[:2], width))


@pytest.mark.parametrize("holds_width", [True, False])
def test_attention_written_as_projections(holds_width: bool) -> None:
    net = nn.Sequential(Written(holds_width), nn.Linear(WIDTH, 2)).double().eval()
    attach_noise(net, kinds=("heads",))
    tokens = torch.randn(BATCH, QUERIES, WIDTH).double()
    (name,) = noise_sites(net)
    gates = {name: torch.tensor([0.5, 0.0, 1.0])}
    small = compact_gated(net, gates, noise_sites(net), tokens)
    assert difference(with_noise_at(net, gates, tokens), small(tokens)) <= 1e-12
    assert small[0].query.out_features == (8 if holds_width else WIDTH)
    # A width that stands in the code keeps its heads, as columns of 0.
    assert compaction_report(small).sites.loc[name, "masked"] == (0 if holds_width else 1)

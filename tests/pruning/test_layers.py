# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The table of layer kinds, against what the layers compute; and a kind that is registered from outside the package."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    BMRS_N,
    AutoTruncatedLogNormal,
    LayerKind,
    WeightNorm,
    attach_noise,
    compact,
    compact_gated,
    compaction_report,
    detach_noise,
    load_compact,
    noise_sites,
    prune,
    register_layer,
    save_compact,
    unit_costs,
)
from pyro_bmrs.pruning.layers import (
    absorb,
    can_absorb,
    can_lose_channels,
    channel_dim,
    layer_units,
    num_channels,
    take_out,
    weight_rows,
)


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it: the weight is of shape (in, out), and the leading dimensions are flattened."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.size()[:-1], self.nf)


class FrozenNorm(nn.Module):
    """A norm whose statistics and weights are buffers, as detectors have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("scale", torch.rand(width) + 0.5)
        self.register_buffer("shift", torch.randn(width))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale.reshape(-1, 1, 1) + self.shift.reshape(-1, 1, 1)


register_layer(LayerKind((Conv1D,), inputs="nx", outputs="nf", is_transposed=True))
register_layer(LayerKind((FrozenNorm,), inputs="width", outputs="width", sides=("through",), has_units=False))


def pruned(net: nn.Module, sites: dict[str, list[int]], **chosen: Any) -> tuple[nn.Module, AutoTruncatedLogNormal]:
    """A network with noise whose units went by the decision of a criterion, all but the given ones."""
    net = attach_noise(net.double().eval(), **chosen)
    guide = AutoTruncatedLogNormal(net)
    with torch.no_grad():
        for name, (loc, log_scale) in {name: guide.noise_parameters[:, part] for name, part in parts(guide)}.items():
            loc.copy_(-torch.rand(len(loc)) / 10)
            loc[sites.get(name, [])], log_scale[sites.get(name, [])] = -20.0, 1.0
    prune(net, guide, BMRS_N())
    return net, guide


def parts(guide: AutoTruncatedLogNormal) -> list[tuple[str, slice]]:
    ends = torch.tensor([0, *(noise.num_units for noise in guide.noise.values())]).cumsum(0).tolist()
    return [(name, slice(*ends[i : i + 2])) for i, name in enumerate(guide.noise)]


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
def test_a_registered_layer_is_scored_pruned_and_taken_out(shape: tuple[int, ...], tmp_path: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Conv1D(6, 3), nn.Tanh(), Conv1D(5, 6), nn.ReLU(), Conv1D(2, 5))
    fresh, x = deepcopy(net).double(), torch.randn(shape).double()
    net, guide = pruned(net, {"0": [1, 4], "2": [0]})
    assert {name: site.noise.num_units for name, site in noise_sites(net).items()} == {"0": 6, "2": 5}
    norms = net[0].weight.detach().norm(dim=0)
    norms[[1, 4]] = 0
    torch.testing.assert_close(WeightNorm().scores(net, guide)["0"], norms)
    assert unit_costs(net) == {"0": 3, "2": 6}
    assert unit_costs(net, x) == {"0": 3 * x[0].numel() / 3, "2": 6 * x[0].numel() / 3}
    smaller = compact(net, guide, x)
    with torch.no_grad():
        expected = poutine.condition(net, data=guide.mean_noise())(x)
        torch.testing.assert_close(smaller(x), expected, rtol=1e-12, atol=1e-12)
    assert [type(module) for module in smaller] == [Conv1D, nn.Tanh, Conv1D, nn.ReLU, Conv1D]  # all else is folded
    assert [(layer.nx, layer.nf) for layer in smaller if isinstance(layer, Conv1D)] == [(3, 4), (4, 4), (4, 2)]
    assert [tuple(smaller[i].weight.shape) for i in (0, 2, 4)] == [(3, 4), (4, 4), (4, 2)]
    assert compaction_report(smaller).units["fate"].value_counts().to_dict() == {"kept": 8, "removed": 3}
    save_compact(smaller, tmp_path / "net.pt")
    with torch.no_grad():
        torch.testing.assert_close(load_compact(tmp_path / "net.pt", fresh)(x), smaller(x), rtol=1e-14, atol=1e-14)


def test_the_bias_of_a_registered_layer_takes_over_what_a_pruned_unit_leaves() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3).double()
    net, guide = pruned(nn.Sequential(Conv1D(6, 3), nn.Identity(), nn.Sigmoid(), Conv1D(2, 6)), {"0": [1, 4]})
    gates, site = {"0": guide.mean_noise()["0"]}, noise_sites(net)["0"]
    assert site.place == "2"
    # Behind the sigmoid a unit that goes leaves 0, before it one half.
    before = {"0": replace(site, place="0")}
    with torch.no_grad():
        plain = detach_noise(deepcopy(net))
        expected = plain[3](torch.sigmoid(plain[0](x) * gates["0"]))
        smaller = compact_gated(net, gates, before, x)
        torch.testing.assert_close(smaller(x), expected, rtol=1e-12, atol=1e-12)
    assert [tuple(parameter.shape) for name, parameter in smaller.named_parameters()] == [(3, 4), (4,), (4, 2), (2,)]


def test_a_registered_norm_loses_the_channels_of_the_layer_before() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), FrozenNorm(6), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.Flatten(), nn.Linear(12, 2)
    )
    x = torch.randn(2, 2, 6, 6).double()
    net, guide = pruned(net, {"0": [0, 5], "3": []})
    smaller = compact(net, guide, x)
    with torch.no_grad():
        expected = poutine.condition(net, data=guide.mean_noise())(x)
        torch.testing.assert_close(smaller(x), expected, rtol=1e-12, atol=1e-12)
    norm = next(module for module in smaller.modules() if isinstance(module, FrozenNorm))
    assert norm.width == len(norm.scale) == len(norm.shift) == 4


class Attention(nn.Module):
    """Attention with the projections of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.c_attn, self.c_proj = 3, Conv1D(36, 12), Conv1D(12, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.c_attn(tokens).unflatten(-1, (3, self.num_heads, 4)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return self.c_proj(heads.transpose(1, 2).flatten(2))


def test_heads_of_an_attention_of_registered_layers_are_taken_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 12).double()
    net, guide = pruned(nn.Sequential(Attention(), nn.Linear(12, 2)), {"0": [1]})
    smaller = compact(net, guide, x)
    with torch.no_grad():
        expected = poutine.condition(net, data=guide.mean_noise())(x)
        torch.testing.assert_close(smaller(x), expected, rtol=1e-12, atol=1e-12)
    projection = next(module for name, module in smaller.named_modules() if name.endswith("c_attn"))
    assert projection.weight.shape == (12, 24) and smaller[0].num_heads == 2


@pytest.mark.parametrize(
    ("chosen", "site", "gone", "hidden", "rows"),
    [({"modules": "*.c_fc"}, "0.h.0.mlp.c_fc", [3, 5, 47], 45, 36), ({"kinds": ["heads"]}, "0.h.0.attn", [1], 48, 24)],
    ids=["units", "heads"],
)
def test_gpt_2_itself(chosen: Any, site: str, gone: list[int], hidden: int, rows: int) -> None:
    """The released code of GPT-2, which was not written for any of this."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 12, "n_layer": 1, "n_head": 3}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=False)
    kind = transformers.pytorch_utils.Conv1D
    register_layer(LayerKind((kind,), inputs="nx", outputs="nf", is_transposed=True))
    torch.manual_seed(0)
    net = nn.Sequential(transformers.GPT2Model(config), LastState(), nn.Linear(12, 2))
    net, guide = pruned(net, {site: gone}, **chosen)
    tokens = torch.randint(20, (2, 6))
    smaller = compact(net, guide, tokens)
    with torch.no_grad():
        expected = poutine.condition(net, data=guide.mean_noise())(tokens)
        torch.testing.assert_close(smaller(tokens), expected, rtol=1e-12, atol=1e-12)
    block = smaller[0].h[0]
    assert block.mlp.c_fc.weight.shape == (12, hidden) and block.mlp.c_proj.weight.shape == (hidden, 12)
    assert block.attn.c_attn.weight.shape == (12, rows) and block.attn.c_proj.weight.shape == (rows // 3, 12)


class LastState(nn.Module):
    """The average of what a transformer returns of each token."""

    def forward(self, output: Any) -> Tensor:
        return output.last_hidden_state.mean(1)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (2, 6)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3), (2, 6, 5, 5)),
    "in groups": (lambda: nn.Conv1d(6, 4, 3, groups=2), (2, 6, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 2), (2, 6, 3, 3)),
    "transposed in groups": (lambda: nn.ConvTranspose1d(6, 4, 2, groups=2), (2, 6, 3)),
    "registered": (lambda: Conv1D(4, 6), (2, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_are_the_weights_of_one_output_each(name: str) -> None:
    """The gradient of an output in the weights is nonzero in its row, and nowhere else."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    assert layer_units(layer) == num_channels(layer, "out") == 4 and num_channels(layer, "in") == 6
    output = layer(x).movedim(channel_dim(layer, x), 0)
    assert len(output) == 4
    for channel in range(4):
        (gradient,) = torch.autograd.grad(output[channel].sum(), layer.weight, retain_graph=True)
        layer.weight.grad = None
        probe = build()
        probe.weight = nn.Parameter(gradient)
        touched = (weight_rows(probe) != 0).flatten(1).any(1)
        assert touched.tolist() == [row == channel for row in range(4)]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_without_some_channels_is_the_same_function_of_the_others(name: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build().double(), torch.randn(shape).double()
    dim = channel_dim(layer, x)
    assert can_lose_channels(layer, "in") and can_lose_channels(layer, "out")
    inputs, outputs = [1, 4], [0, 2]  # at the same place of both groups
    silent = x.index_fill(dim, torch.tensor(inputs), 0)
    expected = layer(silent).index_select(dim, torch.tensor([1, 3]))
    take_out(layer, "in", inputs)
    take_out(layer, "out", outputs)
    assert layer_units(layer) == 2 and num_channels(layer, "in") == 4
    kept = x.index_select(dim, torch.tensor([0, 2, 3, 5]))
    if getattr(layer, "groups", 1) == 1:
        torch.testing.assert_close(layer(kept), expected)
    assert layer(kept).shape == expected.shape


def test_a_norm_loses_its_statistics_too() -> None:
    norm = nn.BatchNorm1d(3).eval()
    norm.running_mean.copy_(torch.arange(3.0))
    take_out(norm, "through", [1])
    assert norm.num_features == 2 and norm.running_mean.tolist() == [0, 2] and len(norm.weight) == 2


@pytest.mark.parametrize(
    "reader",
    [nn.Linear(3, 2, bias=False), nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), nn.Conv1d(6, 4, 3, groups=2)],
)
def test_a_bias_takes_over_a_constant(reader: Any) -> None:
    reader = deepcopy(reader).double()
    width = num_channels(reader, "in")
    assert width is not None and can_absorb(reader)
    x = torch.randn(2, width, *[5] * (reader.weight.dim() - 2)).double()
    dim, constants = channel_dim(reader, x), torch.full((width,), torch.nan).double()
    constants[1] = 0.7
    channel = torch.tensor([1])
    expected = reader(x.index_fill(dim, channel, 0.7))
    absorb(reader, [1], constants)
    torch.testing.assert_close(reader(x.index_fill(dim, channel, 0)), expected)


@pytest.mark.parametrize(
    ("reader", "can"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), False),
        (nn.Conv2d(2, 2, 3), True),
        (nn.Conv2d(2, 2, 3, padding="same"), False),
        (nn.Conv2d(2, 2, 3, padding="valid"), True),
        (nn.ConvTranspose2d(2, 2, 3), False),
        (nn.ReLU(), False),
    ],
)
def test_where_padding_makes_borders_nothing_is_taken_over(reader: nn.Module, can: bool) -> None:
    assert can_absorb(reader) is can


def test_rows_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ReductionError, match="classes of modules"):
        LayerKind((int,))  # type: ignore[arg-type]
    with pytest.raises(ReductionError, match="not 'across'"):
        LayerKind((nn.Module,), "a", "b", sides=("across",))
    with pytest.raises(ReductionError, match="counts its channels"):
        LayerKind((nn.Module,), inputs="a")
    with pytest.raises(ReductionError, match="no channels can be taken out of a ReLU"):
        take_out(nn.ReLU(), "out", [0])

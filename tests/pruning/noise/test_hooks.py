# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_bmrs.pruning import AutoTruncatedLogNormal, Saliency, attach_noise, detach_noise, noise_sites
from pyro_bmrs.pruning.noise.hooks import shares_noise
from tests.pruning.noise.places import (
    LeNet,
    ResNet,
    convolutions,
    places,
)
from tests.pruning.recurrent import Loop, Tagger


def at(net, values, x):
    """What the network puts out at values of the noise, 1 where none is given."""
    full = {name: torch.ones(site.noise.num_units) for name, site in noise_sites(net).items()}
    return poutine.condition(net, data=full | values)(x)


@pytest.mark.parametrize("build", [convolutions, LeNet, ResNet])
@pytest.mark.parametrize("kept", [True, False])
def test_noise_on_the_weight_of_a_convolution_is_that_on_the_images(build, kept):
    net = attach_noise(build().double())
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    values = {}
    for name, site in noise_sites(net).items():
        values[name] = torch.rand(site.noise.num_units, dtype=torch.float64).requires_grad_()
        site.noise.kept[0] = kept
    weights = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    by_weight = poutine.condition(net.eval(), data=values)(x)
    # A draw for each example acts on the images.
    by_image = poutine.condition(net, data={name: value.expand(3, -1) for name, value in values.items()})(x)
    torch.testing.assert_close(by_weight, by_image, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(output.square().sum(), [*values.values(), *net.parameters()])
        for output in (by_weight, by_image)
    ]
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, weights[name])


class Tokens(nn.Module):
    """An attention and a hidden layer whose noise acts on what linear layers are given."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = 2, 3
        self.qkv, self.proj = nn.Linear(6, 18), nn.Linear(6, 6)
        self.up, self.down, self.last = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 2)

    def forward(self, tokens):
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 3)).movedim(-3, 0).transpose(-3, -2)
        tokens = tokens + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))
        return self.last(tokens + self.down(F.gelu(self.up(tokens))))


def normed():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)),
        *(nn.Flatten(1, 2), nn.BatchNorm1d(20), nn.Linear(4, 2)),
    )


@pytest.mark.parametrize(
    ("build", "shape", "num_sites"), [(Tokens, (20, 7, 6), 2), (Tokens, (1, 2, 6), 2), (normed, (9, 1, 8, 8), 2)]
)
@pytest.mark.parametrize("is_training", [True, False])
def test_noise_on_weights_of_linear_layers_and_norms_is_that_on_values(build, shape, num_sites, is_training):
    torch.manual_seed(0)
    net = build().double()
    attach_noise(net, modules=["0", "2"] if build is normed else None).train(is_training)
    x = torch.randn(shape, dtype=torch.float64)
    sites = noise_sites(net)
    assert len(sites) == num_sites
    values = {name: torch.rand(site.noise.num_units).double().requires_grad_() for name, site in sites.items()}
    for site in sites.values():
        site.noise.kept[1] = False
    outputs, states = [], []
    for given in (values, {name: value.expand(len(x), -1) for name, value in values.items()}):
        twin = copy.deepcopy(net)
        outputs.append(poutine.condition(twin, data=given)(x))
        gradients = torch.autograd.grad(outputs[-1].square().sum(), [*values.values(), *twin.parameters()])
        states.append([*gradients, *(buffer for buffer in twin.buffers() if buffer.is_floating_point())])
        assert not any({"weight", "bias"} & vars(module).keys() for module in twin.modules())
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("build", "shape"), [(Tokens, (50, 9, 6)), (normed, (50, 1, 8, 8))])
def test_nothing_of_the_size_of_a_batch_is_kept_for_noise(build, shape):
    torch.manual_seed(0)
    net, x, sizes = build(), torch.randn(shape), []
    noisy = attach_noise(copy.deepcopy(net), modules=["0", "2"] if build is normed else None)
    values = {name: torch.rand(site.noise.num_units, requires_grad=True) for name, site in noise_sites(noisy).items()}
    for kept_by in (net, poutine.condition(noisy, data=values)):
        kept = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = kept_by(x)
        assert output.requires_grad
        sizes.append(sum(storage.nbytes() for storage in kept.values()))
    weights = sum(4 * parameter.numel() for parameter in net.parameters())
    assert sizes[1] <= sizes[0] + 3 * weights < 1.1 * sizes[0]


def test_two_noises_at_one_norm_both_act():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2)

        def forward(self, x):
            return self.last((x + self.norm(self.conv(x))).mean((2, 3)))

    net, x = attach_noise(Branch().eval(), kinds=["units", "block"]), torch.randn(3, 2, 4, 4)
    assert {site.kind for site in noise_sites(net).values()} == {"units", "block"}
    assert len({site.place for site in noise_sites(net).values()}) == 1
    with torch.no_grad():
        one, half = (
            at(net, {name: torch.full((site.noise.num_units,), value) for name, site in noise_sites(net).items()}, x)
            for value in (1.0, 0.5)
        )
        branch, without = net.last.weight @ x.mean((2, 3)).T, net.last.bias
    shortcut = branch.T + without
    torch.testing.assert_close(half - shortcut, 0.25 * (one - shortcut))


def test_torchs_transformers_do_not_pass_noise_on_linear_layers_by():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    net = attach_noise(nn.Sequential(layer, nn.Linear(6, 2)).eval(), kinds=["units"])
    x, (name,) = torch.randn(3, 20, 6), noise_sites(net)
    with torch.no_grad():
        assert not torch.allclose(at(net, {name: torch.full((8,), 0.2)}, x), at(net, {}, x))


def test_a_convolution_that_fails_keeps_no_noise_on_its_weight():
    net = attach_noise(convolutions())
    AutoTruncatedLogNormal(net)
    with pytest.raises(RuntimeError):
        net[3](torch.ones(2, 5, 4, 4))
    assert "weight" not in vars(net[3]) and net[3].weight is net[3]._parameters["weight"]


def test_noise_on_a_convolution_whose_weight_is_computed():
    net, x, values = convolutions(), torch.randn(2, 1, 28, 28), {"0": torch.rand(3)}
    before = at(attach_noise(net), values, x)
    nn.utils.parametrizations.weight_norm(net[3])
    torch.testing.assert_close(at(net, values, x), before)
    assert places(detach_noise(net))["0"] == ("2", "output", 3, 1)
    torch.testing.assert_close(at(net, values, x), before)


def test_head_noise_multiplies_what_the_output_projection_is_given():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    net = nn.ModuleDict({"attn": attention, "head": nn.Linear(8, 2)})
    attach_noise(net)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).unflatten(-1, (3, 2, 4)).unbind(2)
        heads = F.scaled_dot_product_attention(*(value.transpose(1, 2) for value in (q, k, v))).transpose(1, 2)
        noise = torch.tensor([0.5, 0.25])
        weight = attention.out_proj.weight
        expected = (heads * noise[:, None]).flatten(2) @ weight.T + attention.out_proj.bias
        with poutine.condition(data={"attn": noise}):
            torch.testing.assert_close(attention(x, x, x)[0], expected)
            torch.testing.assert_close(attention.eval()(x, x, x)[0], expected)
    assert attention.out_proj.weight is weight


def test_the_attentions_weight_is_back_after_an_error():
    attention = nn.MultiheadAttention(8, 2)
    AutoTruncatedLogNormal(attach_noise(nn.ModuleDict({"attn": attention, "head": nn.Linear(8, 2)})))
    with pytest.raises(Exception, match="shape|dimension|size"):
        attention(*[torch.randn(2, 5, 9)] * 3)
    assert isinstance(attention.out_proj.weight, nn.Parameter)


def written_out(layer, sequence, noise):
    """What a layer of one direction puts out, as its definition has it, where others see its units times the noise."""
    shown = state = cell = torch.zeros(len(noise), dtype=noise.dtype)
    outputs = []
    for given in sequence:
        one = layer.weight_ih_l0 @ given + layer.bias_ih_l0
        other = layer.weight_hh_l0 @ shown + layer.bias_hh_l0
        if isinstance(layer, nn.LSTM):
            i, f, g, o = (one + other).chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
        elif isinstance(layer, nn.GRU):
            (r, z, n), (own_r, own_z, own_n) = one.chunk(3), other.chunk(3)
            z, n = (z + own_z).sigmoid(), (n + (r + own_r).sigmoid() * own_n).tanh()
            state = (1 - z) * n + z * state
        else:
            state = (one + other).tanh()
        shown = noise * state
        outputs.append(shown)
    return torch.stack(outputs), shown


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_noise_on_hidden_units_is_what_all_others_see_of_them(kind):
    layer = kind(3, 4).double()
    net = attach_noise(nn.ModuleDict({"layer": layer, "head": nn.Linear(4, 2)}))
    sequence, noise = torch.randn(6, 3).double(), torch.tensor([0.3, 1.0, 0.7, 0.5]).double()
    weights = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    for kept in (True, False):
        noise_sites(net)["layer"].noise.kept[1] = kept
        expected, last = written_out(layer, sequence, noise * noise_sites(net)["layer"].noise.kept)
        with poutine.condition(data={"layer": noise}):
            outputs, state = layer(sequence)
        torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state[0][0] if kind is nn.LSTM else state[0], last, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(weight, weights[name]) for name, weight in net.named_parameters())


def test_layers_and_directions_read_the_units_below_times_their_noise():
    whole = nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True).double()
    halves = [nn.GRU(size, 4, bidirectional=True, batch_first=True).double() for size in (3, 8)]
    for number, half in enumerate(halves):
        for name, weight in half.named_parameters():
            weight.data.copy_(whole.get_parameter(name.replace("l0", f"l{number}")))
    nets = [
        attach_noise(nn.ModuleDict({"a": whole, "head": nn.Linear(8, 2)})),
        *(attach_noise(nn.ModuleDict({"a": half, "head": nn.Linear(8, 2)})) for half in halves),
    ]
    values = {name: torch.rand(4).double() for name in noise_sites(nets[0])}
    assert list(values) == ["a.l0", "a.l0_reverse", "a.l1", "a.l1_reverse"]
    x = torch.randn(2, 5, 3).double()
    with poutine.condition(data=values):
        outputs, states = whole(x)
        between, first = halves[0](x)
    with poutine.condition(data={name.replace("l1", "l0"): values[name] for name in ("a.l1", "a.l1_reverse")}):
        expected, second = halves[1](between)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states, torch.cat([first, second]), rtol=1e-12, atol=1e-12)


def test_a_recurrent_layer_as_it_was_after_an_error_and_without_noise():
    net = attach_noise(Tagger(nn.LSTM, batch_first=True), per_example=True)
    AutoTruncatedLogNormal(net)
    state = {name for name in net.state_dict() if "noise" not in name}
    # One draw for all examples, as the noise is on weights.
    assert not noise_sites(net)["rnn"].noise.per_example and noise_sites(net)["first"].noise.per_example
    with pytest.raises(RuntimeError, match="input_size"):
        net.rnn(torch.randn(2, 5, 7))
    x = torch.randn(2, 5, 4)
    assert shares_noise(net)
    assert not torch.equal(net(x), net(x))
    detach_noise(net)
    assert set(net.state_dict()) == state and torch.equal(net(x), net(x)) and not shares_noise(net)


def test_a_cell_keeps_its_own_state():
    net = attach_noise(Loop(nn.LSTMCell).double())
    layer = nn.LSTM(4, 8).double()
    for name, weight in net.cell.named_parameters():
        if "noise" not in name:
            layer.get_parameter(f"{name}_l0").data.copy_(weight)
    noise, x = torch.rand(8).double(), torch.randn(1, 5, 4).double()
    with poutine.condition(data={"cell": noise}):
        outputs = net(x)
    expected, _ = written_out(layer, x[0], noise)
    torch.testing.assert_close(outputs[0], net.last(expected), rtol=1e-12, atol=1e-12)


def test_saliency_of_hidden_units_runs_examples_one_by_one():
    net = attach_noise(Tagger(nn.RNN, batch_first=True), ["rnn"])
    guide = AutoTruncatedLogNormal(net)
    x, y = torch.randn(3, 5, 4), torch.randint(5, (3, 3))
    scores = [Saliency([(x, y)], "fisher").scores(net, guide)["rnn"]]
    scores += [sum(Saliency([(x[i : i + 1], y[i : i + 1])], "fisher").scores(net, guide)["rnn"] for i in range(3)) / 3]
    torch.testing.assert_close(*scores)

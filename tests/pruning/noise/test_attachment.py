# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    MultiplicativeNoise,
    NoiseELBO,
    Regression,
    attach_noise,
    compact,
    detach_noise,
    noise_sites,
)
from tests.pruning.noise.places import (
    NETWORKS,
    Block,
    LeNet,
    ResNet,
    encoder,
    mlp,
    places,
)


def at(net, values, x):
    """What the network puts out at values of the noise, 1 where none is given."""
    full = {name: torch.ones(site.noise.num_units) for name, site in noise_sites(net).items()}
    return poutine.condition(net, data=full | values)(x)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        *((name, ["units", "heads"]) for name in NETWORKS),
        *((name, ["block"]) for name in ("resnet", "vit", "encoder")),
        *((name, ["units", "heads", "block"]) for name in NETWORKS),
    ],
    ids=str,
)
def test_noise_of_one_changes_nothing_and_comes_off(name, kinds):
    build, shape = NETWORKS[name]
    net, x = build().eval(), torch.randn(shape)
    expected, state = net(x), dict(net.state_dict())
    attach_noise(net, kinds=kinds)
    torch.testing.assert_close(at(net, {}, x), expected)
    detach_noise(net)
    assert net.state_dict().keys() == state.keys()
    assert not any(isinstance(module, MultiplicativeNoise) for module in net.modules())
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_has_noise_of_its_own(name):
    build, shape = NETWORKS[name]
    net, x = attach_noise(build()).eval(), torch.randn(shape)
    twin = copy.deepcopy(net)
    for site in noise_sites(twin).values():
        site.noise.kept[0] = False
    assert all(site.noise.kept.all() for site in noise_sites(net).values())
    assert not torch.allclose(at(twin, {}, x), at(net, {}, x))
    net.load_state_dict(twin.state_dict())
    assert torch.equal(at(twin, {}, x), at(net, {}, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_load_as_without_noise(name):
    build, shape = NETWORKS[name]
    trained, net, x = build().eval(), attach_noise(build()).eval(), torch.randn(shape)
    site = next(iter(noise_sites(net).values()))
    site.noise.kept[0] = False
    net.load_state_dict(trained.state_dict())
    # Weights do not say what is pruned.
    assert not site.noise.kept[0]
    site.noise.kept[0] = True
    torch.testing.assert_close(at(net, {}, x), trained(x))
    weights = trained.state_dict()
    with pytest.raises(RuntimeError, match="(?s)Missing key.*" + weights.popitem()[0]):
        net.load_state_dict(weights)
    with pytest.raises(RuntimeError, match="(?s)Unexpected key.*other"):
        net.load_state_dict(trained.state_dict() | {"other": x})
    back = build().eval()
    back.load_state_dict(detach_noise(net).state_dict())
    assert torch.equal(back(x), trained(x))


def test_noise_survives_transformers_fast_path():
    net = attach_noise(encoder()).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        halved = {name: torch.full((site.noise.num_units,), 0.5) for name, site in noise_sites(net).items()}
        assert not torch.allclose(at(net, halved, x), at(net, {}, x))


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("conv1", {"conv1"}),
        (["conv*", "fc1"], {"conv1", "conv2", "fc1"}),
        (nn.Conv2d, {"conv1", "conv2"}),
        ([nn.Linear], {"fc1"}),
    ],
)
def test_layers_are_chosen_by_name_pattern_and_type(modules, expected):
    assert noise_sites(attach_noise(LeNet(), modules)).keys() == expected


def test_layers_are_chosen_by_the_module_that_holds_them():
    assert noise_sites(attach_noise(ResNet(), "layers.1")).keys() == {
        "layers.1.conv1",
        "layers.1.conv2",
        "layers.1.downsample.0",
    }
    assert noise_sites(attach_noise(ResNet(), Block, kinds=["block"])).keys() == {"layers.0", "layers.1"}


def test_heads_of_an_attention_that_is_not_recognised():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.out(torch.softmax(self.mix(x), -1)))

    assert places(Other(), kinds=["heads"], heads={"out": 4})["out"] == ("out", "input", 4, 2)
    with pytest.raises(ReductionError, match="3 heads"):
        attach_noise(Other(), heads={"out": 3})
    with pytest.raises(ReductionError, match="did you mean 'out'"):
        attach_noise(Other(), heads={"outt": 4})


def test_per_example_draws_differ_between_examples_in_training_alone():
    net = attach_noise(mlp(), per_example=True)
    AutoTruncatedLogNormal(net)
    x = torch.randn(1, 6).expand(4, 6)
    net[3].eval()
    rows = net(x)
    assert not torch.allclose(rows[0], rows[1])
    rows = net.eval()(x)
    torch.testing.assert_close(rows[0], rows[1])


def state_of(net):
    return [(name, len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in net.named_modules()]


@pytest.mark.parametrize(
    ("build", "modules", "match"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 3)), None, "nothing to attach"),
        (lambda: nn.Sequential(nn.ReLU()), None, "nothing to attach"),
        (LeNet, "conv3", "did you mean 'conv"),
        (LeNet, ["conv1", "fc9"], "did you mean 'fc1'"),
        (LeNet, "fc2", "no layer but the last"),
        (LeNet, nn.Conv3d, "Conv3d"),
        (ResNet, "layers.*.relu", "matches"),
    ],
)
def test_what_cannot_be_attached_leaves_the_network_as_it_was(build, modules, match):
    net = build()
    before = state_of(net)
    with pytest.raises(ReductionError, match=match):
        attach_noise(net, modules)
    assert state_of(net) == before


def test_noise_is_attached_once():
    net = attach_noise(mlp())
    before = state_of(net)
    with pytest.raises(ReductionError, match="already"):
        attach_noise(net)
    assert state_of(net) == before
    with pytest.raises(ReductionError, match="no noise"):
        detach_noise(mlp())
    with pytest.raises(ReductionError, match="'units', 'heads', 'width', 'block'"):
        attach_noise(mlp(), kinds=["filters"])


class Again(nn.Module):
    """A layer after itself, which is given what another layer puts out too."""

    def __init__(self):
        super().__init__()
        self.once, self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.once(x)))))))


class Towers(nn.Module):
    """Two towers of one set of weights."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.head = tower, nn.LazyLinear(1)

    def forward(self, a, b):
        return self.head((self.tower(a) - self.tower(b)).abs())


class Functional(nn.Module):
    """Its activation is a function, so that its noise is at the input of the next layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x))))


def convolutional():
    return nn.Sequential(nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Flatten())


TOWERS = {
    "modules": (lambda: Towers(mlp()), (3, 6), {"tower.0": "tower.1", "tower.2": "tower.4"}),
    "functions": (
        lambda: Towers(Functional()),
        (3, 6),
        {"tower.first": "tower.second", "tower.second": "tower.second"},
    ),
    "convolutions": (lambda: Towers(convolutional()), (3, 1, 6), {"tower.0": "tower.2", "tower.2": "tower.3"}),
}


def test_a_layer_that_follows_itself_has_its_noise_on_what_it_puts_out():
    assert places(Again()) == {"once": ("once", "output", 4, 1), "twice": ("twice", "output", 4, 1)}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("per_example", [False, True])
def test_a_layer_that_is_called_twice_has_one_noise(name, per_example):
    """The losses agree on it, and what is multiplied by 0 is so in both calls."""
    make, shape, expected = TOWERS[name]
    net, inputs = make().double(), [torch.randn(shape).double(), torch.randn(shape).double()]
    net(*inputs)
    attach_noise(net, per_example=per_example)
    sites = noise_sites(net)
    assert {site: where.place for site, where in sites.items()} == expected
    model = Regression(net, 10, scale=1.0)
    losses = []
    for elbo in (NoiseELBO, TraceMeanField_ELBO, Trace_ELBO):
        guide = AutoTruncatedLogNormal(model)
        guide.noise_log_scales.data.fill_(-1.0)
        torch.manual_seed(0)
        losses.append(elbo()(model, guide)(inputs, torch.zeros(3, 1).double()))
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[2].isfinite()
    for site in sites.values():
        site.noise.kept[0] = False
    net.eval()
    small, plain = compact(net, guide, tuple(inputs)), detach_noise(copy.deepcopy(net))
    torch.testing.assert_close(small(*inputs), net(*inputs), rtol=1e-9, atol=1e-12)
    # Each site has lost a row of its own layer, which both towers share.
    assert all(small.get_submodule(name).weight.shape[0] + 1 == len(plain.get_submodule(name).weight) for name in sites)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder, self.last = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x, padding):
        return self.last(self.encoder(x, src_key_padding_mask=padding)[:, 0])


# Without the noise, PyTorch makes them.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_padded_sequences_pass_an_encoder_with_noise():
    net, x = Padded().eval(), torch.randn(4, 5, 8)
    padding = torch.arange(5).expand(4, 5) > 2
    with torch.no_grad():
        before = net(x, padding)
        attach_noise(net)
        ones = {name: torch.ones(site.noise.num_units) for name, site in noise_sites(net).items()}
        torch.testing.assert_close(poutine.condition(net, data=ones)(x, padding), before)
        detach_noise(net)
        assert net.encoder.use_nested_tensor
        torch.testing.assert_close(net(x, padding), before)

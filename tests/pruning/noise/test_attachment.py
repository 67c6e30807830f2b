# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import AutoTruncatedLogNormal, MultiplicativeNoise, attach_noise, detach_noise, noise_sites
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
    with pytest.raises(ReductionError, match="'units', 'heads', 'block'"):
        attach_noise(mlp(), kinds=["filters"])


def test_a_layer_that_is_called_twice_has_no_noise():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.once(x)))))))

    assert places(Twice()) == {"once": ("once", "output", 4, 1)}


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

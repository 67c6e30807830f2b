# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import MultiplicativeNoise, attach_noise, detach_noise, noise_sites


class LeNet(nn.Module):
    """Activations, pooling and flattening are functions."""

    def __init__(self, activation=torch.tanh):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 4, 5)
        self.fc1, self.fc2 = nn.Linear(4 * 4 * 4, 7), nn.Linear(7, 5)
        self.activation = activation

    def forward(self, x):
        x = F.max_pool2d(self.activation(self.conv1(x)), 2)
        x = F.max_pool2d(self.activation(self.conv2(x)), 2)
        return self.fc2(self.activation(self.fc1(x.view(x.size(0), -1))))


class Block(nn.Module):
    """A residual block whose one activation serves twice."""

    def __init__(self, width, out, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride), nn.BatchNorm2d(out)) if stride > 1 else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.layers = nn.Sequential(Block(4, 4), Block(4, 6, stride=2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layers(self.stem(x)).mean((-1, -2)))


class Attention(nn.Module):
    def __init__(self, width=8, num_heads=2):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.norm1, self.attn = nn.LayerNorm(8), Attention()
        self.norm2, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4), nn.Tanh())
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.head(torch.tanh(self.hidden(self.body(x))))


def mlp():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


IMAGES, SMALL_IMAGES = (2, 1, 28, 28), (2, 1, 12, 12)
NETWORKS = {
    "mlp": (mlp, (3, 6)),
    "lenet": (LeNet, IMAGES),
    "resnet": (ResNet, SMALL_IMAGES),
    "vit": (ViT, SMALL_IMAGES),
    "encoder": (encoder, (2, 5, 8)),
    "untraceable": (Untraceable, (3, 6)),
}


def places(net, **options):
    sites = noise_sites(attach_noise(net, **options)).values()
    return {site.name: (site.place, site.when, site.noise.num_units, site.noise.unit_size) for site in sites}


def at(net, values, x):
    """What the network puts out at values of the noise, 1 where none is given."""
    full = {name: torch.ones(site.noise.num_units) for name, site in noise_sites(net).items()}
    return poutine.condition(net, data=full | values)(x)


def test_places_after_the_activations_modules_and_batch_norms():
    assert places(mlp()) == {"0": ("1", "output", 4, 1), "2": ("4", "output", 5, 1)}


def test_activations_that_are_functions_put_the_noise_on_the_next_layers_input():
    assert places(LeNet()) == {
        "conv1": ("conv2", "input", 3, 1),
        "conv2": ("fc1", "input", 4, 16),
        "fc1": ("fc2", "input", 7, 1),
    }


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 2)),
    )


def test_noise_goes_past_poolings_to_the_weight_of_the_next_convolution():
    # A convolution by groups has no weights between all the channels.
    assert places(convolutions()) == {
        "0": ("3", "input", 3, 1),
        "3": ("5", "output", 4, 1),
        "6": ("8", "output", 4, 1),
    }


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


def test_a_convolution_that_fails_keeps_no_noise_on_its_weight():
    net = attach_noise(convolutions())
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


def test_a_shared_activation_is_no_place():
    assert places(ResNet()) == {
        "stem.0": ("stem.3", "output", 4, 1),
        "layers.0.conv1": ("layers.0.conv2", "input", 4, 1),
        "layers.0.conv2": ("layers.0.bn2", "output", 4, 1),
        "layers.1.conv1": ("layers.1.conv2", "input", 6, 1),
        "layers.1.conv2": ("layers.1.bn2", "output", 6, 1),
        "layers.1.downsample.0": ("layers.1.downsample.1", "output", 6, 1),
    }


def test_residual_branches_are_one_unit_each():
    assert places(ResNet(), kinds=["block"]) == {
        "layers.0": ("layers.0.bn2", "output", 1, 1),
        "layers.1": ("layers.1.bn2", "output", 1, 1),
    }
    assert places(ViT(), kinds=["block"]) == {
        "attn": ("attn", "output", 1, 1),
        "mlp.2": ("mlp.2", "output", 1, 1),
    }


def test_heads_and_hidden_units_of_transformers():
    assert places(ViT()) == {"attn": ("attn.proj", "input", 2, 4), "mlp.0": ("mlp.1", "output", 12, 1)}
    expected = {}
    for layer in ("0.layers.0", "0.layers.1"):
        expected[f"{layer}.self_attn"] = (f"{layer}.self_attn.out_proj", "input", 2, 4)
        expected[f"{layer}.linear1"] = (f"{layer}.linear2", "input", 12, 1)
    assert places(encoder()) == expected


def test_what_cannot_be_traced_is_read_part_by_part():
    assert places(Untraceable()) == {"body.0": ("body.1", "output", 4, 1), "hidden": ("hidden", "output", 5, 1)}


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
    attach_noise(nn.ModuleDict({"attn": attention, "head": nn.Linear(8, 2)}))
    with pytest.raises(Exception, match="shape|dimension|size"):
        attention(*[torch.randn(2, 5, 9)] * 3)
    assert isinstance(attention.out_proj.weight, nn.Parameter)


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

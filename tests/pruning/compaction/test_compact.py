# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A compact network computes what the network with noise does, at the posterior mean and 0 for pruned units."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import (
    SNR,
    AutoTruncatedLogNormal,
    MultiplicativeNoise,
    NoiseSite,
    attach_noise,
    compact,
    compaction_report,
    detach_noise,
    noise_sites,
    prune,
)
from pyro_bmrs.pruning.compaction.compact import compact_gated
from pyro_bmrs.pruning.compaction.modules.scaling import Scale
from tests.pruning.compaction.gated import difference, random_gates, with_noise_at
from tests.pruning.networks import NETWORKS, OTHER_NETWORKS, make

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def compacted(name: str, dtype: torch.dtype, seed: int, **options: Any) -> tuple[Tensor, nn.Module, Tensor]:
    """What the network with noise computes, the compact network, and the input."""
    net, inputs = make(name, dtype, seed)
    attach_noise(net, **options)
    gates = {site: gate.clamp(max=1.0) for site, gate in random_gates(net, seed).items()}
    return with_noise_at(net, gates, inputs), compact_gated(net, gates, noise_sites(net), inputs), inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_computes_the_same(name: str, dtype: torch.dtype) -> None:
    expected, net, inputs = compacted(name, dtype, seed=1)
    assert difference(expected, net(inputs)) <= TOLERANCE[dtype]
    others = inputs.flip(0) if inputs.dtype is torch.long else torch.cat([inputs, torch.randn_like(inputs)])
    assert net(others).shape == (len(others), expected.shape[1])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_computes_the_same_in_other_networks(name: str, seed: int) -> None:
    expected, net, inputs = compacted(name, torch.float64, seed)
    assert difference(expected, net(inputs)) <= 1e-12
    assert compaction_report(net).sites["removed"].sum() > 0


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.booleans())
def test_computes_the_same_for_any_mask(name: str, seed: int, pruned: float, with_blocks: bool) -> None:
    net, inputs = make(name, torch.float64, seed)
    attach_noise(net, kinds=("units", "heads", "block") if with_blocks else ("units", "heads"))
    gates = {site: gate.clamp(max=1.0) for site, gate in random_gates(net, seed, pruned).items()}
    small = compact_gated(net, gates, noise_sites(net), inputs)
    expected = with_noise_at(net, gates, inputs)
    # Everything pruned, some networks are constant.
    assert (expected - small(inputs)).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_is_plain(name: str) -> None:
    _, net, inputs = compacted(name, torch.float32, seed=2)
    for module in net.modules():
        assert not isinstance(module, PyroModule | nn.MultiheadAttention | Scale)
        assert not (module._forward_hooks or module._forward_pre_hooks)
    assert torch.equal(copy.deepcopy(net)(inputs), net(inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_is_smaller(name: str) -> None:
    _, net, _ = compacted(name, torch.float32, seed=2)
    report = compaction_report(net)
    layers = report.layers.sum()
    assert layers["parameters_after"] == sum(parameter.numel() for parameter in net.parameters())
    assert layers["parameters_after"] < 0.8 * layers["parameters_before"]
    assert layers["macs_after"] < 0.8 * layers["macs_before"]


def test_leaves_no_pruned_unit_of_a_network_without_ties() -> None:
    _, net, _ = compacted("lenet-5", torch.float32, seed=0)
    sites = compaction_report(net).sites
    assert (sites["masked"] == 0).all()
    sizes = [net.conv1.out_channels, net.conv2.out_channels, net.fc1.out_features, net.fc2.out_features]
    assert sites["kept"].tolist() == sizes


@pytest.mark.parametrize("name", ["lenet-5", "resnet", "grouped"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_keeps_the_order_of_dimensions_in_memory(name: str, layout: torch.memory_format) -> None:
    net, inputs = make(name, torch.float64, seed=1)
    attach_noise(net).to(memory_format=layout)
    gates = {site: gate.clamp(max=1.0) for site, gate in random_gates(net, seed=1).items()}
    small = compact_gated(net, gates, noise_sites(net), inputs)
    weights = [weight for weight in small.parameters() if weight.dim() == 4]
    assert weights and all(weight.is_contiguous(memory_format=layout) for weight in weights)
    assert difference(with_noise_at(net, gates, inputs), small(inputs)) <= 1e-12


def test_is_what_the_posterior_mean_of_a_guide_computes() -> None:
    net, inputs = make("mlp-relu", torch.float64)
    guide = AutoTruncatedLogNormal(attach_noise(net))
    with torch.no_grad():
        guide.noise_locs.uniform_(-3.0, 0.0)
        guide.noise_log_scales.uniform_(-3.0, 0.0)
    noise_sites(net)["2"].noise.kept[:3] = False
    small = compact(net, guide, inputs, delta_evidence={"2": torch.arange(7.0)})
    expected = with_noise_at(net, guide.mean_noise(), inputs)
    assert difference(expected, small(inputs)) <= 1e-12
    assert small[2].out_features == 4
    assert compaction_report(small).units.loc["2", "delta_evidence"].tolist() == list(range(7))


def test_prune_and_compact() -> None:
    net, inputs = make("resnet", torch.float64)
    guide = AutoTruncatedLogNormal(attach_noise(net))
    with torch.no_grad():
        guide.noise_locs.uniform_(-12.0, 0.0)
        guide.noise_log_scales.uniform_(-2.0, 1.5)
    result = prune(net, guide, SNR(), example_inputs=inputs)
    small = compact(net, guide, inputs, delta_evidence=result.scores)
    assert difference(with_noise_at(net, guide.mean_noise(), inputs), small(inputs)) <= 1e-12
    # Decided together, what is tied can go.
    sites = compaction_report(small).sites
    assert sites["removed"].sum() == result.num_removed > 0


def test_sites_that_the_network_calls_itself() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.noise, self.last = nn.Linear(4, 6), MultiplicativeNoise(6, name="own"), nn.Linear(6, 2)

        def forward(self, inputs: Tensor) -> dict[str, Tensor | None]:
            return {"logits": self.last(self.noise(self.first(inputs).relu())), "nothing": None}

    net, inputs = Own().double(), {"inputs": torch.randn(3, 4, dtype=torch.float64)}
    gates = {"own": torch.tensor([0.0, 0.5, 0.0, 1.0, 0.25, 0.0])}
    small = compact_gated(net, gates, noise_sites(net), inputs)
    assert small.first.out_features == 3 and isinstance(small.noise, nn.Identity)
    expected = net.last(net.first(inputs["inputs"]).relu() * gates["own"])
    assert difference(expected, small(**inputs)["logits"]) <= 1e-12


def test_leaves_the_network_as_it_is() -> None:
    net, inputs = make("resnet")
    attach_noise(net).train()
    net.fc.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    gates = random_gates(net, 0)
    small = compact_gated(net, gates, noise_sites(net), inputs)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == ["fc.weight"]
    assert all(module.training for module in [*net.modules(), *small.modules()])
    assert [name for name, parameter in small.named_parameters() if not parameter.requires_grad] == ["fc.weight"]


@pytest.mark.parametrize("name", NETWORKS)
def test_exports_to_torch_for_any_number_of_examples(name: str) -> None:
    expected, net, inputs = compacted(name, torch.float32, seed=3)
    several = torch.cat([inputs] * 3)
    exported = torch.export.export(net, (several[1:],), dynamic_shapes=({0: torch.export.Dim("examples")},)).module()
    assert difference(torch.cat([expected] * 3), exported(several)) <= 1e-5


# What the others are made of, these are too.
@pytest.mark.parametrize("name", ["resnet", "grouped", "transformer", "vit"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_exports_to_onnx(name: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    expected, net, inputs = compacted(name, torch.float32, seed=3)
    file = io.BytesIO()
    torch.onnx.export(net, (inputs,), dynamo=True, verbose=False).save(file)
    session = runtime.InferenceSession(file.getvalue())
    (output,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert difference(expected, torch.from_numpy(output)) <= 1e-5


@pytest.mark.parametrize("name", ["resnet", "transformer", "vit"])
def test_takes_out_residual_branches(name: str) -> None:
    net, inputs = make(name, torch.float64)
    attach_noise(net, kinds=("block",))
    sites = noise_sites(net)
    gates = {site: torch.tensor([float(place % 2)]) for place, site in enumerate(sites)}
    small = compact_gated(net, gates, sites, inputs)
    assert difference(with_noise_at(net, gates, inputs), small(inputs)) <= 1e-12
    assert compaction_report(small).sites["masked"].sum() == 0
    assert num_parameters(small) < 0.8 * num_parameters(net)


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_new_weights_learn_as_those_they_were_made_of() -> None:
    net, inputs = make("transformer")
    attach_noise(net)
    net.encoder.layers[0].self_attn.in_proj_weight.requires_grad_(False)
    net.encoder.layers[1].requires_grad_(False)
    small = compact_gated(net, random_gates(net, 0), noise_sites(net), inputs)
    frozen = {name.split(".self_attn")[0] for name, p in small.named_parameters() if not p.requires_grad}
    assert all(name.startswith("encoder.layers.1") for name in frozen) and frozen


def test_draws_no_random_numbers() -> None:
    net, inputs = make("transformer")
    attach_noise(net)
    gates, sites = random_gates(net, 0), noise_sites(net)
    state = torch.get_rng_state()
    compact_gated(net, gates, sites, inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_of_which_a_network_takes_only_some() -> None:
    class Picky(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            if (inputs < 0).any():
                raise ValueError("probabilities, please")
            return super().forward(inputs)

    net = attach_noise(Picky(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    gates = random_gates(net, 0)
    small = compact_gated(net, gates, noise_sites(net), torch.rand(2, 4))
    assert small[0].out_features == int((gates["0"] > 0).sum())


def test_a_transformer_with_padding() -> None:
    class Padded(nn.Module):
        """Torch's encoder, which would make nested tensors of what is padded."""

        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.encoder, self.last = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

        def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
            encoded = self.encoder(tokens, src_key_padding_mask=padding)
            return self.last(encoded.masked_fill(padding.unsqueeze(-1), 0.0).sum(1))

    net, inputs = Padded().eval(), (torch.randn(2, 5, 8), torch.arange(5) >= torch.tensor([[5], [3]]))
    # Torch's nested tensors are at odds with hooks; noise that changes nothing can be compared without them.
    sites = noise_sites(attach_noise(net))
    small = compact_gated(net, {name: torch.ones(site.noise.num_units) for name, site in sites.items()}, sites, inputs)
    detach_noise(net).encoder.use_nested_tensor = False
    assert difference(net(*inputs), small(*inputs)) <= 1e-5


def test_keeps_the_best_unit_of_a_layer_that_would_vanish() -> None:
    net, inputs = make("mlp-tanh")
    attach_noise(net)
    gates = {"0": torch.zeros(8), "2": torch.full((7,), 0.5)}
    importance = {"0": torch.arange(8.0) == 5, "2": torch.ones(7)}
    small = compact_gated(net, gates, noise_sites(net), inputs, importance=importance)
    assert small[0].out_features == 1
    assert difference(with_noise_at(net, gates, inputs), small(inputs)) <= 1e-5
    masked = compaction_report(small).masked
    assert masked.index.tolist() == [("0", 5)]
    assert "vanish" in masked["reason"].item()


def test_a_constant_behind_a_pruned_unit_goes_into_the_next_bias() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sigmoid(), nn.Linear(4, 2, bias=False)).double().eval()
    nn.init.normal_(net[1].bias)
    inputs = torch.randn(5, 3, dtype=torch.float64)
    attach_noise(net, "0")
    sites = {name: _at(site, "0") for name, site in noise_sites(net).items()}
    gates = {"0": torch.tensor([0.0, 0.5, 0.0, 1.0])}
    small = compact_gated(net, gates, sites, inputs)
    detach_noise(net)
    expected = net[1:](net[0](inputs) * gates["0"])
    assert small[0].out_features == 2
    assert difference(expected, small(inputs)) <= 1e-12


def _at(site: NoiseSite, place: str) -> NoiseSite:
    """The site where the noise acts on what another module returns."""
    return dataclasses.replace(site, place=place, when="output")


def test_names_what_is_masked() -> None:
    class Padded(nn.Module):
        """A constant behind the pruned unit, and zeros around it."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.second(self.first(images).sigmoid()).mean((2, 3))

    net, inputs = Padded(), torch.randn(2, 1, 6, 6)
    attach_noise(net)
    sites = {name: _at(site, "first") for name, site in noise_sites(net).items()}
    small = compact_gated(net, {"first": torch.tensor([0.0, 1.0, 1.0, 0.0])}, sites, inputs)
    masked = compaction_report(small).masked
    assert masked.index.tolist() == [("first", 0), ("first", 3)]
    assert masked["reason"].str.contains("second").all()
    assert not small.first.weight[[0, 3]].any()


def test_leaves_sizes_that_are_written_in_the_code() -> None:
    class Flattened(nn.Module):
        """The number of channels stands in the forward method."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 4, 3), nn.Linear(16, 6), nn.Linear(6, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc2(self.fc1(self.conv(images).relu().view(-1, 16)).relu())

    net, inputs = Flattened(), torch.randn(2, 1, 4, 4)
    attach_noise(net)
    gates = {name: (torch.arange(site.noise.num_units) % 2).float() for name, site in noise_sites(net).items()}
    small = compact_gated(net, gates, noise_sites(net), inputs)
    assert difference(with_noise_at(net, gates, inputs), small(inputs)) <= 1e-5
    report = compaction_report(small)
    assert report.sites.loc["conv", "masked"] == 2
    assert "does not run" in report.masked["reason"].iloc[0]
    assert small.fc1.out_features == 3


class Tables(nn.Module):
    """A column of the input is turned into rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(5, 4), nn.Linear(7, 8), nn.Linear(8, 2)

    def forward(self, columns: Tensor) -> Tensor:
        rows = self.table(columns[:, 0].long())
        return self.last(self.first(torch.cat([rows, columns[:, 1:]], 1)).relu())


def test_takes_units_out_behind_inputs_that_become_indices() -> None:
    net, columns = Tables(), torch.cat([torch.arange(5.0).unsqueeze(1), torch.randn(5, 3)], 1)
    sites = noise_sites(attach_noise(net))
    gates = {name: (torch.arange(site.noise.num_units) % 2).float() for name, site in sites.items()}
    small = compact_gated(net, gates, sites, columns)
    assert small.first.out_features == 4
    assert difference(with_noise_at(net, gates, columns), small(columns)) <= 1e-5


def test_a_network_that_writes_to_its_input() -> None:
    class Scaling(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.div_(255.0))

    net, images = Scaling(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2)).double(), 255 * torch.rand(3, 4).double()
    before, sites = images.clone(), noise_sites(attach_noise(net))
    small = compact_gated(net, {"0": torch.arange(8) % 2}, sites, images)
    assert torch.equal(images, before) and small[0].out_features == 4
    assert difference(with_noise_at(net, {"0": torch.arange(8) % 2}, before.clone()), small(images)) <= 1e-12


class Autoencoder(nn.Module):
    """The way back is by the weight of the way there, whose precision the input is given."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.next, self.last = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.there(inputs.to(self.there.weight.dtype)).relu()
        return self.last(self.next(F.linear(hidden, self.there.weight.t())).relu())


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed at each call."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(images, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Halves(nn.Module):
    """Channels that are split, one half of which goes through a layer, and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.next = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(12, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        one, other = self.first(images).relu().chunk(2, 1)
        return self.last(self.next(torch.cat([one, other, self.part(other).relu()], 1)).relu())


@pytest.mark.parametrize(
    "make_net, shape",
    [
        (lambda: nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)), (2, 3, 6, 6)),
        (Halves, (2, 3, 4, 4)),
        (Autoencoder, (3, 5)),
        (
            lambda: nn.Sequential(
                *(nn.Linear(5, 16), nn.ReLU(), nn.Unflatten(1, (4, 4))),
                *(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Flatten()),
            ),
            (3, 5),
        ),
    ],
)
def test_leaves_what_it_cannot_take_out_and_says_why(make_net: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    net, inputs = make_net().double(), torch.randn(shape, dtype=torch.float64)
    sites = noise_sites(attach_noise(net))
    gates = {name: (torch.arange(site.noise.num_units) % 2).double() for name, site in sites.items()}
    small = compact_gated(net, gates, sites, inputs)
    assert difference(with_noise_at(net, gates, inputs), small(inputs)) <= 1e-12
    report = compaction_report(small)
    assert report.sites["removed"].sum() > 0
    assert report.masked["reason"].str.len().gt(0).all()


class TestBadInput:
    """Mistakes that are named, with nothing half-changed."""

    @pytest.fixture
    def net(self) -> nn.Module:
        return attach_noise(make("mlp-tanh")[0])

    @pytest.fixture
    def guide(self, net: nn.Module) -> AutoTruncatedLogNormal:
        guide = AutoTruncatedLogNormal(net)
        guide.noise_locs.data.sub_(0.5)
        return guide

    @pytest.mark.parametrize("inputs", [torch.ones(2, 4), (torch.ones(2, 5), 3), {"image": torch.ones(2, 5)}, None])
    def test_example_inputs_that_do_not_fit(self, net: nn.Module, guide: AutoTruncatedLogNormal, inputs: Any) -> None:
        with pytest.raises(ReductionError, match="example_inputs"):
            compact(net, guide, inputs)

    def test_weights_that_are_nan(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> None:
        net[2].weight.data[0, 0] = torch.nan
        with pytest.raises(ReductionError, match=r"1 in 2\.weight"):
            compact(net, guide, torch.ones(2, 5))

    def test_a_guide_of_another_network(self, net: nn.Module) -> None:
        other = AutoTruncatedLogNormal(attach_noise(make("mlp-tanh")[0]))
        with pytest.raises(ReductionError, match="not of this network"):
            compact(net, other, torch.ones(2, 5))

    def test_a_guide_that_is_not_fitted(self, net: nn.Module) -> None:
        with pytest.raises(ReductionError, match="not fitted"):
            compact(net, AutoTruncatedLogNormal(net), torch.ones(2, 5))

    def test_no_guide(self, net: nn.Module) -> None:
        with pytest.raises(ReductionError, match="AutoTruncatedLogNormal"):
            compact(net, net, torch.ones(2, 5))  # type: ignore[arg-type]

    def test_a_posterior_that_is_nan(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> None:
        guide.noise_locs.data[0] = torch.nan
        with pytest.raises(ReductionError, match="1 parameters of the guide are NaN"):
            compact(net, guide, torch.ones(2, 5))

    @pytest.mark.parametrize(
        "gates, message",
        [
            ({"0": torch.ones(8)}, "sites"),
            ({"0": torch.ones(8), "2": torch.ones(6)}, "7 units"),
            ({"0": torch.ones(8), "2": torch.full((7,), torch.nan)}, "finite"),
            ({"0": torch.ones(8), "2": -torch.ones(7)}, "negative"),
        ],
    )
    def test_gates(self, net: nn.Module, gates: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ReductionError, match=message):
            compact_gated(net, gates, noise_sites(net), torch.ones(2, 5))

    @pytest.mark.parametrize("evidence", [{"1": torch.zeros(8)}, {"0": torch.zeros(7)}])
    def test_evidence_of_other_sites(
        self, net: nn.Module, guide: AutoTruncatedLogNormal, evidence: dict[str, Tensor]
    ) -> None:
        with pytest.raises(ReductionError, match="delta_evidence"):
            compact(net, guide, torch.ones(2, 5), delta_evidence=evidence)

    def test_a_network_without_noise(self, guide: AutoTruncatedLogNormal) -> None:
        with pytest.raises(ReductionError, match="not of this network"):
            compact(make("mlp-tanh")[0], guide, torch.ones(2, 5))

    def test_an_output_that_is_random(self) -> None:
        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 2)

            def forward(self, inputs: Tensor) -> Tensor:
                return self.second(nn.functional.dropout(self.first(inputs).relu()))

        net = attach_noise(Noisy())
        with pytest.raises(ReductionError, match="random"):
            compact_gated(net, random_gates(net, 0), noise_sites(net), torch.ones(2, 5))

    def test_noise_on_what_is_not_called(self) -> None:
        class Spare(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.spare, self.last = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)

            def forward(self, inputs: Tensor) -> Tensor:
                return self.last(self.first(inputs))

        net = attach_noise(Spare(), "first")
        sites = {name: _at(site, "spare") for name, site in noise_sites(net).items()}
        with pytest.raises(ReductionError, match="does not call"):
            compact_gated(net, {"first": torch.ones(8)}, sites, torch.ones(2, 4))

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A compact network goes into a file, and comes out of it the same."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import attach_noise, compaction_report, detach_noise, load_compact, noise_sites, save_compact
from pyro_bmrs.pruning.compaction.archive import read_archive, write_archive
from pyro_bmrs.pruning.compaction.compact import compact_gated
from pyro_bmrs.pruning.compaction.modules.scaling import scales_of
from tests.pruning.compaction.gated import random_gates
from tests.pruning.networks import NETWORKS, make, mlp


def compacted(net: nn.Module, inputs: Any, **options: Any) -> nn.Module:
    attach_noise(net, **options)
    gates = random_gates(net, seed=4)
    for site in noise_sites(net).values():
        if site.kind == "block":
            gates[site.name][:] = 0.0
    return compact_gated(net, gates, noise_sites(net), inputs)


@pytest.mark.parametrize(
    "name, kinds",
    [(name, ("units", "heads")) for name in NETWORKS]
    + [(name, ("block",)) for name in ("resnet", "transformer", "vit")],
)
def test_round_trip(name: str, kinds: tuple[str, ...], tmp_path: Path) -> None:
    net, inputs = make(name)
    small = compacted(net, inputs, kinds=kinds)
    detach_noise(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    save_compact(small, tmp_path / "net.pt")
    for loaded in (load_compact(tmp_path / "net.pt", net), load_compact(tmp_path / "net.pt", NETWORKS[name][0])):
        assert torch.equal(loaded.eval()(inputs), small(inputs))
        assert compaction_report(loaded).units.equals(compaction_report(small).units)
        assert compaction_report(loaded).layers.equals(compaction_report(small).layers)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["resnet", "transformer", "vit"])
def test_compact_twice(name: str, tmp_path: Path) -> None:
    net, inputs = make(name)
    small = compacted(net, inputs)
    smaller = compacted(small, inputs, kinds=("units", "heads", "block"))
    save_compact(smaller, tmp_path / "net.pt")
    assert torch.equal(load_compact(tmp_path / "net.pt", NETWORKS[name][0]).eval()(inputs), smaller(inputs))


def test_compact_twice_with_factors_that_are_left(tmp_path: Path) -> None:
    net, inputs = Parametrized().eval(), torch.randn(3, 5)
    for gates in ([1.0, 0.5, 0.0, 0.5, 0.2, 1.0], [0.3, 1.0, 0.5, 0.7, 1.0]):
        sites = noise_sites(attach_noise(net, ["first*", "second*"]))
        net = compact_gated(net, {name: torch.tensor(gates) for name in sites}, sites, inputs)
        assert scales_of(net)
    save_compact(net, tmp_path / "net.pt")
    assert torch.equal(load_compact(tmp_path / "net.pt", Parametrized)(inputs), net(inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_loads(name: str) -> None:
    net, inputs = make(name)
    small = compacted(net, inputs)
    other = copy.deepcopy(small)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(inputs), small(inputs))


class Parametrized(nn.Module):
    """A weight that is normalised, and a residual sum in front of which factors are left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
        self.second = nn.Linear(6, 6, bias=False)
        self.last = nn.Linear(6, 2, bias=False)
        self.act1, self.act2 = nn.Sigmoid(), nn.Sigmoid()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.act1(self.first(inputs))
        return self.last((self.act2(self.second(hidden)) + hidden).square())


def test_factors_that_are_left_and_biases_that_are_new(tmp_path: Path) -> None:
    net, inputs = Parametrized().eval(), torch.randn(3, 5)
    gates = {
        "first": torch.tensor([0.0, 0.5, 1.0, 0.5, 1.0, 1.0]),
        "second": torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0, 0.0]),
    }
    sites = noise_sites(attach_noise(net, ["first", "second"]))
    small = compact_gated(net, gates, sites, inputs)
    save_compact(small, tmp_path / "net.pt")
    loaded = load_compact(tmp_path / "net.pt", Parametrized)
    assert torch.equal(loaded(inputs), small(inputs))
    save_compact(loaded, tmp_path / "again.pt")
    assert torch.equal(load_compact(tmp_path / "again.pt", Parametrized)(inputs), small(inputs))


def test_groups_that_become_uneven_and_even_again(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 1)).double()

    net, inputs = build(), torch.randn(2, 2, 3, 3).double()
    for kept in ([1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]):
        attach_noise(net, kinds=["width"], example_inputs=inputs)
        net = compact_gated(net, {"0.width": torch.tensor(kept).double()}, noise_sites(net), inputs)
    assert repr(net[1]) == repr(nn.GroupNorm(2, 4))
    save_compact(net, tmp_path / "net.pt")
    loaded = load_compact(tmp_path / "net.pt", build)
    assert torch.equal(loaded(inputs), net(inputs))


class Activated(nn.Module):
    """A network that keeps its activation as a function."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.first, self.last, self.activation = nn.Linear(3, 4), nn.Linear(4, 2), activation

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.activation(self.first(inputs)))


class TestBadFiles:
    """Files that are no compact network, and networks that a file is not of."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        net, inputs = make("mlp-tanh")
        save_compact(compacted(net, inputs), tmp_path / "net.pt")
        return tmp_path / "net.pt"

    @pytest.mark.parametrize("kept", [0, 7, 10, 200, -30])
    def test_truncated(self, file: Path, kept: int) -> None:
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(ReductionError, match="truncated"):
            load_compact(file, NETWORKS["mlp-tanh"][0])

    def test_a_file_that_says_what_it_does_not_hold(self, file: Path) -> None:
        """With a checksum that is right."""
        tensors, description = read_archive(file)
        for change in (
            {"report": {}},
            {"report": {**description["report"], "architecture": [{"children": {"0": 3}}]}},
            {"report": {**description["report"], "architecture": [{"attributes": {"forward": "eval"}}]}},
            {"modules": 7},
            {"modules": {**description["modules"], "9": {"class": "Linear"}}},
            {"extra": {"0.weight": "no tensor"}},
        ):
            write_archive(file, tensors, {**description, **change})
            with pytest.raises(ReductionError):
                load_compact(file, NETWORKS["mlp-tanh"][0])
        for weight in (torch.ones(3), torch.ones(3, 5), torch.ones(len(tensors["0.weight"]), 2)):
            write_archive(file, {**tensors, "0.weight": weight}, description)
            with pytest.raises(ReductionError):
                load_compact(file, NETWORKS["mlp-tanh"][0])
        # Sizes for which there is no memory.
        architecture = [{"children": {"0": {"attributes": {"out_features": 10**12}}}}]
        write_archive(file, tensors, {**description, "report": {**description["report"], "architecture": architecture}})
        with pytest.raises(ReductionError, match="fit|channels"):
            load_compact(file, NETWORKS["mlp-tanh"][0])

    @pytest.mark.parametrize("other", ["lenet-5", "grouped"])
    def test_another_network(self, file: Path, other: str) -> None:
        with pytest.raises(ReductionError, match="compact network|fit"):
            load_compact(file, NETWORKS[other][0])

    @pytest.mark.parametrize(
        ("activation", "match"), [(nn.ReLU, "Tanh"), (partial(nn.ELU, 0.5), "'class': 'Tanh'")], ids=["class", "other"]
    )
    def test_another_activation(self, file: Path, activation: Any, match: str) -> None:
        with pytest.raises(ReductionError, match=match):
            load_compact(file, partial(mlp, activation))

    def test_an_activation_with_another_setting(self, tmp_path: Path) -> None:
        leaky, inputs = mlp(partial(nn.LeakyReLU, 0.1)), torch.randn(2, 5)
        save_compact(compacted(leaky, inputs), tmp_path / "net.pt")
        load_compact(tmp_path / "net.pt", partial(mlp, partial(nn.LeakyReLU, 0.1, inplace=True)))
        with pytest.raises(ReductionError, match="'negative_slope': 0.1.*'negative_slope': 0.2"):
            load_compact(tmp_path / "net.pt", partial(mlp, partial(nn.LeakyReLU, 0.2)))

    def test_another_function(self, tmp_path: Path) -> None:
        functional = nn.functional
        leaky = partial(functional.leaky_relu, negative_slope=0.1)
        for activation, same, others in (
            (functional.relu, torch.relu, (functional.gelu, torch.tanh, leaky)),
            (leaky, copy.copy(leaky), (partial(functional.leaky_relu, negative_slope=0.2), functional.leaky_relu)),
        ):
            save_compact(compacted(Activated(activation), torch.randn(2, 3)), tmp_path / "net.pt")
            load_compact(tmp_path / "net.pt", partial(Activated, same))
            for other in others:
                with pytest.raises(ReductionError, match="'activation'"):
                    load_compact(tmp_path / "net.pt", partial(Activated, other))

    def test_another_activation_in_the_code(self, tmp_path: Path) -> None:
        class Written(Activated):
            def forward(self, inputs: Tensor) -> Tensor:
                return self.last(nn.functional.leaky_relu(self.first(inputs)))

        other, same = type("Written", (Activated,), {}), type("Written", (Activated,), {})
        other.forward = lambda self, inputs: self.last(nn.functional.gelu(self.first(inputs)))
        same.forward = lambda self, inputs: self.last(nn.functional.leaky_relu_(self.first(inputs)))
        save_compact(compacted(Written(None), torch.randn(2, 3)), tmp_path / "net.pt")
        load_compact(tmp_path / "net.pt", partial(same, None))
        with pytest.raises(ReductionError, match=r"\['leakyrelu'\].*\['gelu'\]"):
            load_compact(tmp_path / "net.pt", partial(other, None))

    def test_a_state_that_is_no_plain_data(self, tmp_path: Path) -> None:
        class Stateful(nn.Linear):
            def get_extra_state(self) -> Any:
                return {self}

            def set_extra_state(self, state: Any) -> None:
                pass

        net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Stateful(4, 2))
        with pytest.raises(ReductionError, match="'2._extra_state', a set"):
            save_compact(compacted(net, torch.randn(2, 5)), tmp_path / "net.pt")

    def test_a_network_that_is_not_compact(self, tmp_path: Path) -> None:
        with pytest.raises(ReductionError, match="not been compacted"):
            save_compact(nn.Linear(2, 2), tmp_path / "net.pt")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load_compact(tmp_path / "none.pt", NETWORKS["mlp-tanh"][0])

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Networks are compared on example inputs, and on others like them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, noise_sites
from pyro_bmrs.pruning.examples import (
    Outputs,
    check_example_inputs,
    evaluation,
    one_by_one,
    real_parameter,
    results,
    run,
)


@pytest.mark.parametrize("dtype, rounding, change", [(torch.float32, 1e-7, 1e-4), (torch.float64, 1e-15, 1e-11)])
def test_differences_are_in_units_of_rounding(dtype: torch.dtype, rounding: float, change: float) -> None:
    net, inputs = nn.Linear(3, 2).to(dtype), torch.randn(4, 3, dtype=dtype)
    outputs = Outputs(net, inputs)
    for relative, same in ((0.0, True), (rounding, True), (change, False)):
        other = copy.deepcopy(net)
        with torch.no_grad():
            other.weight.mul_(1 + relative)
        assert (outputs.difference(other) <= 1) is same


def test_examples_that_say_nothing_do_not_hide_a_difference() -> None:
    net = nn.Linear(3, 2)
    outputs = Outputs(net, torch.zeros(1, 3))
    other = copy.deepcopy(net)
    nn.init.normal_(other.weight)
    assert torch.equal(net(torch.zeros(1, 3)), other(torch.zeros(1, 3)))
    assert outputs.difference(other) > 1


@pytest.mark.parametrize(
    "output", [torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, -torch.inf]), torch.ones(0)]
)
def test_outputs_that_are_no_numbers(output: Tensor) -> None:
    class Constant(nn.Module):
        def __init__(self, output: Tensor) -> None:
            super().__init__()
            self.register_buffer("output", output)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.output

    outputs = Outputs(Constant(output), torch.zeros(1))
    assert outputs.difference(Constant(output.clone())) <= 1
    if output.numel():
        assert outputs.difference(Constant(torch.zeros(2))) > 1
    assert outputs.difference(Constant(torch.zeros(3))) > 1


@pytest.mark.parametrize("output", [None, "text", [torch.ones(2, dtype=torch.long)], {}])
def test_networks_that_return_nothing_to_compare(output: Any) -> None:
    class Returns(nn.Module):
        def forward(self, inputs: Tensor) -> Any:
            return output

    with pytest.raises(ReductionError, match="no tensor to compare"):
        check_example_inputs(Returns(), torch.zeros(1))


def test_modes_are_put_back() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    allowed = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError), evaluation(net):
        assert not net[0].training and not torch.backends.mha.get_fastpath_enabled()
        raise RuntimeError
    assert net.training and net[0].training and not net[1].training
    assert torch.backends.mha.get_fastpath_enabled() is allowed


class Scaled(nn.Module):
    """A factor of what it is given, after a batch norm and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(2), nn.Dropout(0.5)

    def forward(self, values: Tensor, factor: float = 1.0) -> Tensor:
        return factor * self.dropout(self.norm(values))


def test_running_a_network_changes_nothing_in_it() -> None:
    net, values = Scaled(), torch.tensor([[3.0, 5.0]])
    expected = values / (1 + net.norm.eps) ** 0.5
    for example_inputs in (values, (values, 1.0), [values], {"factor": 1.0, "values": values}):
        output = run(net, example_inputs)
        torch.testing.assert_close(output, expected)
        assert not output.requires_grad
    assert net.training and net.norm.training and net.norm.num_batches_tracked == 0


def test_hooks_are_there_while_the_network_runs() -> None:
    net, seen = Scaled(), []
    run(net, (torch.ones(1, 2), 3.0), {net.norm: lambda module, args, output: seen.append(args[0])})
    net(torch.zeros(2, 2))
    assert len(seen) == 1 and torch.equal(seen[0], torch.ones(1, 2))
    with pytest.raises(ReductionError, match=r"does not run on example_inputs \(\(1, 3\)\)"):
        run(net, torch.ones(1, 3), {net.norm: lambda *_: None})
    assert not net.norm._forward_hooks and net.training


def test_examples_one_by_one() -> None:
    x, y = torch.arange(6).reshape(3, 2), torch.arange(3.0)
    batches = list(one_by_one({"x": x, "rest": [y, "text"]}))
    assert len(batches) == 3
    for i, batch in enumerate(batches):
        assert torch.equal(batch["x"], x[i : i + 1]) and torch.equal(batch["rest"][0], y[i : i + 1])
        assert batch["rest"][1] == "text"


def test_what_transformers_return_for_their_own_use_is_no_result():
    logits, other = torch.ones(2), torch.zeros(3)
    assert list(results({"logits": logits, "past_key_values": object(), "encoder_last_hidden_state": other})) == [
        "logits"
    ]
    # Where it is all that there is, it is what the network computes.
    assert list(results({"last_hidden_state": logits, "hidden_states": other})) == [
        "last_hidden_state",
        "hidden_states",
    ]
    assert results(logits) is logits


class Spectral(nn.Module):
    """A filter with complex weights, which come first, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8, 6, 4, dtype=torch.cdouble))
        self.first, self.second, self.last = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Any:
        images = torch.fft.irfft2(torch.fft.rfft2(self.first(images).relu()) * self.filter)
        return self.last(self.second(images).relu().mean((2, 3)))


def test_noise_and_factors_are_real_beside_complex_weights() -> None:
    torch.manual_seed(0)
    net, x = Spectral().eval(), torch.randn(2, 1, 6, 6).double()
    for layer in (net.first, net.second, net.last):
        layer.double()
    assert real_parameter(net) is net.first.weight
    expected = copy.deepcopy(net)
    attach_noise(net, example_inputs=x)
    sites = noise_sites(net)
    gates = {name: torch.arange(len(site.noise.kept)).double() % 2 for name, site in sites.items()}
    small = compact_gated(net, gates, sites, x)
    with torch.no_grad():
        for name, layer in {"first": expected.first, "second": expected.second}.items():
            layer.weight *= gates[name][:, None, None, None]
            layer.bias *= gates[name]
    torch.testing.assert_close(small(x), expected(x), rtol=0, atol=1e-12)
    assert small.second.out_channels == 3
    masked = compaction_report(small).masked
    assert set(masked.index.get_level_values("site")) == {"first"} and "fft" in masked["reason"].iloc[0]

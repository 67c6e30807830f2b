# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What the graph of a network says of its steps."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import fx, nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import AutoTruncatedLogNormal, attach_noise, noise_sites
from pyro_bmrs.pruning.noise.graph import Flow, called_name, graphs, is_flattening
from tests.pruning.noise.places import ResNet, Untraceable, encoder, places


def node_of(flow: Flow, target: str) -> fx.Node:
    return next(node for node in flow.graph.nodes if node.target == target)


def test_what_cannot_be_traced_is_read_part_by_part():
    assert places(Untraceable()) == {"body.0": ("body.1", "output", 4, 1), "hidden": ("hidden", "output", 5, 1)}
    net = Untraceable()
    assert [(prefix, module) for prefix, module, _ in graphs(net, ())] == [("body.", net.body)]


def test_torch_s_transformers_are_not_traced():
    assert not list(graphs(encoder()[0].layers[0], ()))
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    assert [(prefix, module) for prefix, module, _ in graphs(net, ())] == [("", net)]


def test_a_value_is_followed_while_it_goes_one_way():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 2))
    ((prefix, module, graph),) = graphs(net, ())
    flow = Flow("net.", module, graph)
    assert prefix == "" and module is net
    first, last = node_of(flow, "0"), node_of(flow, "3")
    assert [flow.called(step) for step in flow.steps(first)][:3] == [net[1], net[2], net[3]]
    assert flow.name(last) == "net.3"
    assert flow.is_last(last) and not flow.is_last(first)
    assert flow.is_weighted(first) and not flow.is_weighted(node_of(flow, "1"))
    assert flow.ancestors[last] == set(graph.nodes) - {last, *last.users}


def test_a_value_that_goes_two_ways_is_not_followed():
    net = ResNet()
    ((_, module, graph),) = graphs(net, ())
    flow = Flow("", module, graph)
    # Into the next block, and past it into the sum.
    relu = node_of(flow, "layers.0.relu")
    assert not flow.is_once(relu)
    stem = node_of(flow, "stem.3")
    assert not list(flow.steps(stem))


@pytest.mark.parametrize(
    ("forward", "flattens"),
    [
        (lambda x: x.flatten(1), True),
        (lambda x: torch.flatten(x, 1), True),
        (lambda x: torch.flatten(x, start_dim=1), True),
        (lambda x: x.flatten(1, 2), False),
        (lambda x: x.flatten(), False),
        (lambda x: x.view(x.size(0), -1), True),
        (lambda x: x.reshape((x.shape[0], -1)), True),
        (lambda x: x.view(-1, 16), False),
        (lambda x: x.permute(0, 2, 3, 1), False),
    ],
)
def test_what_flattens_all_but_the_examples(forward, flattens):
    graph = fx.symbolic_trace(forward).graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    assert is_flattening(output.all_input_nodes[0], None) is flattens


@pytest.mark.parametrize(
    ("module", "flattens"), [(nn.Flatten(), True), (nn.Flatten(0), False), (nn.Flatten(1, 2), False)]
)
def test_modules_that_flatten(module, flattens):
    graph = fx.symbolic_trace(nn.Sequential(module)).graph
    (node,) = (node for node in graph.nodes if node.op == "call_module")
    assert is_flattening(node, module) is flattens


def test_names_of_functions_and_methods():
    graph = fx.symbolic_trace(lambda x: torch.relu(x).tanh() + 1).graph
    assert [called_name(node) for node in graph.nodes if node.op.startswith("call")] == ["relu", "tanh", "add"]


class Remembers(nn.Module):
    """Keeps what it saw, and makes a tensor when it is first called."""

    def __init__(self):
        super().__init__()
        self.hidden, self.act, self.last = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)
        self.seen, self.lazy, self.state = [], None, {"nested": {}}
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if self.lazy is None:
            self.lazy = torch.ones_like(x)
        self.seen.append(x)
        self.state["nested"]["last"] = hidden = self.act(self.hidden(x + self.lazy))
        return self.last(hidden)


def test_tracing_leaves_no_mark_in_the_network():
    net = Remembers()
    attach_noise(net)
    assert (net.seen, net.lazy, net.state, float(net.calls)) == ([], None, {"nested": {}}, 0.0)
    assert noise_sites(net)["hidden"].place == "act"
    AutoTruncatedLogNormal(net)
    assert net.eval()(torch.ones(2, 3)).shape == (2, 2) and isinstance(net.lazy, torch.Tensor)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_network_whose_weights_are_computed_is_traced():
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    net(torch.ones(1, 3))
    assert places(net)["0"][0] == "1"


def test_a_network_that_cannot_be_copied():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net.lock = threading.Lock()
    with pytest.raises(ReductionError, match="Sequential cannot be copied, .*lock"):
        attach_noise(net)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""torch-pruning's graph of which channels go together, and the library itself."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.modules.scaling import Scale
from pyro_bmrs.pruning.examples import call, evaluation
from pyro_bmrs.pruning.layers import is_registered, layer_kind, num_channels, num_groups, take_out

# Once for each set of channels that come by: as many as there are parts of what is split, say.
_MOST_VISITS = 100


def dependency_graph(net: nn.Module, example_inputs: Any) -> Any:
    """
    The dependency graph of torch-pruning, in which multiplications take part.

    :param net: the network.
    :param example_inputs: what it is called with.
    :return: the graph, bound to the modules of ``net``, each parameter of which now requires a gradient.
    :raises ReductionError: for a network that torch-pruning cannot follow.
    :raises ImportError: without torch-pruning.
    """
    # Traced through autograd: a parameter without a gradient would not be seen.
    net.requires_grad_(True)
    with evaluation(net), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning().DependencyGraph()
        try:
            return graph.build_dependency(
                net,
                example_inputs,
                forward_fn=call,
                output_transform=lambda output: [leaf for leaf in tree_leaves(output) if _has_gradient(leaf)],
                customized_pruners=_pruners(net),
                verbose=False,
            )
        except Exception as error:  # of torch-pruning, on operations that it does not know
            raise ReductionError(f"torch-pruning cannot follow the network's channels: {error!r}") from error


def pruning_group(graph: Any, scale: Scale, elements: Sequence[int]) -> Any:
    """
    What torch-pruning takes out with elements of a multiplication.

    :param graph: the dependency graph.
    :param scale: the multiplication.
    :param elements: which.
    :return: torch-pruning's group, which lists dependencies, each with the channels of what depends.
    :raises ReductionError: where it would not come to an end, as it shifts channels by some number each time round.
    """
    visits: Counter[Any] = Counter()
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.is_triggered_by = partial(_is_triggered_by, type(dependency), visits, dependency)
    return graph.get_pruning_group(scale, graph.get_pruner_of_module(scale).prune_out_channels, list(elements))


def _is_triggered_by(kind: Any, visits: Counter[Any], dependency: Any, removal: Any) -> bool:
    """What the method of a dependency says, which is asked once each time that the walk comes by."""
    visits[id(dependency)] += 1
    if visits[id(dependency)] > _MOST_VISITS:
        raise ReductionError("it goes round in circles")
    return bool(kind.is_triggered_by(dependency, removal))


def _has_gradient(leaf: Any) -> bool:
    return torch.is_tensor(leaf) and leaf.requires_grad


def torch_pruning() -> Any:
    """The package torch-pruning, which is optional."""
    try:
        return import_module("torch_pruning")
    except ImportError as error:
        raise ImportError("Compaction needs torch-pruning: pip install pyro_bmrs[pruning]") from error


def _pruners(net: nn.Module) -> dict[type[nn.Module], Any]:
    """For the modules of a network that torch-pruning does not know, what it asks about them, by their own class."""
    pruners: dict[type[nn.Module], Any] = {Scale: _ScalePruner()}
    for layer, kind in {type(module): layer_kind(module) for module in net.modules()}.items():
        if kind is not None and is_registered(kind):
            pruners[layer] = _ChannelwisePruner() if kind.is_channelwise else _LayerPruner()
    return pruners


class _LayerPruner:
    """What torch-pruning asks about layers of the table, and has done to them."""

    pruning_dim: int

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        take_out(layer, "out", idxs)
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        take_out(layer, "in", idxs)
        return layer

    def get_out_channels(self, layer: nn.Module) -> int | None:
        return num_channels(layer, "out")

    def get_in_channels(self, layer: nn.Module) -> int | None:
        return num_channels(layer, "in")

    def get_out_channel_groups(self, layer: nn.Module) -> int:
        return num_groups(layer)

    get_in_channel_groups = get_out_channel_groups


class _ChannelwisePruner(_LayerPruner):
    """Where the same function takes out inputs and outputs, torch-pruning knows that they are the same channels."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        take_out(layer, "through", idxs)
        return layer

    prune_in_channels = prune_out_channels


class _ScalePruner:
    """What torch-pruning asks about multiplications, and has done to them."""

    pruning_dim: int

    def prune_out_channels(self, layer: Scale, idxs: Sequence[int]) -> Scale:
        if layer.dim is not None:
            kept = torch.ones_like(layer.factor, dtype=torch.bool)
            kept[list(idxs)] = False
            layer.factor = layer.factor[kept]
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Scale) -> int | None:
        return None if layer.dim is None else len(layer.factor)

    get_in_channels = get_out_channels

    def get_out_channel_groups(self, layer: Scale) -> int:
        return 1

    get_in_channel_groups = get_out_channel_groups

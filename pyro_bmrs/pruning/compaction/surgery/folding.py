# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Multiplications folded into the weights beside them.

A multiplication of what a layer with weights returns, or of what a ReLU or a pooling makes of that, goes back into
those weights. Any other goes forward, through all that commutes with it, into the weights of the linear and
convolutional layers that come next. To find both, each element's index, and the layer that a tensor is of, travel
through a call of the network.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_bmrs.pruning.compaction.modules.scaling import Scale, scales_of, unwrap
from pyro_bmrs.pruning.compaction.surgery.attempts import most_that_work
from pyro_bmrs.pruning.compaction.surgery.elements import (
    CONVOLUTIONS,
    FunctionCall,
    Mixed,
    commutes,
    function_name,
    indices_after,
    only_indices,
    require,
    same_along,
)
from pyro_bmrs.pruning.examples import Outputs, call, evaluation
from pyro_bmrs.pruning.layers import beside_weight, channel_dim, is_registered, layer_kind


def fold(net: nn.Module, example_inputs: Any, outputs: Outputs) -> tuple[nn.Module, dict[str, str]]:
    """
    Folds a network's multiplications into its weights.

    :param net: a network with multiplications; left as it is.
    :param example_inputs: what it is called with.
    :param outputs: its outputs, which do not change.
    :return: the network without those multiplications that can be folded, and for the names of the others why not.
    """
    flow = _Flow(net, example_inputs)
    obstacles = {name: flow.obstacle(scale) for name, scale in scales_of(net).items()}
    foldable = [name for name, obstacle in obstacles.items() if obstacle is None]

    def folded(names: Sequence[str]) -> nn.Module:
        copy = deepcopy(net)
        flow = _Flow(copy, example_inputs)
        scales = scales_of(copy)
        for name in names:
            flow.fold(scales[name])
        return copy

    smaller, failed = most_that_work(foldable, folded, outputs)
    obstacles.update((foldable[place], reason) for place, reason in failed.items())
    return smaller, {name: obstacle for name, obstacle in obstacles.items() if obstacle is not None}


@dataclass(frozen=True)
class _Source:
    """
    The layer that a tensor is of.

    :param parameters: its weight, and its bias if it has one; each with what arranges factors of the outputs beside it.
    :param dim: the dimension of the tensor that counts the outputs.
    :param path: identities of the tensors from the layer's result to this one.
    """

    parameters: tuple[tuple[nn.Parameter, Callable[[Tensor], Tensor]], ...]
    dim: int
    path: tuple[int, ...]


class _Flow(TorchFunctionMode):
    """
    Where each multiplied element goes, in one call of the network.

    :param net: the network.
    :param example_inputs: what it is called with.
    """

    def __init__(self, net: nn.Module, example_inputs: Any) -> None:
        super().__init__()
        self._net = net
        # By the identity of a tensor, which is kept alive: for each multiplication, the index of each of its elements.
        self._indices: dict[int, dict[Scale, Tensor]] = defaultdict(dict)
        self._alive: list[Tensor] = []
        self._uses: Counter[int] = Counter()
        # By the identity of a tensor: the layer that it is of, through steps that commute with multiplications.
        self._sources: dict[int, _Source] = {}
        self._obstacles: dict[Scale, str] = {}
        self._begun: set[Scale] = set()
        self._columns: dict[Scale, list[tuple[nn.Parameter, Callable[[Tensor], Tensor], Tensor]]] = defaultdict(list)
        self._sources_of: dict[Scale, _Source] = {}
        # A layer of a registered kind is followed as one step, whatever functions it calls.
        self._is_inside = False
        registered = [module for module in net.modules() if _is_one_step(module)]
        with evaluation(net), torch.no_grad(), ExitStack() as hooks:
            for scale in scales_of(net).values():
                hooks.callback(scale.register_forward_hook(self._begin).remove)
            for module in registered:
                hooks.callback(module.register_forward_pre_hook(self._enter).remove)
                hooks.callback(module.register_forward_hook(self._leave).remove)
            self._alive += [*net.parameters(), *net.buffers()]
            with self:
                output = call(net, example_inputs)
        for leaf in tree_leaves(output):
            for scale in self._indices.get(id(leaf), ()):
                self._obstacles.setdefault(scale, "the network returns what it multiplies")

    def obstacle(self, scale: Scale) -> str | None:
        """Why a multiplication cannot be folded, if it cannot."""
        if scale not in self._begun:
            return "it is called in training alone"
        if self._has_own_weights(scale):
            return None
        columns = self._columns[scale]
        # Weights that are used more than once may be given the same products each time, as in each step of a loop.
        times, first = (
            Counter(id(weight) for weight, _, _ in columns),
            {id(w): indices for w, _, indices in reversed(columns)},
        )
        shared = any(self._uses[weight] > count for weight, count in times.items())
        shared = shared or any(not torch.equal(indices, first[id(weight)]) for weight, _, indices in columns)
        return self._obstacles.get(scale) or ("the weights that come next are used for more" if shared else None)

    @torch.no_grad()
    def fold(self, scale: Scale) -> None:
        """Folds a multiplication, and takes it out of the network."""
        if self._has_own_weights(scale):
            for parameter, arrange in self._sources_of[scale].parameters:
                parameter.mul_(arrange(scale.factor))
        else:
            factors = torch.cat([scale.factor, scale.factor.new_ones(1)])
            for weight, arrange, indices in {id(column[0]): column for column in self._columns[scale]}.values():
                weight.mul_(arrange(factors[indices]))
        unwrap(self._net, scale)

    def _has_own_weights(self, scale: Scale) -> bool:
        """Whether what is multiplied comes from one layer alone, and goes nowhere else on its way."""
        source = self._sources_of.get(scale)
        if source is None:
            return False
        used = [*source.path, *(id(parameter) for parameter, _ in source.parameters)]
        return all(self._uses[key] == 1 for key in used)

    def _begin(self, scale: Scale, args: Any, output: Tensor) -> None:
        self._begun.add(scale)
        indices = torch.arange(len(scale.factor), device=output.device)
        self._follow(output, scale, scale.along(indices, output).expand(output.shape))
        source = self._sources.get(id(args[0]))
        if source is not None and (scale.dim is None or scale.dim % output.dim() == source.dim):
            self._sources_of[scale] = source

    def _enter(self, layer: nn.Module, args: Any) -> None:
        self._is_inside = True

    def _leave(self, layer: Any, args: Any, output: Tensor) -> None:
        """Notes the weights of a registered layer that its input's elements come to, and that its output is of."""
        self._is_inside = False
        bias = getattr(layer, "bias", None)
        self._uses.update(map(id, [*args[:1], layer.weight, *([] if bias is None else [bias])]))
        is_plain = all(isinstance(tensor, nn.Parameter) for tensor in (layer.weight, bias) if tensor is not None)
        for scale, indices in self._indices.get(id(args[0]), {}).items():
            try:
                require(is_plain)
                channels = _channels(indices, channel_dim(layer, args[0]))
                self._columns[scale].append((layer.weight, partial(beside_weight, layer, "in"), channels))
            except Mixed:
                self._obstacles.setdefault(scale, f"{type(layer).__name__} comes between it and the next weights")
        if is_plain:
            parts = [(layer.weight, partial(beside_weight, layer, "out"))]
            parts += [] if bias is None else [(bias, partial(_along_rows, bias))]
            self._uses[id(output)] = 0
            self._sources[id(output)] = _Source(tuple(parts), channel_dim(layer, output), (id(output),))
            self._alive.append(output)

    def _follow(self, tensor: Tensor, scale: Scale, indices: Tensor) -> None:
        self._indices[id(tensor)][scale] = indices
        self._alive.append(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, and follows the elements through it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._is_inside:
            return result
        done = FunctionCall(function_name(func, kwargs), func, args, kwargs, result)
        if done.is_question:
            return result
        self._trace_back(done)
        for scale in {scale: None for tensor in done.tensors for scale in self._indices.get(id(tensor), ())}:
            try:
                self._follow_through(done, scale)
            except Mixed:
                self._obstacles.setdefault(scale, f"{done.name} comes between it and the next weights")
        return result

    def _follow_through(self, done: FunctionCall, scale: Scale) -> None:
        """Notes the indices of the elements of a function's result, or the weights that it brings them to."""

        def indices_of(tensor: Any) -> Tensor | None:
            return self._indices.get(id(tensor), {}).get(scale)

        if done.name == "linear" or done.name in CONVOLUTIONS:
            indices = only_indices(done, indices_of)
            self._columns[scale].append(_columns(done.name, indices, *done.args[1:], **done.kwargs))
            return
        after = indices_after(done, indices_of)
        for tensor, indices in zip(tree_leaves(done.result), tree_leaves(after)):
            if indices is not None and tensor.is_floating_point():
                self._follow(tensor, scale, indices)

    def _trace_back(self, done: FunctionCall) -> None:
        """Notes uses of tensors, and the layer that a function's result is of."""
        tensors, result = done.tensors, done.result
        first = tensors[0] if tensors else None
        source = self._sources.get(id(first))
        in_place = first is result
        if source is not None and commutes(done):
            source = replace(source, path=source.path if in_place else (*source.path, id(result)))
        else:
            source = _source(done)
            in_place = False
        self._uses.update(id(tensor) for tensor in tensors if not (in_place and tensor is first))
        for tensor in tree_leaves(result):
            self._sources.pop(id(tensor), None)
        if source is not None:
            if not in_place:
                self._uses[id(result)] = 0
            self._sources[id(result)] = source
            self._alive.append(result)


def _columns(
    name: str, indices: Tensor, weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any
) -> tuple[nn.Parameter, Callable[[Tensor], Tensor], Tensor]:
    """The weights that a multiplication reaches, how to arrange factors beside them, and the index of each channel."""
    require(isinstance(weight, nn.Parameter))
    spatial = weight.dim() - 2
    channels = _channels(indices, indices.dim() - 1 - spatial)

    def arrange(factors: Tensor) -> Tensor:
        if "transpose" in name:
            return factors.reshape(-1, *[1] * (spatial + 1))
        # (groups, outputs of a group, inputs of a group)
        groups = len(factors) // weight.shape[1]
        beside = factors.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1)
        return beside.reshape(*weight.shape[:2], *[1] * spatial)

    return weight, arrange, channels


def _is_one_step(module: nn.Module) -> bool:
    kind = layer_kind(module)
    return kind is not None and is_registered(kind) and kind.has_units


def _channels(indices: Tensor, dim: int) -> Tensor:
    """The index of each channel, which are counted by one dimension."""
    return same_along(indices, [other for other in range(indices.dim()) if other != dim]).flatten()


def _along_rows(parameter: Tensor, factors: Tensor) -> Tensor:
    return factors.reshape(-1, *[1] * (parameter.dim() - 1))


def _source(done: FunctionCall) -> _Source | None:
    """The layer that a result is of, if a layer's it is."""
    parameters = tuple(tensor for tensor in done.tensors if isinstance(tensor, nn.Parameter))
    if not parameters or not torch.is_tensor(done.result):
        return None
    if done.name == "linear" or done.name in CONVOLUTIONS:
        # A weight or bias that is computed is no layer's.
        if [id(parameter) for parameter in parameters] != [id(tensor) for tensor in done.tensors[1:]]:
            return None
        dim = done.result.dim() - 1 if done.name == "linear" else done.result.dim() + 1 - parameters[0].dim()
        return None if "transpose" in done.name else _source_of_rows(parameters, dim, done.result)
    if done.name == "layer_norm" and parameters[0].dim() == 1:
        return _source_of_rows(parameters, done.result.dim() - 1, done.result)
    is_norm = done.name in ("batch_norm", "group_norm", "instance_norm")
    return _source_of_rows(parameters, 1, done.result) if is_norm else None


def _source_of_rows(parameters: Sequence[nn.Parameter], dim: int, result: Tensor) -> _Source:
    parts = tuple((parameter, partial(_along_rows, parameter)) for parameter in parameters)
    return _Source(parts, dim, (id(result),))

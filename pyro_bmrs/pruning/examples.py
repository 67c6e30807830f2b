# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Example inputs of a network: how it is run on them, and whether two networks agree on them.

They are one tensor, a sequence of positional arguments, or a mapping of keyword arguments, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_bmrs.errors import ReductionError

# Largest difference of two outputs that are the same but for rounding, relative to the output's scale.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# What transformers return beside their logits.
_BESIDE = frozenset(
    "past_key_values mems encoder_last_hidden_state hidden_states attentions encoder_hidden_states encoder_attentions "
    "decoder_hidden_states decoder_attentions cross_attentions".split()
)


def call(net: Callable[..., Any], example_inputs: Any) -> Any:
    """The network's output: of one tensor, of a sequence of positional arguments, or of a mapping of keyword ones."""
    # Copies, as some networks write to what they are given.
    return invoke(net, tree_map_only(Tensor, Tensor.clone, example_inputs))


def invoke(net: Callable[..., Any], inputs: Any) -> Any:
    """As :func:`call`, with the tensors themselves."""
    if isinstance(inputs, Mapping):
        return net(**inputs)
    return net(*inputs) if isinstance(inputs, tuple | list) else net(inputs)


@contextmanager
def evaluation(net: nn.Module, *, fused: bool = False) -> Iterator[nn.Module]:
    """
    The network in evaluation mode.

    :param net: the network.
    :param fused: whether torch's transformers may take the fused path of evaluation, which calls no submodules.
    """
    modes = [(module, module.training) for module in net.modules()]
    allowed = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(allowed and fused)
    net.eval()
    try:
        yield net
    finally:
        torch.backends.mha.set_fastpath_enabled(allowed)
        for module, mode in modes:
            module.training = mode


@contextmanager
def paths_of_training(net: nn.Module) -> Iterator[nn.Module]:
    """
    The network in evaluation mode, but that it calls what it calls in training, such as auxiliary classifiers.

    Those modules that are made of others are in training mode, and layers are not: nothing is dropped or counted.
    """
    with evaluation(net):
        for module in net.modules():
            module.training = any(True for _ in module.children())
        yield net


def failure_in_training(net: nn.Module, example_inputs: Any) -> str | None:
    """Why what a network calls in training does not run on the inputs, which may be too small, or want labels."""
    try:
        with paths_of_training(net), torch.no_grad():
            call(net, example_inputs)
    # Whatever it lacks, it is said where the network is called for its own sake.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def run(net: nn.Module, example_inputs: Any, hooks: Mapping[nn.Module, Callable[..., Any]] | None = None) -> Any:
    """
    Runs a network on example inputs in evaluation mode, so that nothing in it changes, and without gradients.

    :param net: the network.
    :param example_inputs: a tensor, a sequence of positional arguments, or a mapping of keyword ones.
    :param hooks: forward hooks on modules of the network, for as long as it runs.
    :return: its output.
    :raises ReductionError: if the network raises.
    """
    with evaluation(net), torch.no_grad(), ExitStack() as registered:
        for module, hook in (hooks or {}).items():
            registered.callback(module.register_forward_hook(hook).remove)
        try:
            return call(net, example_inputs)
        except Exception as error:
            tensors = filter(torch.is_tensor, tree_leaves(example_inputs))
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ReductionError(
                f"the network does not run on example_inputs ({shapes or 'no tensor'}): {error}. Pass what it is "
                "called with: a tensor, a tuple of positional arguments, or a mapping of keyword arguments."
            ) from error


def one_by_one(inputs: Any) -> Iterator[Any]:
    """The examples of a batch as batches of one; each tensor has them along its first dimension."""
    sizes = [len(leaf) for leaf in tree_leaves(inputs) if torch.is_tensor(leaf)]
    for example in range(sizes[0] if sizes else 0):
        yield tree_map_only(Tensor, partial(_slice, example), inputs)


def _slice(example: int, tensor: Tensor) -> Tensor:
    return tensor[example : example + 1]


def map_floating(function: Callable[[Tensor], Tensor], example_inputs: Any) -> Any:
    """The inputs with a function applied to each tensor of real numbers."""
    return tree_map_only(Tensor, lambda value: function(value) if value.is_floating_point() else value, example_inputs)


def check_example_inputs(net: nn.Module, example_inputs: Any) -> None:
    """
    Raises what a user can mend if the network does not run on the inputs.

    :raises ReductionError: if the network raises, or returns no tensor of real numbers.
    """
    output = run(net, example_inputs)
    if not _floating(output):
        raise ReductionError(
            f"the network returns {type(output).__name__}, in which there is no tensor to compare; wrap it in a module "
            "that returns tensors, or tuples, lists or mappings of them"
        )


def copy_network(net: nn.Module) -> nn.Module:
    """
    A copy of a network; tensors that were computed, as old norms of weights keep them, are copied too.

    :raises ReductionError: if it cannot be copied.
    """
    computed = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    try:
        return deepcopy(net, {id(value): value.detach().clone() for value in computed if not value.is_leaf})
    # Whatever stands in the way of a copy says so in its own way.
    except Exception as error:
        raise ReductionError(f"{type(net).__name__} cannot be copied, and stays as it is: {error}") from error


class Outputs:
    """
    What a network computes, to compare others with: on the example inputs, and on random ones of the same moments.

    The random inputs are there for examples that say little, such as zeros.

    :param net: the network, run on the path of training; others are run as users do.
    :param example_inputs: a tensor, a sequence of positional arguments, or a mapping of keyword ones.
    """

    def __init__(self, net: nn.Module, example_inputs: Any) -> None:
        generator = torch.Generator().manual_seed(0)

        def redraw(values: Tensor) -> Tensor:
            if not values.numel() or not values.isfinite().all():
                return values
            noise = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)
            scale = values.std() if values.numel() > 1 else values.new_zeros(())
            return values.mean() + torch.where(scale > 0, scale, 1.0) * noise

        self._inputs = [example_inputs]
        self._outputs = self._of(net, fused=False)
        redrawn = map_floating(redraw, example_inputs)
        try:
            self._outputs += _floating(run(net, redrawn))
        except ReductionError:  # of a network that refuses inputs of another kind: the examples alone have to do
            return
        self._inputs.append(redrawn)

    def _of(self, net: nn.Module, *, fused: bool) -> list[Tensor]:
        with evaluation(net, fused=fused), torch.no_grad():
            return [output for inputs in self._inputs for output in _floating(call(net, inputs))]

    def difference(self, net: nn.Module) -> float:
        """
        The largest difference of another network's outputs, relative to their scale, in units of what rounding allows.

        :raises RuntimeError: if the other network does not run.
        """
        others = self._of(net, fused=True)
        if [output.shape for output in others] != [output.shape for output in self._outputs]:
            return torch.inf
        return max(map(_difference, self._outputs, others))


def real_parameter(*modules: nn.Module) -> Tensor:
    """The first real parameter of modules: new tensors have its device and precision, not those of a complex one."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return next((parameter for parameter in parameters if parameter.is_floating_point()), parameters[0])


def results(output: Any) -> Any:
    """
    What a network predicts: of a mapping with logits all but what transformers return beside them for their own use,
    such as caches, whose sizes are those of what is inside the network.
    """
    if isinstance(output, Mapping) and "logits" in output:
        return {key: value for key, value in output.items() if key not in _BESIDE}
    return output


def _floating(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(results(output)) if torch.is_tensor(leaf) and leaf.is_floating_point()]


def _difference(output: Tensor, other: Tensor) -> float:
    if not output.numel():
        return 0.0
    same = (output == other) | (output.isnan() & other.isnan())
    scale = torch.where(output.isfinite(), output.abs(), 0.0).max()
    difference = torch.where(same, 0.0, (output - other).abs()).max() / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return difference.nan_to_num(nan=torch.inf).item() / TOLERANCE[output.dtype]

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Compact networks in files: their weights, and how they differ from the network that they were made of, as plain data.

Nothing in a file is code, and loading one runs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import iscode, isfunction, ismethod, isroutine, unwrap
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.architecture import is_plain, rebuild
from pyro_bmrs.pruning.compaction.archive import read_archive, write_archive
from pyro_bmrs.pruning.compaction.modules.recurrence import has_its_sizes, is_layer_or_cell
from pyro_bmrs.pruning.compaction.modules.scaling import scales_of
from pyro_bmrs.pruning.compaction.reporting.report import CompactionReport, compaction_report
from pyro_bmrs.pruning.examples import copy_network, real_parameter
from pyro_bmrs.pruning.layers import layer_kind, num_channels, num_groups, weight_rows

# Without those of attentions, which move between functions as libraries change, and compute the same.
_ACTIVATIONS = frozenset(
    name for name in map(str.lower, nn.modules.activation.__all__) if "softm" not in name and "attention" not in name
)


def save_compact(net: nn.Module, path: str | PathLike[str]) -> None:
    """
    Saves a compact network, for :func:`load_compact`, as safetensors with a description and a checksum.

    The file is whole or not there: one that was at its place stays until then, whatever interrupts.

    :param net: what :func:`~pyro_bmrs.pruning.compact` returned, perhaps trained since.
    :param path: the file.
    :raises ReductionError: for a network that was not compacted, or whose state holds what is neither tensors nor
        plain data.
    :raises ImportError: without safetensors.

    Example::

        >>> import tempfile
        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, compact_gated, detach_noise, load_compact
        >>> from pyro_bmrs.pruning import noise_sites, save_compact
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> gates = {"0": torch.tensor([0.0, 1.0, 0.5, 0.0])}
        >>> small = compact_gated(net, gates, noise_sites(net), torch.ones(1, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_compact(small, f"{folder}/small.safetensors")
        ...     load_compact(f"{folder}/small.safetensors", detach_noise(net))[0]
        Linear(in_features=3, out_features=2, bias=True)
    """
    report, state = compaction_report(net), net.state_dict()
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in extra.items():
        if not is_plain(value):
            raise ReductionError(
                f"the network's state holds {name!r}, a {type(value).__name__}, which is no plain data"
            )
    tensors = {name: value for name, value in state.items() if name not in extra}
    beside = _beside_state(net)
    description = {"report": report.as_data(), "extra": extra, "beside": sorted(beside), "modules": _kinds(net)}
    write_archive(path, {**tensors, **beside}, description)


def load_compact(path: str | PathLike[str], net: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """
    Loads a compact network.

    Nothing in a file is code. Of what a network's own forward computes between its modules, the names of activations
    are compared, and nothing else can be.

    :param path: a file that :func:`save_compact` wrote.
    :param net: the network that was compacted, without noise and with any weights, or what makes one; a given network
        is left as it is.
    :return: the compact network.
    :raises ReductionError: for a file that is truncated, changed or another kind of file, or a network of another
        architecture: with other modules (as an activation of another kind, or with other settings), with other
        functions as attributes of its modules or activations in their code, or other weights.
    :raises ImportError: without safetensors.

    Example::

        >>> import copy, tempfile, torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning.compaction import compact_gated
        >>> from pyro_bmrs.pruning import attach_noise, detach_noise, load_compact, noise_sites, save_compact
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> smaller = compact_gated(net, {"0": torch.tensor([0.0, 1.0, 0.5, 0.0])}, noise_sites(net), torch.ones(1, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_compact(smaller, f"{folder}/net.pt")
        ...     loaded = load_compact(f"{folder}/net.pt", detach_noise(net))
        >>> loaded
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): Tanh()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    tensors, description = read_archive(path)
    fresh = copy_network(net) if isinstance(net, nn.Module) else net()
    try:
        return _restored(fresh, tensors, description)
    except ReductionError as error:
        raise ReductionError(f"{path} does not fit this {type(fresh).__name__}: {error}") from error
    # A file with a checksum may still say anything.
    except Exception as error:
        raise ReductionError(
            f"{path} does not describe a compact {type(fresh).__name__}: {type(error).__name__}: {error}"
        ) from error


def _restored(fresh: nn.Module, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> nn.Module:
    """The compact network that a file holds, of the network that was compacted."""
    report = CompactionReport.from_data(description["report"])
    compact = fresh
    for change in report.architecture:
        compact = rebuild(compact, change)
    _compare_kinds(compact, description["modules"])
    # New multiplications are in the precision, and where, the weights are.
    like = real_parameter(compact)
    for scale in scales_of(compact).values():
        scale.to(like.device, like.dtype)
    fit_shapes(compact, tensors)
    # Some modules ask of which version their state is: that of the network is in what it would save.
    state = compact.state_dict()
    for name in [*state]:
        del state[name]
    beside = {name: tensors[name] for name in description.get("beside", ())}
    state.update({name: value for name, value in tensors.items() if name not in beside}, **description["extra"])
    own = _beside_state(compact)
    if beside.keys() - own.keys():
        raise ReductionError(f"this network has no buffers {sorted(beside.keys() - own.keys())[:5]}")
    for name, value in beside.items():
        own[name].copy_(value)
    try:
        compact.load_state_dict(state)
    except RuntimeError as error:
        raise ReductionError(str(error)) from error
    _check_counts(compact)
    vars(compact)["compaction"] = report
    return compact


def _beside_state(net: nn.Module) -> dict[str, Tensor]:
    """The buffers that are in no state, as what is made anew with the network; of fewer channels it is not the same."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in net.named_modules()
        for key, buffer in module._buffers.items()
        if buffer is not None and key in module._non_persistent_buffers_set
    }


def _check_counts(net: nn.Module) -> None:
    """
    Sees that layers are as wide as they say.

    :raises ReductionError: if not.
    """
    for name, module in net.named_modules():
        if is_layer_or_cell(module) and not has_its_sizes(module):
            raise ReductionError(f"the file has weights of other sizes than the {type(module).__name__} {name!r}")
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if layer_kind(module) is None or not isinstance(weight, Tensor):
            continue
        rows = weight_rows(module)
        widths = [("out", rows.shape[0])]
        widths += [("in", rows.shape[1] * num_groups(module))] if rows.dim() > 1 else []
        widths += [("out", bias.shape[0])] if isinstance(bias, Tensor) else []
        for side, width in widths:
            if num_channels(module, side) not in (None, width):
                raise ReductionError(
                    f"the {type(module).__name__} {name!r} has {num_channels(module, side)} channels on its side "
                    f"{side!r}, and the file has weights for {width}"
                )


def _kinds(net: nn.Module) -> dict[str, Any]:
    """
    The class of each module, and the settings by which what it computes can differ: the activations that its code
    names, the functions that it keeps as attributes, and for torch's own modules plain data.
    """
    return {
        name: {
            "class": type(module).__name__,
            "activations in its code": _activations(type(module)),
            **_functions(module),
            **_settings(module),
        }
        for name, module in net.named_modules()
    }


def _activations(kind: type[nn.Module]) -> list[str]:
    """The activations that methods of the user's own modules name, in place or not."""
    methods = [
        method
        for base in kind.__mro__
        if issubclass(base, nn.Module) and not base.__module__.startswith(("torch.", "pyro_bmrs."))
        for name, method in vars(base).items()
        if isfunction(method) and name != "__init__"
    ]
    written = [getattr(unwrap(method), "__code__", None) for method in methods]
    codes, named = [code for code in written if code is not None], set[str]()
    for code in codes:
        named.update(name.replace("_", "").lower() for name in code.co_names)
        codes.extend(inner for inner in code.co_consts if iscode(inner))
    return sorted(named & _ACTIVATIONS)


def _functions(module: nn.Module) -> dict[str, Any]:
    found = {name: _named(value) for name, value in vars(module).items() if not name.startswith("_")}
    return {name: called for name, called in found.items() if called is not None and name != "forward"}


def _named(function: Any) -> Any:
    """A function as plain data; None for what is none, or has no name."""
    if isinstance(function, partial):
        given = (*function.args, *sorted(function.keywords.items()))
        return (_named(function.func), *given) if is_plain(given) else _named(function.func)
    is_function = isroutine(function) and not ismethod(function)
    return getattr(function, "__name__", None) if is_function else None


def _settings(module: nn.Module) -> dict[str, Any]:
    if not type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.modules.dropout._DropoutNd):
        return {}
    named = {name: value for name, value in vars(module).items() if not name.startswith("_") and is_plain(value)}
    return {name: value for name, value in named.items() if name not in ("training", "inplace")}


def _compare_kinds(net: nn.Module, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Sees that a network has the modules that were saved.

    :raises ReductionError: if not.
    """
    present = _kinds(net)
    if present.keys() != saved.keys():
        other = sorted(present.keys() ^ saved.keys())
        raise ReductionError(f"the compact network and this one do not both have the modules {other[:5]}")
    for name, own in present.items():
        # Other versions of torch may have other settings besides.
        different = [key for key in own.keys() & saved[name].keys() if own[key] != saved[name][key]]
        if different:
            was, here = ({key: kind[key] for key in different} for kind in (saved[name], own))
            raise ReductionError(
                f"the module {name!r} of the compact network was of {was}, and this one's is of {here}"
            )


def fit_shapes(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives a network's parameters and buffers the shapes that they have in a state, and biases where it had none."""
    for name, value in state.items():
        parent, _, attribute = name.rpartition(".")
        try:
            module = net.get_submodule(parent)
        except AttributeError:
            continue  # What does not belong, load_state_dict names.
        present = getattr(module, attribute, None)
        if attribute in module._parameters and (present is None or present.shape != value.shape):
            requires_grad = present is None or present.requires_grad
            setattr(module, attribute, nn.Parameter(_sized(present, value), requires_grad=requires_grad))
        elif attribute in module._buffers and present is not None and present.shape != value.shape:
            module._buffers[attribute] = _sized(present, value)


def _sized(present: Tensor | None, value: Tensor) -> Tensor:
    return torch.empty_like(value) if present is None else present.new_empty(value.shape)

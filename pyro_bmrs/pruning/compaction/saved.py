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
from pyro_bmrs.pruning.compaction.archive import read_archive, write_archive
from pyro_bmrs.pruning.compaction.modules.attention import Attention
from pyro_bmrs.pruning.compaction.modules.bypass import Bypass, Zeros
from pyro_bmrs.pruning.compaction.modules.gated_norm import GatedNorm
from pyro_bmrs.pruning.compaction.modules.plain import fix_weights, has_computed_weights
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled, scales_of
from pyro_bmrs.pruning.compaction.modules.shared_positions import SharedPositions
from pyro_bmrs.pruning.compaction.report import CompactionReport, compaction_report
from pyro_bmrs.pruning.examples import copy_network
from pyro_bmrs.pruning.layers import layer_kind, num_channels, num_groups, weight_rows
from pyro_bmrs.pruning.streams.norms import UnevenGroupNorm

_PLAIN = (bool, int, float, str, type(None))
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
    """
    report, state = compaction_report(net), net.state_dict()
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in extra.items():
        if not _is_plain(value):
            raise ReductionError(
                f"the network's state holds {name!r}, a {type(value).__name__}, which is no plain data"
            )
    tensors = {name: value for name, value in state.items() if name not in extra}
    write_archive(path, tensors, {"report": report.as_data(), "extra": extra, "modules": _kinds(net)})


def load_compact(path: str | PathLike[str], net: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """
    Loads a compact network.

    Nothing in a file is code. Of what a network's own forward computes between its modules, the names of activations
    are compared, and nothing else can be.

    :param path: a file that :func:`save_compact` wrote.
    :param net: the network that was compacted, without noise and with any weights, or what makes one; a given network
        is left as it is.
    :return: the compact network.
    :raises ReductionError: for a file that is truncated, changed, or none of these, or a network of another
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
    like = next(compact.parameters())
    for scale in scales_of(compact).values():
        scale.to(like.device, like.dtype)
    fit_shapes(compact, tensors)
    # Some modules ask of which version their state is: that of the network is in what it would save.
    state = compact.state_dict()
    for name in [*state]:
        del state[name]
    state.update(tensors, **description["extra"])
    try:
        compact.load_state_dict(state)
    except RuntimeError as error:
        raise ReductionError(str(error)) from error
    _check_counts(compact)
    vars(compact)["compaction"] = report
    return compact


def _check_counts(net: nn.Module) -> None:
    """
    Sees that layers are as wide as they say.

    :raises ReductionError: if not.
    """
    for name, module in net.named_modules():
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
        return (_named(function.func), *given) if _is_plain(given) else _named(function.func)
    is_function = isroutine(function) and not ismethod(function)
    return getattr(function, "__name__", None) if is_function else None


def _settings(module: nn.Module) -> dict[str, Any]:
    if not type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.modules.dropout._DropoutNd):
        return {}
    named = {name: value for name, value in vars(module).items() if not name.startswith("_") and _is_plain(value)}
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


def describe(old: nn.Module, new: nn.Module) -> dict[str, Any]:
    """
    How a module differs from the one that it was made of, as plain data.

    :param old: what it was made of.
    :param new: the module.
    :return: what :func:`rebuild` makes one of the other by; empty for no difference but in shapes of tensors.
    """
    if isinstance(old, Scaled) and not isinstance(new, Scaled):
        return {"unscaled": True, **describe(old.module, new)}
    if isinstance(new, Scaled) and not isinstance(old, Scaled):
        return {"scaled": new.when, "dim": new.scale.dim, "module": describe(old, new.module)}
    if isinstance(new, GatedNorm) and not isinstance(old, GatedNorm):
        return {"gated_norm": new.dim, "module": describe(old, new.module)}
    if isinstance(new, UnevenGroupNorm) and not isinstance(old, UnevenGroupNorm):
        return {"uneven_groups": list(new.sizes), "eps": new.eps, "affine": new.affine}
    if isinstance(new, nn.GroupNorm) and isinstance(old, UnevenGroupNorm):
        return {"even_groups": True, **describe(_even(old), new)}
    if isinstance(new, Scale) and not isinstance(old, Scale):
        return {"scale": True, "dim": new.dim}
    if isinstance(new, Attention) and isinstance(old, nn.MultiheadAttention):
        plain = Attention.of(old)
        return {"attention": True, **describe(plain, new)}
    if isinstance(new, SharedPositions) and not isinstance(old, SharedPositions):
        return {"shared_positions": True, **describe(SharedPositions.of(old), new)}
    if isinstance(new, Zeros | nn.Identity) and type(old) is not type(new):
        return {"zeros": True} if isinstance(new, Zeros) else {"identity": True}
    if isinstance(new, Bypass):
        return {"bypass": [new.num_results, new.batch_first]}
    had_computed_weights = has_computed_weights(old) and not has_computed_weights(new)
    attributes = {
        name: value
        for name, value in vars(new).items()
        if not name.startswith("_") and name != "training" and _is_plain(value) and vars(old).get(name) != value
    }
    children = {name: describe(old.get_submodule(name), child) for name, child in new.named_children()}
    changed = {name: description for name, description in children.items() if description}
    parts = {"had_computed_weights": had_computed_weights, "attributes": attributes, "children": changed}
    return {name: part for name, part in parts.items() if part}


def rebuild(module: nn.Module, description: Mapping[str, Any]) -> nn.Module:
    """
    Changes a module into one that :func:`describe` described, in place as far as its type stays.

    :param module: what the described module was made of.
    :param description: how it differs.
    :return: a module of the described architecture, with tensors of the former shapes.
    :raises ReductionError: for a module that the description is not of.
    """
    if "unscaled" in description:
        if not isinstance(module, Scaled):
            raise ReductionError(f"the compact network had a multiplication, not a {type(module).__name__}")
        module = module.module
    if "scaled" in description:
        scale = Scale(torch.ones(1), description["dim"])
        return Scaled(rebuild(module, description["module"]), scale, description["scaled"])
    if "gated_norm" in description:
        return GatedNorm(rebuild(module, description["module"]), torch.ones(1), description["gated_norm"])
    if "uneven_groups" in description:
        sizes = _group_sizes(module, description["uneven_groups"])
        uneven = UnevenGroupNorm(sizes, description["eps"], description["affine"])
        return uneven.to(next(module.parameters(), torch.ones(1)))
    if "even_groups" in description:
        if not isinstance(module, UnevenGroupNorm):
            raise ReductionError(f"the compact network had a norm with uneven groups, not a {type(module).__name__}")
        module = _even(module)
    if "scale" in description:
        return Scale(torch.ones(1), description["dim"])
    if "zeros" in description or "identity" in description:
        return Zeros() if "zeros" in description else nn.Identity()
    if "bypass" in description:
        return Bypass(*description["bypass"])
    if "attention" in description:
        if not isinstance(module, nn.MultiheadAttention):
            raise ReductionError(f"the compact network had an nn.MultiheadAttention, not a {type(module).__name__}")
        module = Attention.of(module)
    if "shared_positions" in description:
        if not SharedPositions.is_for(module):
            raise ReductionError(
                f"the compact network had an attention with a shared bias, not a {type(module).__name__}"
            )
        module = SharedPositions.of(module)
    if "had_computed_weights" in description:
        fix_weights(module)
    for name, value in description.get("attributes", {}).items():
        present = vars(module).get(name, ...)
        if name.startswith("_") or not _is_plain(present) or not _is_plain(value):
            raise ReductionError(f"the compact network had a module with {name!r}, not a {type(module).__name__}")
        setattr(module, name, value)
    for name, child in description.get("children", {}).items():
        part = module._modules.get(name)
        if part is None:
            raise ReductionError(f"the compact network had a module {name!r}; this {type(module).__name__} has none")
        module._modules[name] = rebuild(part, child)
    return module


def _even(norm: UnevenGroupNorm) -> nn.GroupNorm:
    """The norm of a single channel that becomes one with equal groups as its counts are set."""
    return nn.GroupNorm(1, 1, norm.eps, norm.affine).to(next(norm.parameters(), torch.ones(1)))


def _group_sizes(norm: nn.Module, sizes: Any) -> tuple[int, ...]:
    """
    The sizes of groups that are left of a norm's, before there is memory for as many.

    :raises ReductionError: for what can be none.
    """
    if not isinstance(norm, nn.GroupNorm):
        raise ReductionError(f"the groups of {sizes} channels are no part of a {type(norm).__name__}")
    if not (
        isinstance(sizes, tuple | list)
        and all(isinstance(size, int) and size > 0 for size in sizes)
        and 0 < sum(sizes) <= norm.num_channels
    ):
        raise ReductionError(
            f"the groups of {sizes} channels are no part of those of a GroupNorm with {norm.num_channels} channels"
        )
    return tuple(sizes)


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
            module._parameters[attribute] = nn.Parameter(_sized(present, value), requires_grad=requires_grad)
        elif attribute in module._buffers and present is not None and present.shape != value.shape:
            module._buffers[attribute] = _sized(present, value)


def _sized(present: Tensor | None, value: Tensor) -> Tensor:
    return torch.empty_like(value) if present is None else present.new_empty(value.shape)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How a compact network differs from the one that it was made of, as plain data, and one made of the other by that."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any

import torch
from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.modules.attention import Attention
from pyro_bmrs.pruning.compaction.modules.bypass import Bypass, Zeros
from pyro_bmrs.pruning.compaction.modules.gated_norm import GatedNorm
from pyro_bmrs.pruning.compaction.modules.plain import fix_weights, has_computed_weights
from pyro_bmrs.pruning.compaction.modules.recurrence import Recurrence, is_layer_or_cell, resized
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled
from pyro_bmrs.pruning.compaction.modules.shared_positions import SharedPositions
from pyro_bmrs.pruning.compaction.modules.widths_of_heads import WidthsOfHeads, divides_by_heads, width_of_heads
from pyro_bmrs.pruning.layers import GROUP_COUNTS, HEAD_COUNTS
from pyro_bmrs.pruning.noise.recognition.calls_by_weight import CallsByWeight, called_by_weight, weights_read_by
from pyro_bmrs.pruning.streams.experts import implementation, set_implementation
from pyro_bmrs.pruning.streams.norms import UnevenGroupNorm

COUNTS = (*HEAD_COUNTS, *GROUP_COUNTS)
_PLAIN = (bool, int, float, str, type(None))


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
        return {"gated_norm": new.dim, "kept": list(new.kept), "module": describe(old, new.module)}
    if isinstance(new, UnevenGroupNorm) and not isinstance(old, UnevenGroupNorm):
        return {"uneven_groups": list(new.sizes), "eps": new.eps, "affine": new.affine}
    if isinstance(new, nn.GroupNorm) and isinstance(old, UnevenGroupNorm):
        return {"even_groups": True, **describe(_even(old), new)}
    if isinstance(new, Scale) and not isinstance(old, Scale):
        return {"scale": True, "dim": new.dim}
    if isinstance(new, Attention) and isinstance(old, nn.MultiheadAttention):
        return {"attention": True, **describe(Attention.of(old), new)}
    if isinstance(new, Attention) and isinstance(old, Attention) and new.is_packed != old.is_packed:
        return {"packed": new.is_packed, **describe(_packed(deepcopy(old), new.is_packed), new)}
    if isinstance(new, SharedPositions) and not isinstance(old, SharedPositions):
        return {"shared_positions": True, **describe(SharedPositions.of(old), new)}
    if isinstance(new, Recurrence) and not isinstance(old, Recurrence):
        return {"recurrence": True, **describe(Recurrence.of(old).in_parts(), new)}
    if is_layer_or_cell(new):
        sizes = [new.input_size, new.hidden_size, new.bias]
        is_same = type(old) is type(new) and [old.input_size, old.hidden_size, old.bias] == sizes
        return {} if is_same else {"recurrent": sizes}
    if isinstance(new, Zeros | nn.Identity) and type(old) is not type(new):
        return {"zeros": True} if isinstance(new, Zeros) else {"identity": True}
    if isinstance(new, Bypass):
        return {"bypass": [new.num_results, new.batch_first]}
    had_computed_weights = has_computed_weights(old) and not has_computed_weights(new)
    attributes = {
        name: value
        for name, value in vars(new).items()
        # What a forward has stored since it stores again.
        if name in vars(old) and not name.startswith("_") and name != "training"
        if is_plain(value) and vars(old)[name] != value
    }
    children = {name: describe(old.get_submodule(name), child) for name, child in new.named_children()}
    changed = {name: description for name, description in children.items() if description}
    parts = {"had_computed_weights": had_computed_weights, "attributes": attributes, "children": changed}
    counts = {name: found for name in vars(new) if (found := _changed_counts(vars(old).get(name), vars(new)[name]))}
    if counts:
        parts["counts"] = counts
    if called_by_weight(new) != called_by_weight(old):
        parts["called_by_weight"] = list(called_by_weight(new))
    if implementation(new) != implementation(old):
        parts["experts"] = [implementation(new)]
    if width_of_heads(new) != width_of_heads(old):
        parts["width_of_heads"] = [width_of_heads(new)]
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
        gated = GatedNorm(rebuild(module, description["module"]), torch.ones(1), description["gated_norm"])
        gated.kept = tuple(map(int, description["kept"]))
        return gated
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
    if "packed" in description:
        if not isinstance(module, Attention):
            raise ReductionError(f"the compact network had an Attention, not a {type(module).__name__}")
        module = _packed(module, description["packed"])
    if "recurrence" in description:
        if not is_layer_or_cell(module) or isinstance(module, nn.RNNCellBase):
            raise ReductionError(f"the compact network had a recurrent layer, not a {type(module).__name__}")
        module = Recurrence.of(module).in_parts()
    if "recurrent" in description:
        return resized(module, *description["recurrent"])
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
        if name.startswith("_") or not is_plain(present) or not is_plain(value):
            raise ReductionError(f"the compact network had a module with {name!r}, not a {type(module).__name__}")
        setattr(module, name, value)
    for name, counts in description.get("counts", {}).items():
        settings = copy(vars(module).get(name))
        for key, value in counts.items():
            if key not in COUNTS or type(getattr(settings, key, None)) is not int or type(value) is not int:
                raise ReductionError(
                    f"the compact network had a module with {name}.{key}, not a {type(module).__name__}"
                )
            setattr(settings, key, value)
        setattr(module, name, settings)
    if "experts" in description:
        set_implementation(module, *description["experts"])
    if "width_of_heads" in description:
        (width,) = description["width_of_heads"]
        if not divides_by_heads(module):
            raise ReductionError(f"the compact network had an attention, not a {type(module).__name__}")
        vars(module).pop("forward", None)
        if width is not None:
            vars(module)["forward"] = WidthsOfHeads(module, int(width))
    if "called_by_weight" in description:
        names = description["called_by_weight"]
        if not set(names) <= set(weights_read_by(module)):
            raise ReductionError(f"the compact network had a module that reads {names}, not a {type(module).__name__}")
        vars(module)["forward"] = CallsByWeight(module, names)
    for name, child in description.get("children", {}).items():
        part = module._modules.get(name)
        if part is None:
            raise ReductionError(f"the compact network had a module {name!r}; this {type(module).__name__} has none")
        module._modules[name] = rebuild(part, child)
    return module


def _packed(attention: Attention, is_packed: bool) -> Attention:
    return attention.packed() if is_packed else attention.unpacked()


def _changed_counts(old: Any, new: Any) -> dict[str, int]:
    """The numbers of heads that an object of settings has other than another."""
    if type(old) is not type(new) or isinstance(new, nn.Module | torch.Tensor):
        return {}
    before, after = getattr(old, "__dict__", {}), getattr(new, "__dict__", {})
    return {name: after[name] for name in COUNTS if type(after.get(name)) is int and after[name] != before.get(name)}


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


def is_plain(value: Any) -> bool:
    """Whether something is a number, a string, None, or a sequence of these."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return isinstance(value, _PLAIN)

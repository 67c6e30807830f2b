# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Where the elements of tensors go in each of torch's functions.

The elements that a multiplication has multiplied have the index of their factor. A function that commutes with it hands
the indices on; of one that does not, it is said that it is mixed. To teach another function, write how it hands them
on, and enter it in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils._pytree import tree_leaves

# The index of what is not multiplied.
_NONE = -1
# Names of torch's functions, without the trailing underscore of those in place.
_QUESTIONS = frozenset(
    {"size", "dim", "numel", "stride", "is_floating_point", "is_contiguous", "__len__", "ndimension"}
)
CONVOLUTIONS = frozenset(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
_ELEMENTWISE = {
    *("relu", "leaky_relu", "prelu", "rrelu", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
    *("feature_alpha_dropout", "clone", "contiguous", "to", "float", "double", "half", "type_as", "detach"),
}
_MOVES = {
    *("__get__", "flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "unflatten", "chunk", "split"),
    *("unbind", "__getitem__", "expand", "movedim", "swapaxes", "select", "narrow", "pixel_shuffle", "repeat", "flip"),
    *("index_select", "_pack_padded_sequence"),
}
_POOLINGS = {f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)}
_PRODUCTS = {"mul", "multiply", "div", "divide", "true_divide"}


class Mixed(Exception):
    """A function does not commute with a multiplication."""


@dataclass(frozen=True)
class FunctionCall:
    """
    A call of one of torch's functions.

    :param name: the function's name, the same where it works in place.
    :param function: the function.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param result: what it returns.
    """

    name: str
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among its arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if torch.is_tensor(leaf)]

    @property
    def is_question(self) -> bool:
        """Whether it only asks for what a tensor is, and not for what is in it."""
        return self.name in _QUESTIONS or (self.name == "__get__" and not torch.is_tensor(self.result))


def function_name(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> str:
    """The name of one of torch's functions in the tables here."""
    name = (resolve_name(function) or getattr(function, "__name__", str(function))).rpartition(".")[2]
    name = name if name.endswith("__") else name.rstrip("_")
    return f"{name} with rounding" if kwargs.get("rounding_mode") else name


def indices_after(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    """
    The indices of the elements of a function's result.

    :param call: the function and its arguments.
    :param indices_of: gives the indices of an argument's elements; None for one in which nothing is multiplied.
    :return: indices in the structure of the result.
    :raises Mixed: for a function that does not commute with a multiplication of what it is given.

    Example::

        >>> import torch
        >>> tensor, indices = torch.ones(2, 3), torch.arange(3).expand(2, 3)
        >>> call = FunctionCall("flatten", torch.flatten, (tensor,), {}, tensor.flatten())
        >>> indices_after(call, lambda argument: indices if argument is tensor else None)
        tensor([0, 1, 2, 0, 1, 2])
    """
    require(call.name in _HANDLERS)
    return _HANDLERS[call.name](call, indices_of)


def only_indices(call: FunctionCall, indices_of: Callable[[Any], Tensor | None], *, first: bool = True) -> Tensor:
    """
    The indices of the one argument in which something is multiplied.

    :param call: the function and its arguments.
    :param indices_of: gives the indices of an argument's elements.
    :param first: whether it must be the first.
    :raises Mixed: if there are more, or it is inside of another argument, or not the first.
    """
    followed = _followed(call, indices_of)
    require(len(followed) == 1 and (not first or indices_of(call.args[0]) is not None))
    return followed[0]


def same_along(indices: Tensor, dims: Iterable[int]) -> Tensor:
    """
    The indices along dimensions in which they do not differ, which are left with one element.

    :raises Mixed: if they differ.
    """
    dims = tuple(dims)
    first = indices.amin(dims, keepdim=True) if dims else indices
    require(torch.equal(first.expand(indices.shape), indices))
    return first


def commutes(call: FunctionCall) -> bool:
    """Whether a function returns its first argument's channels, each times what it was times."""
    if not torch.is_tensor(call.result) or not call.result.is_floating_point():
        return False
    keeps_shape = call.name in _PRODUCTS and call.result.shape == call.tensors[0].shape
    return keeps_shape or call.name in _ELEMENTWISE | _POOLINGS


def require(condition: bool) -> None:
    """
    Goes on only if a function commutes.

    :raises Mixed: if not.
    """
    if not condition:
        raise Mixed


def _followed(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> list[Tensor]:
    """The indices of those arguments in which something is multiplied, none of which is inside of another."""
    followed = [indices for argument in call.args if (indices := indices_of(argument)) is not None]
    require(len(followed) == sum(indices_of(tensor) is not None for tensor in call.tensors))
    return followed


# How functions hand indices on.


def _joined(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    def known(tensor: Tensor) -> Tensor:
        indices = indices_of(tensor)
        return torch.full(tensor.shape, _NONE, device=tensor.device) if indices is None else indices

    return call.function([known(tensor) for tensor in call.args[0]], *call.args[1:], **call.kwargs)


def _summed(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    followed = _followed(call, indices_of)
    require(len(followed) == 2)
    first, second = torch.broadcast_tensors(*followed)
    require(torch.equal(first, second))
    return first


def _multiplied(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    # A divisor does not commute.
    return only_indices(call, indices_of, first=not call.name.startswith("mul")).expand(call.result.shape)


def _elementwise(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    require(call.result.is_floating_point())
    return only_indices(call, indices_of)


def _viewed(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    require(not any(isinstance(argument, torch.dtype) for argument in call.args))
    return only_indices(call, indices_of).reshape(*call.args[1:], **call.kwargs)


def _moved(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    # A view, as the function may be one that changes a tensor's shape in place.
    return call.function(only_indices(call, indices_of)[...], *call.args[1:], **call.kwargs)


def _padded(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    # Of the zeros that are filled in, any multiple is 0.
    indices = same_along(only_indices(call, indices_of), [0])
    return indices.expand(call.result[0].shape), None


def _pooled(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    indices = only_indices(call, indices_of)
    require(indices.dim() == 2 + int(call.name[-2]))
    return same_along(indices, range(2, indices.dim())).expand(call.result.shape)


def _reduced(call: FunctionCall, indices_of: Callable[[Any], Tensor | None]) -> Any:
    dims: Any = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    require(dims is not None)
    dims = [dims] if isinstance(dims, int) else dims
    return same_along(only_indices(call, indices_of), dims).reshape(call.result.shape)


_HANDLERS: dict[str, Callable[[FunctionCall, Callable[[Any], Tensor | None]], Any]] = {
    **dict.fromkeys(("cat", "concat", "stack"), _joined),
    **dict.fromkeys(("add", "sub", "subtract"), _summed),
    **dict.fromkeys(_PRODUCTS, _multiplied),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "view": _viewed,
    **dict.fromkeys(_MOVES, _moved),
    "_pad_packed_sequence": _padded,
    **dict.fromkeys(_POOLINGS, _pooled),
    **dict.fromkeys(("mean", "sum", "amax"), _reduced),
}

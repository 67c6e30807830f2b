# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Attentions whose forward takes the width of all heads for that of the input, and tells them apart from here on.

Many begin with ``B, N, C = x.shape``, and go on with ``C // self.num_heads`` and ``reshape(B, N, C)``. That holds as
long as all heads together are as wide as the input is. Where heads are gone, or channels of the input, it is the heads'
own width that is meant. Some leave this to a function beside their class, as torchvision's Swin does.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import CodeType, FunctionType
from typing import Any, TypeGuard

from torch import Tensor, nn

from pyro_bmrs.pruning.layers import HEAD_COUNTS, PROJECTIONS, linear_width

_RESHAPES = ("reshape", "view")
_DIVIDED, _RESHAPED = "_divided_by_heads_", "_reshaped_by_heads_"


class WidthsOfHeads:
    """
    The forward of an attention, which takes the place of its class's: the same code, but for the widths of heads.

    As long as nothing is gone it computes the same, whatever it is that the code divides.

    :param module: the attention.
    :param width: the features of each head.
    """

    def __init__(self, module: Any, width: int) -> None:
        self.module, self.width = module, width
        kind: Any = type(module)
        self._forward: Any = _asking_forward(kind)

    @property
    def __code__(self) -> Any:
        """The code of the attention's class, for which ``torch.export`` asks."""
        return type(self.module).forward.__code__

    def __reduce__(self) -> Any:
        # A function that no module holds is made again.
        return type(self), (self.module, self.width)

    @classmethod
    def of(cls, module: Any) -> WidthsOfHeads | None:
        """For an attention of this kind; None for another module."""
        count = next((getattr(module, name) for name in HEAD_COUNTS if type(getattr(module, name, None)) is int), 0)
        layers = {name: linear_width(layer) for name, layer in module.named_children()}
        widths = {width for name, width in layers.items() if name.lower() in PROJECTIONS and width}
        # Of layers that are all given the same, so that the width in the code is theirs.
        if not count or len(widths) != 1 or not divides_by_heads(module):
            return None
        (width,) = widths
        return None if width % count else cls(module, width // count)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the attention does."""
        return self._forward(self.module, *args, **{_DIVIDED: self._divided, _RESHAPED: self._reshaped}, **kwargs)

    def _divided(self, width: int, count: int) -> int:
        return self.width

    def _reshaped(
        self, tensor: Tensor, name: str, sizes: Callable[[int], tuple[Any, ...]], width: int, count: int
    ) -> Tensor:
        """The tensor in the shape that it fits: with the width of the input, or else with that of all heads."""
        is_of_input = _fits(tensor, sizes(width)) or not _fits(tensor, sizes(count * self.width))
        result: Tensor = getattr(tensor, name)(*sizes(width if is_of_input else count * self.width))
        return result


def know_widths_of_heads(net: nn.Module) -> None:
    """Has attentions of this kind tell the width of their heads from that of their input, in place."""
    for module in net.modules():
        forward = WidthsOfHeads.of(module)
        if forward is not None and "forward" not in vars(module):
            vars(module)["forward"] = forward


def forget_widths_of_heads(net: nn.Module) -> None:
    """Leaves attentions whose heads are as wide as their input to their class's forward, in place."""
    for module in net.modules():
        width, own = width_of_heads(module), WidthsOfHeads.of(module)
        if width is not None and own is not None and own.width == width:
            del vars(module)["forward"]


def divides_by_heads(module: Any) -> bool:
    """Whether a module's forward takes the width of its input for that of heads."""
    kind: Any = type(module)
    return _asking_forward(kind) is not None


def width_of_heads(module: nn.Module) -> int | None:
    """How wide the heads of an attention are that tells this from the width of its input; None for what does not."""
    forward = vars(module).get("forward")
    return forward.width if isinstance(forward, WidthsOfHeads) else None


def _fits(tensor: Tensor, sizes: tuple[Any, ...]) -> bool:
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    known, is_open = 1, False
    # A loop, which a compiler follows.
    for size in flat:
        is_open |= size == -1
        known *= 1 if size == -1 else size
    return bool(tensor.numel() % max(known, 1) == 0 if is_open else tensor.numel() == known)


@cache
def _asking_forward(kind: Any) -> FunctionType | None:
    """A class's forward that asks for the widths of heads; None where it takes them for no other width."""
    forward = inspect.unwrap(kind.forward)
    # A decorator, or what stands around the code, may do more than is seen in it.
    return None if forward is not kind.forward else _asking(forward)


@cache
def _asking(function: Any, own: str | None = None) -> FunctionType | None:
    """
    A function that asks for the widths of heads; None where it takes them for no other width.

    :param function: a module's forward, or another function that is given the number of heads.
    :param own: of another function, the name by which it is given that.
    """
    if not isinstance(function, FunctionType) or function.__code__.co_freevars:
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    code = tree.body[0]
    if not isinstance(code, ast.FunctionDef) or code.decorator_list or not code.args.args:
        return None
    asking = _Asking(code, own, {} if own else _functions_of_heads(function.__globals__, code))
    asking.visit(code)
    if not asking.has_asked:
        return None
    for argument in (*code.args.posonlyargs, *code.args.args, *code.args.kwonlyargs):
        argument.annotation = None
    code.args.kwonlyargs += [ast.arg(_DIVIDED), ast.arg(_RESHAPED)]
    code.args.kw_defaults += [None, None]
    code.returns = None
    compiled = compile(ast.fix_missing_locations(tree), inspect.getsourcefile(function) or "", "exec")
    body = next(c for c in compiled.co_consts if isinstance(c, CodeType) and c.co_name == code.name)
    known = {**function.__globals__, **asking.functions} if asking.functions else function.__globals__
    asked = FunctionType(body, known, function.__name__, function.__defaults__)
    asked.__kwdefaults__ = function.__kwdefaults__
    return asked


def _functions_of_heads(known: Mapping[str, Any], code: ast.FunctionDef) -> dict[str, FunctionType]:
    """The functions beside a class to which its forward leaves its heads, that ask for their widths, by their names."""
    found = {}
    for node in ast.walk(code):
        function = known.get(node.func.id) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if isinstance(function, FunctionType):
            counts = [name for name in HEAD_COUNTS if name in inspect.signature(function).parameters]
            asked = _asking(function, counts[0]) if len(counts) == 1 else None
            if asked is not None:
                found[function.__name__] = asked
    return found


class _Asking(ast.NodeTransformer):
    """
    Has a forward ask how wide its heads are, where it divides the last size of an input by their number, or reshapes by
    that size.

    :param function: the forward, or another function that is given their number.
    :param own: of another function, the name by which it is given that.
    :param functions: those that the forward calls and that ask as well, by their names.
    """

    def __init__(self, function: ast.FunctionDef, own: str | None, functions: Mapping[str, FunctionType]) -> None:
        self._self, self._own, self.functions = function.args.args[0].arg, own, functions
        self._widths = {name for node in ast.walk(function) for name in _last_size(node)}
        # A layer may have the name of a count.
        self._layers = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        self._counts = [node for node in ast.walk(function) if self._is_count(node)]
        self.has_asked = False

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.FloorDiv) and self._is_width(node.left) and self._is_count(node.right):
            self.has_asked = True
            return _call(_DIVIDED, node.left, node.right)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        method = node.func
        if isinstance(method, ast.Name) and method.id in self.functions:
            self.has_asked = True
            node.keywords += [ast.keyword(name, ast.Name(name, ast.Load())) for name in (_DIVIDED, _RESHAPED)]
            return node
        if not isinstance(method, ast.Attribute) or method.attr not in _RESHAPES or not self._counts:
            return node
        inside = [part for argument in node.args for part in ast.walk(argument)]
        widths = {part.id for part in inside if isinstance(part, ast.Name) and part.id in self._widths}
        if len(widths) != 1:
            return node
        self.has_asked = True
        (width,) = widths
        sizes = ast.Lambda(
            ast.arguments(posonlyargs=[], args=[ast.arg(width)], kwonlyargs=[], kw_defaults=[], defaults=[]),
            ast.Tuple(node.args, ast.Load()),
        )
        name = ast.Constant(method.attr)
        return _call(_RESHAPED, method.value, name, sizes, ast.Name(width, ast.Load()), self._counts[0])

    def _is_width(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id in self._widths

    def _is_count(self, node: ast.AST) -> TypeGuard[ast.expr]:
        if self._own is not None:
            return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id == self._own
        if not isinstance(node, ast.Attribute) or node.attr not in HEAD_COUNTS or id(node) in self._layers:
            return False
        return isinstance(node.value, ast.Name) and node.value.id == self._self


def _last_size(node: ast.AST) -> Iterator[str]:
    """The name that takes the last size of a tensor, in an assignment of all of them."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Tuple):
        return
    value, last = node.value, node.targets[0].elts[-1]
    is_shape = isinstance(value, ast.Attribute) and value.attr == "shape"
    method = value.func if isinstance(value, ast.Call) and not value.args else None
    is_size = isinstance(method, ast.Attribute) and method.attr == "size"
    if (is_shape or is_size) and isinstance(last, ast.Name):
        yield last.id


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(args), [])

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Rules are asked in double precision, and answer in that of the question.

The terms of a change in log evidence grow with the concentration of a narrow reduced prior, and it is what is left when
they cancel: of terms of 1e8, single precision leaves nothing. What it asks about is known exactly nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, TypeVar
from weakref import ReferenceType

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform
from torch.nn import Module

from pyro_bmrs.distributions.expanded import unexpanded
from pyro_bmrs.evidence.registry import Reduced

_MARK = "_rounded_to"
_ACCURATE = "_accurate_where"
# What a distribution may hold besides tensors and distributions, and needs no conversion.
_PLAIN = (type(None), bool, int, float, str, slice, torch.Size, torch.dtype, torch.device, type, Constraint)

_Value = TypeVar("_Value")
_Rule = TypeVar("_Rule", bound=Callable[..., Reduced])


def in_double(
    rule: Callable[..., Reduced], posterior: Distribution, prior: Distribution, reduced_prior: Distribution
) -> Reduced:
    """
    What a rule says of a triple in double precision, in the triple's own precision.

    Gradients flow through the conversion. Nothing is converted for a rule that says of itself, by
    :func:`accurate_where`, that it need not be; where a distribution holds what cannot be, such as a network; and on a
    device without double precision.

    :param rule: takes the three distributions.
    :return: the answer of the rule, or ``NotImplemented`` where that is its answer.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence.rules.families import BETA
        >>> triple = dist.Beta(30.0, 20.0), dist.Beta(1.0, 1.0), dist.Beta(1e7, 1e7)
        >>> BETA.reduce(*triple).delta_evidence, in_double(BETA.reduce, *triple).delta_evidence
        (tensor(-1.), tensor(0.6978))
    """
    triple = (posterior, prior, reduced_prior)
    tensors = [tensor for distribution in triple for tensor in _floats(distribution)]
    coarse = [tensor.dtype for tensor in tensors if tensor.dtype != torch.float64]
    accurate = getattr(rule, _ACCURATE, None)
    if not coarse or (accurate is not None and accurate(*triple)):
        return rule(*triple)
    widen = _Conversion(torch.float64, max(coarse, key=lambda dtype: torch.finfo(dtype).eps))
    try:
        wide = [widen.of(distribution) for distribution in triple]
    except TypeError:
        return rule(*triple)
    reduced = rule(*wide)
    return reduced if reduced is NotImplemented else _narrowed(reduced, _promoted(tensors))


def accurate_where(condition: Callable[[Any, Any, Any], bool]) -> Callable[[_Rule], _Rule]:
    """
    Decorator for a rule that needs no double precision for some triples, which is worth saying where that saves time.

    :param condition: whether its answer for a triple is accurate to the rounding of the answer.

    Example::

        >>> @accurate_where(lambda posterior, prior, reduced_prior: True)
        ... def no_change(posterior, prior, reduced_prior):
        ...     return Reduced(torch.zeros_like(prior.loc), lambda: posterior)
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> in_double(no_change, normal, normal, normal).posterior is normal
        True
    """

    def decorate(rule: _Rule) -> _Rule:
        setattr(rule, _ACCURATE, condition)
        return rule

    return decorate


def _narrowed(reduced: Reduced, dtype: torch.dtype) -> Reduced:
    return replace(
        reduced,
        delta_evidence=reduced.delta_evidence.to(dtype),
        build_posterior=lambda: _converted(reduced.posterior, dtype),
    )


def _converted(posterior: Distribution, dtype: torch.dtype) -> Distribution:
    try:
        return _Conversion(dtype).of(posterior)
    except TypeError:
        return posterior  # of a kind that only its rule knows


def _promoted(tensors: list[Tensor]) -> torch.dtype:
    """The dtype of a sum of tensors: those of no dimension count where there are no others."""
    dtypes = [tensor.dtype for tensor in tensors if tensor.dim()] or [tensor.dtype for tensor in tensors]
    return reduce(torch.promote_types, dtypes)


def rounded_to(distribution: Distribution) -> torch.dtype | None:
    """
    The precision that the parameters of a distribution were rounded to before it was converted; None if it was not.

    Ends of intervals that agree in this precision are the same.
    """
    dtype: torch.dtype | None = vars(distribution).get(_MARK)
    return dtype


def _floats(distribution: Distribution, within: tuple[Distribution, ...] = ()) -> Iterator[Tensor]:
    within = (*within, distribution)
    for value in vars(distribution).values():
        if isinstance(value, Tensor):
            if value.is_floating_point():
                yield value
        elif isinstance(value, Distribution) and not any(value is whole for whole in within):
            yield from _floats(value, within)


@dataclass
class _Conversion:
    """
    Conversion of all tensors within distributions, of which none is converted twice.

    :param dtype: the precision to convert to.
    :param mark: what :func:`rounded_to` says of the converted distributions.
    """

    dtype: torch.dtype
    mark: torch.dtype | None = None
    known: dict[int, Any] = field(default_factory=dict)

    def of(self, value: _Value) -> _Value:
        """
        The value in the new precision.

        :raises TypeError: where it holds what cannot be converted.
        """
        if id(value) not in self.known:
            self.known[id(value)] = self._converted(value)
        converted: _Value = self.known[id(value)]
        return converted

    def _converted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            is_other = value.is_floating_point() and value.dtype != self.dtype
            return unexpanded(value).to(self.dtype).expand(value.shape) if is_other else value
        if isinstance(value, (Distribution, Transform)) and not isinstance(value, Module):
            return self._rebuilt(value)
        if type(value) in (list, tuple):
            return type(value)(map(self.of, value))
        if isinstance(value, _PLAIN):
            return value
        raise TypeError(f"{type(value).__name__} has no known precision")

    def _rebuilt(self, whole: Any) -> Any:
        new: Any = object.__new__(type(whole))
        # Before its parts, of which one may hold the whole.
        self.known[id(whole)] = new
        for name, value in vars(whole).items():
            # What was computed from the parameters is computed again; a transform knows its inverse weakly.
            if name == _MARK or isinstance(getattr(type(whole), name, None), cached_property):
                continue
            vars(new)[name] = None if isinstance(value, ReferenceType) else self.of(value)
        if self.mark is not None and isinstance(whole, Distribution):
            # A value that is within the support by the old precision may be outside by the new one.
            vars(new).update({_MARK: self.mark, "_validate_args": False})
        return new

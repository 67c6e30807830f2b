# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
One rule for every exponential family; :mod:`pyro_bmrs.evidence.rules.families` holds the families.

Where posterior, prior and reduced prior belong to one family with natural parameter :math:`\eta`, sufficient statistic
T and log-normaliser A, the ratio of reduced prior to prior is exponential in T too, so that

.. math:: \Delta F = K_q(\delta) - K_p(\delta), \qquad \delta = \eta_r - \eta_p, \qquad
    K_\eta(\delta) = A(\eta + \delta) - A(\eta) = \log E_\eta[e^{\delta \cdot T}],

and the reduced posterior has the natural parameter :math:`\eta_q + \delta`. Each family states K, not A: A is
of the size of :math:`\log\Gamma` of the parameters, and K keeps the few digits of it that matter.

A family from outside the package is stated as those in :mod:`~pyro_bmrs.evidence.rules.families` are, in any file, and
registered: what its members' natural parameters are, how A grows, and which natural parameters are valid. Lifetimes
of a Weibull distribution whose shape k is known have the natural parameter :math:`\eta = \lambda^{-k}` for the scale
:math:`\lambda`, and :math:`A = -\log\eta`::

    >>> import torch
    >>> import pyro.distributions as dist
    >>> from pyro_bmrs.evidence import reduce
    >>> class Lifetime(dist.Weibull):
    ...     "How long a part lasts."
    >>> family = Family(
    ...     {Lifetime: Member(
    ...         natural=lambda d: (d.scale ** -d.concentration,),
    ...         build=lambda d, natural: Lifetime(natural[0] ** (-1 / d.concentration), d.concentration),
    ...     )},
    ...     growth=lambda before, after, step: (before[0] / after[0]).log(),
    ...     valid=lambda natural: natural[0] > 0,
    ...     in_common=("concentration",),
    ... ).register()
    >>> reduced = reduce(Lifetime(1., 2.), Lifetime(3., 2.), Lifetime(2., 2.))
    >>> reduced.method, reduced.delta_evidence
    ('exact', tensor(0.6809))
    >>> reduced.posterior.scale
    tensor(0.9370)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.evidence.registry import Reduced, register_reduction

Natural = tuple[Tensor, ...]


@dataclass(frozen=True)
class Member:
    """
    A distribution type that belongs to a family.

    :param natural: the natural parameters of a distribution; minus infinity where a probability is 0.
    :param build: the distribution of this type that has given natural parameters; called with a distribution of the
        family, from which to take what all have in common, and the natural parameters.
    """

    natural: Callable[[Any], Natural]
    build: Callable[[Any, Natural], Distribution]


@dataclass(frozen=True)
class Family:
    """
    An exponential family.

    :param members: its distribution types. A reduced posterior is built as the first type that posterior, prior and
        reduced prior all are, else as the last, which can hold every distribution of the family.
    :param growth: K: from the natural parameters, the same after a step, and the step, A(after) - A(before).
    :param valid: whether natural parameters belong to a distribution, of the batch shape.
    :param in_common: attributes in which distributions must agree to belong to the same family.
    :param has_zeros: whether natural parameters are log probabilities, minus infinity where a probability is 0.
    """

    members: dict[type[Distribution], Member]
    growth: Callable[[Natural, Natural, Natural], Tensor]
    valid: Callable[[Natural], Tensor]
    in_common: tuple[str, ...] = ()
    has_zeros: bool = False

    def __str__(self) -> str:
        return f"the family of {', '.join(type_.__name__ for type_ in self.members)}"

    def member(self, *distributions: Distribution) -> Member:
        """The first member that all of the distributions are, else the last."""
        for type_, member in self.members.items():
            if all(isinstance(distribution, type_) for distribution in distributions):
                return member
        return member

    def natural(self, distribution: Distribution) -> Natural:
        """The natural parameters of a distribution of this family."""
        return self.member(distribution).natural(distribution)

    def reduce(self, posterior: Any, prior: Any, reduced_prior: Any) -> Reduced:
        """The rule of this family."""
        triple = (posterior, prior, reduced_prior)
        for name in self.in_common:
            if any(_differ(getattr(d, name), getattr(posterior, name)) for d in triple[1:]):
                unlike: Reduced = NotImplemented
                return unlike
        q, p, r = map(self.natural, triple)
        difference = _log_difference if self.has_zeros else torch.sub
        step, data = tuple(map(difference, r, p)), tuple(map(difference, q, p))
        s = tuple(map(_add_smaller_last, q, r, step, data))
        valid = self.valid(s)
        if not valid.all():
            raise ReductionError(
                f"{type(posterior).__name__}: the reduced posterior has no valid parameters at {int((~valid).sum())} "
                f"of {valid.numel()} elements. There the reduced prior is broader than the prior, or has mass where "
                "the prior has none, and the evidence integral diverges. Give one no broader than the prior."
            )
        delta_evidence = self.growth(q, s, step) - self.growth(p, r, step)
        if "total_count" in self.in_common:
            delta_evidence = delta_evidence * posterior.total_count
        return Reduced(delta_evidence, lambda: self.member(*triple).build(posterior, s))

    def register(self) -> Family:
        """Register the rule for every mixture of this family's types."""
        for triple in product(self.members, repeat=3):
            register_reduction(*triple)(self.reduce)
        return self


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return bool((torch.as_tensor(one) != torch.as_tensor(other)).any())
    return bool(one != other)


def _log_difference(one: Tensor, other: Tensor) -> Tensor:
    # Two probabilities of 0 differ by nothing. One where the other is 0 leaves no parameter, which NaN then says.
    difference = torch.where(one == other, 0.0, one - other)
    return torch.where(difference == torch.inf, torch.nan, difference)


def _add_smaller_last(q: Tensor, r: Tensor, step: Tensor, data: Tensor) -> Tensor:
    """q + step = r + data: exactly r where q is the prior, and exactly q where r is the prior."""
    return torch.where(step.abs() < data.abs(), q + step, r + data)

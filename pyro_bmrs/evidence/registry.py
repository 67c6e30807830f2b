# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Which rule reduces which triple of distributions.

A rule is a plain function ``rule(posterior, prior, reduced_prior) -> Reduced``, registered for a triple of types as
:func:`torch.distributions.kl.register_kl` does for pairs.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionWarning
from pyro_bmrs.evidence.accuracy import Accuracy, Estimated


@dataclass(frozen=True)
class Built:
    """What gives something that is there already, in the place of what builds it."""

    value: Any

    def __call__(self) -> Any:
        return self.value


@dataclass(frozen=True)
class Reduced(Estimated):
    """
    What a rule says of one triple: the change in log evidence, and the reduced posterior when it is asked for.

    :param delta_evidence: log E_q[r/p] in nats, of the broadcast batch shape of the triple.
    :param build_posterior: makes the reduced posterior q·r/p, normalised. Called at most once, and only when needed:
        most callers want the evidence of many candidates and the posterior of few.
    :param accuracy: how ``delta_evidence`` was computed, and how far it is to be trusted; exact by default.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence import Reduced
        >>> reduced = Reduced(torch.tensor(0.0), lambda: dist.Normal(0.0, 1.0))
        >>> reduced.method, reduced.posterior
        ('exact', Normal(loc: 0.0, scale: 1.0))
    """

    delta_evidence: Tensor
    build_posterior: Callable[[], Distribution]
    accuracy: Accuracy = Accuracy()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled is the posterior that was to be built, not how."""
        return Reduced, (self.delta_evidence, Built(self.posterior), self.accuracy)

    def __deepcopy__(self, memo: dict[int, Any]) -> Reduced:
        """Itself: nothing changes it, and gradients flow through it."""
        return self

    @cached_property
    def posterior(self) -> Distribution:
        """The reduced posterior."""
        return self.build_posterior()


Rule = Callable[[Any, Any, Any], Reduced]
Triple = tuple[type[Distribution], type[Distribution], type[Distribution]]

_RULES: dict[Triple, Rule] = {}


def register_reduction(
    posterior_type: type[Distribution],
    prior_type: type[Distribution],
    reduced_prior_type: type[Distribution],
) -> Callable[[Rule], Rule]:
    """
    Decorator that registers an exact rule for a triple of distribution types and their subclasses.

    The most specific registered triple wins. Where neither of two is as specific as the other in all three places, the
    rules should agree, but cannot be known to: a :class:`~pyro_bmrs.ReductionWarning` says so when that is met, and
    the posterior's type counts first, then the prior's, then the reduced prior's. A rule for just the types met ends
    the doubt. A triple that is registered again takes the new rule, with a warning if that is another function than
    the old one by its module and name, so that a cell of a notebook may be run twice.

    A rule is handed the distributions without their wrappers (``Independent``, ``.expand``, ``.mask``, a shared
    bijection), returns a :class:`Reduced`, and returns ``NotImplemented`` for a member of its types that it cannot
    reduce, upon which the next most specific rule is asked.

    :param posterior_type: the type of the posterior q.
    :param prior_type: that of the prior p.
    :param reduced_prior_type: that of the reduced prior r.
    :return: the decorator, which returns the rule as it is.
    :raises TypeError: for anything but three types of distributions.
    :warns ReductionWarning: where the rule of another function is replaced.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_bmrs.evidence import Reduced, log_evidence_change, register_reduction
        >>> class Coin(dist.Bernoulli):
        ...     "A coin with a rule of its own."
        >>> @register_reduction(Coin, Coin, Coin)
        ... def _coin(posterior, prior, reduced_prior):
        ...     ratio = posterior.probs * reduced_prior.probs / prior.probs
        ...     other = (1 - posterior.probs) * (1 - reduced_prior.probs) / (1 - prior.probs)
        ...     return Reduced((ratio + other).log(), lambda: Coin(ratio / (ratio + other)))
        >>> log_evidence_change(Coin(0.9), Coin(0.5), Coin(0.8)).exp()
        tensor(1.4800)
    """
    triple = (posterior_type, prior_type, reduced_prior_type)
    for type_ in triple:
        if not (isinstance(type_, type) and issubclass(type_, Distribution)):
            raise TypeError(
                f"register_reduction takes three subclasses of torch.distributions.Distribution, got {type_!r}"
            )

    def decorate(rule: Rule) -> Rule:
        replaced = _RULES.get(triple, rule)
        if _describe(replaced) != _describe(rule):
            warnings.warn(
                f"{_describe(rule)} takes the place of {_describe(replaced)} as the rule for ({_names(triple)}).",
                ReductionWarning,
                stacklevel=2,
            )
        _RULES[triple] = rule
        find_rules.cache_clear()
        return rule

    return decorate


@cache
def find_rules(
    posterior_type: type[Distribution],
    prior_type: type[Distribution],
    reduced_prior_type: type[Distribution],
) -> tuple[Rule, ...]:
    """
    The rules for a triple of types, the most specific first.

    :warns ReductionWarning: where the first could as well be another, once for each triple of types.
    """
    asked = (posterior_type, prior_type, reduced_prior_type)

    def distance(triple: Triple) -> tuple[int, ...]:
        return tuple(type_.__mro__.index(base) for type_, base in zip(asked, triple))

    matches = sorted((triple for triple in _RULES if _is_within(asked, triple)), key=distance)
    first = [one for one in matches if not any(_is_within(other, one) for other in matches if other != one)]
    rivals = [triple for triple in first if _RULES[triple] != _RULES[first[0]]]
    if rivals:
        warnings.warn(
            f"The rule for ({_names(asked)}) could be either that for ({_names(first[0])}), which is taken, or that "
            f"for ({_names(rivals[0])}). Register one for ({_names(asked)}) with register_reduction.",
            ReductionWarning,
            stacklevel=2,
        )
    return tuple(_RULES[triple] for triple in matches)


def _is_within(triple: Triple, other: Triple) -> bool:
    """Whether a triple of types is at least as specific as another in all three places."""
    return all(issubclass(type_, base) for type_, base in zip(triple, other))


def _names(triple: Triple) -> str:
    return ", ".join(type_.__name__ for type_ in triple)


def _describe(rule: Rule) -> str:
    name = f"{rule.__module__}.{getattr(rule, '__qualname__', type(rule).__qualname__)}"
    return f"{name} of {rule.__self__}" if inspect.ismethod(rule) else name

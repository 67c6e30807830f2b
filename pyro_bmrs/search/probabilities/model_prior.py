# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Prior probabilities of reduced models: odds of each group, the number of groups kept, and who needs whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError, check_number, name_of_unknown
from pyro_bmrs.search.groups import Groups


@dataclass(frozen=True)
class BetaBinomial:
    """
    A prior over the number of groups that keep their full prior. Made by :func:`beta_binomial`.

    :param a: the first parameter of the beta distribution.
    :param b: the second.

    Example::

        >>> import torch
        >>> from pyro_bmrs.search import BetaBinomial
        >>> BetaBinomial(1.0, 1.0).by_size(2, torch.zeros(())).exp().round(decimals=3)
        tensor([0.3330, 0.1670, 0.3330])
    """

    a: float
    b: float

    def by_size(self, count: int, like: Tensor) -> Tensor:
        """Log probability of one model that keeps k out of ``count`` groups, k from 0, shape ``(count + 1,)``."""
        kept = torch.arange(count + 1, dtype=like.dtype, device=like.device)
        a, b = (like.new_tensor(value) for value in (self.a, self.b))
        return _log_beta(a + kept, b + count - kept) - _log_beta(a, b)


def beta_binomial(a: float = 1.0, b: float = 1.0) -> BetaBinomial:
    """
    A prior over models for ``model_prior=`` of :func:`~pyro_bmrs.search_models`: beta-binomial in the number of groups
    that keep their full prior, and even between models that keep as many.

    Each group is kept with one and the same unknown probability, which is Beta(a, b). ``beta_binomial(1, 1)`` gives all
    sizes the same probability, and so pays for the many models that there are of middling size (Scott and Berger
    2010, https://doi.org/10.1214/10-AOS792).

    :param a: larger favours models that keep many groups.
    :param b: larger favours models that keep few.
    :raises ReductionError: if one of the two is no positive number.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import search_models
        >>> from pyro_bmrs.search import beta_binomial
        >>> def model():
        ...     pyro.sample("weights", dist.Normal(torch.zeros(3), 1.).to_event(1))
        >>> pyro.clear_param_store()
        >>> guide = AutoNormal(model, init_scale=1.); _ = guide()
        >>> with torch.no_grad():
        ...     _ = guide.locs.weights.copy_(torch.zeros(3))  # the prior itself: no reduction changes the evidence
        >>> space = search_models(guide, dist.Normal(0., 0.1), model_prior=beta_binomial(1, 1))
        >>> space.table()["probability"].round(3).tolist()
        [0.25, 0.25, 0.083, 0.083, 0.083, 0.083, 0.083, 0.083]
    """
    check_number(a, "a of beta_binomial", above=0)
    check_number(b, "b of beta_binomial", above=0)
    return BetaBinomial(float(a), float(b))


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


@dataclass(frozen=True)
class ModelPrior:
    """
    Log prior probabilities of models, up to a constant.

    :param log_odds: of each group's reduction, in nats, shape ``(n,)``.
    :param by_size: of one model that keeps so many groups, shape ``(n + 1,)``; None where their number does not count.
    :param needs: pairs of a group and another that has to keep its full prior where the first does, shape ``(k, 2)``.
    """

    log_odds: Tensor
    by_size: Tensor | None
    needs: Tensor

    @property
    def is_product(self) -> bool:
        """Whether groups are independent."""
        return self.by_size is None and not len(self.needs)

    def log_prob(self, reduced: Tensor) -> Tensor:
        """
        Of some models; minus infinity for those that keep a group without one that it needs.

        :param reduced: which groups are reduced in each, shape ``(..., n)``, boolean.
        """
        total = torch.where(reduced, self.log_odds, 0.0).sum(-1)
        if self.by_size is not None:
            total = total + self.by_size[(~reduced).sum(-1)]
        if len(self.needs):
            group, needed = self.needs.unbind(-1)
            total = torch.where((~reduced[..., group] & reduced[..., needed]).any(-1), -torch.inf, total)
        return total

    def of_all(self) -> Tensor:
        """Of all 2^n models; bit i of a model's index tells whether group i is reduced."""
        total, count = subset_sums(self.log_odds), len(self.log_odds)
        if self.by_size is not None:
            total = total + self.by_size[count - subset_sums(torch.ones(count, device=total.device, dtype=torch.int32))]
        for group, needed in self.needs.tolist():
            # The index as a number with a digit for each of the two.
            low, high = sorted((group, needed))
            parts = total.view(2 ** (count - high - 1), 2, 2 ** (high - low - 1), 2, 2**low)
            on, off = (0, 1) if group == high else (1, 0)
            parts[:, on, :, off] = -torch.inf
        return total


def subset_sums(values: Tensor) -> Tensor:
    """
    The sum of every subset; bit i of the index tells whether the i-th value is in it.

    Example::

        >>> subset_sums(torch.tensor([1.0, 10.0]))
        tensor([ 0.,  1., 10., 11.])
    """
    sums = values.new_zeros(1)
    for value in values:
        sums = torch.cat([sums, sums + value])
    return sums


def independent(log_odds: Tensor) -> ModelPrior:
    """The prior of models whose groups are independent, with the log odds of each group's reduction."""
    return ModelPrior(log_odds, None, torch.zeros(0, 2, dtype=torch.long, device=log_odds.device))


def read_model_prior(
    groups: Groups,
    log_odds: Tensor,
    by_size: BetaBinomial | None,
    heredity: Mapping[str, str | Sequence[str]] | None,
) -> ModelPrior:
    """
    The prior that a user states.

    :param groups: the groups that switch.
    :param log_odds: of each group's reduction, shape ``(n,)``.
    :param by_size: the prior over the number of groups kept; None for none.
    :param heredity: for the name of a group, the group or groups that it needs.
    :raises ReductionError: for a prior over sizes that is no ``BetaBinomial``, and names of no groups.
    """
    if by_size is not None and not isinstance(by_size, BetaBinomial):
        raise ReductionError(f"model_prior is {by_size!r}; give pyro_bmrs.search.beta_binomial(a, b), or nothing")
    place = {name: number for number, name in enumerate(groups.names)}
    pairs = []
    for group, needed in (heredity or {}).items():
        others = [needed] if isinstance(needed, str) else list(needed)
        for name in (group, *others):
            if name not in place and name not in groups.kept:
                raise name_of_unknown(name, (*place, *groups.kept), "heredity: the space", "group")
        if group in groups.kept and any(name in place for name in others):
            raise ReductionError(f"group {group!r} always stays, but {others}, which it needs, may go; let these stay")
        # What always stays is there for whoever needs it.
        pairs += [(place[group], place[name]) for name in others if name in place]
    needs = torch.tensor(pairs, dtype=torch.long, device=log_odds.device).reshape(-1, 2)
    return ModelPrior(log_odds, None if by_size is None else by_size.by_size(len(place), log_odds), needs)

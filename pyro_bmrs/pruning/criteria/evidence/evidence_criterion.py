# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Criteria of Bayesian model reduction: the change in log evidence when a unit's noise is given a prior near 0.

They are those of D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction for structured pruning*,
https://arxiv.org/abs/2406.01345. The evidence is that of :func:`pyro_bmrs.evidence.log_evidence_change`, of the guide,
or it is evaluated on the data; what the user prefers, ``prior_log_odds``, is added apart from it.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.errors import ReductionError, ReductionWarning, check_number
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.pruning.criteria.criterion import Criterion, Scores
from pyro_bmrs.pruning.criteria.evidence.unit_evidence import NUM_EXACT, UnitEvidence, evaluate_units
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.training.models import Likelihood

CLOSED, EVALUATED = "closed", "evaluated"
# An error, in nats, that decides nothing.
_NEGLIGIBLE = 0.5


class EvidenceCriterion(Criterion):
    """
    The change in log evidence under a reduced prior, which a derived class names.

    That it says which units may go is from D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction for
    structured pruning*, https://arxiv.org/abs/2406.01345; there it is read off the posterior of the noise.

    ``prior_log_odds`` are those for removal, in nats: a number, or one for each site; 1 unless a derived class says
    otherwise.

    ``evidence`` says where it is from. ``"closed"`` reads it off the posterior of the noise, in closed form. That is
    exact of the guide, and costs nothing; but of a unit that is needed it is read off the far tail of a log-normal,
    which says that the unit should stay, not by how much. ``"evaluated"`` runs data through the network with the unit
    and without (:meth:`evaluate`): that is what removing it does to the log likelihood, and Occam's factor of its
    noise. It needs ``batches``, as training has them: pairs of inputs and targets, or mappings that hold both, as a
    list, or a data loader over the training data or a part of it. The likelihood is the guide's model unless
    ``likelihood`` is given; ``num_exact`` is how many of all examples are run with each unit changed (see
    :meth:`evaluate`), and ``progress`` shows a progress bar. Under a KL weight other than 1, either is the evidence of
    the likelihood to the power of one over the weight.

    Example::

        >>> from pyro_bmrs.distributions import LogUniform
        >>> from pyro_bmrs.pruning import EvidenceCriterion
        >>> class LowestTenth(EvidenceCriterion):
        ...     def reduced_prior(self, prior):
        ...         return LogUniform(prior.low, prior.low**0.9 * prior.high**0.1)
        >>> LowestTenth().name
        'LowestTenth'
    """

    decides = True
    adds = True
    prior_log_odds: float | Mapping[str, float] = 1.0
    evidence: str = CLOSED
    batches: Iterable[Any] | None = None
    likelihood: Likelihood | None = None
    num_exact: int | None = NUM_EXACT
    progress: bool = False

    @abstractmethod
    def reduced_prior(self, prior: LogUniform) -> Distribution:
        """
        The prior of the noise of a unit that is as good as gone.

        :param prior: the log-uniform prior of the units of a site.
        """

    @property
    def name(self) -> str:
        """What tables call it; where the evidence is evaluated, it says so."""
        return type(self).__name__ + self._suffix

    @property
    def _suffix(self) -> str:
        return f"-{self.evidence}" if self.evidence != CLOSED else ""

    def scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        """
        The change in log evidence in nats, positive where the unit is better gone; 0 for units that are gone.

        :raises ReductionError: for another ``evidence`` than ``"closed"`` and ``"evaluated"``, and as :meth:`evaluate`.
        :warns ReductionWarning: where evidence that is evaluated is too uncertain to decide about a unit.
        """
        check_evidence(self.evidence, self.batches)
        if self.evidence == EVALUATED:
            return self._evaluated_scores(net, guide)
        scores = {}
        with torch.no_grad():
            for name, noise in guide.noise.items():
                prior = noise.unit_prior
                change = log_evidence_change(guide.noise_posterior(name), prior, self.reduced_prior(prior))
                scores[name] = torch.where(noise.kept, change, 0.0)
        return scores

    def evaluate(
        self,
        net: nn.Module,
        guide: AutoTruncatedLogNormal,
        batches: Iterable[Any],
        *,
        likelihood: Likelihood | None = None,
        num_exact: int | None = NUM_EXACT,
        progress: bool = False,
    ) -> UnitEvidence:
        r"""
        The evidence of each unit, evaluated on data, with its errors and what it is made of.

        All other units have their noise at its posterior mean, as the compact network has. With the log likelihood L of
        all the data as a function of the noise of one unit, its prior p, the reduced prior r and the KL weight
        :math:`\beta`, the change is :math:`\log E_r[e^{L/\beta}] - \log E_p[e^{L/\beta}]`. L is evaluated at three
        values of the noise and at its mean, where its slope is known too, and interpolated. The change is never below
        the difference of L where the unit is gone and where it is at its best.

        The network runs three times for each unit, from its layer on, for ``num_exact`` of the examples, drawn at
        random. For all of them its outputs are taken to be linear in the noise of a unit, which takes a run backwards
        for each output; the examples that are run say what that misses, and leave a standard error. A network of more
        than 32 outputs, and one with noise on the heads of ``nn.MultiheadAttention``, is evaluated on the examples that
        are run, and no others.

        :param net: a network with noise, fitted. It runs in evaluation mode, and stays as it is.
        :param guide: the guide of its noise.
        :param batches: pairs of inputs and targets, examples along the first dimension, or mappings that hold the
            targets as ``"labels"``. They are gone through once, and moved to where the network is. Where they hold
            fewer examples than the likelihood is told of, drawn at random, the sums are scaled, and there is a standard
            error.
        :param likelihood: by default the model of the guide.
        :param num_exact: of all examples, with how many to run the network for each unit (of a part of them, with as
            large a part); None for all.
        :param progress: whether to show a progress bar.
        :raises ReductionError: for a guide that does not belong to the network or is not fitted, a model that is no
            :class:`~pyro_bmrs.pruning.Likelihood`, a KL weight of 0, ``num_exact`` below 1, no example, more examples
            than ``num_examples``, a log likelihood that is not finite, or a reduced prior that leaves the prior.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from pyro_bmrs.pruning import BMRS_N, AutoTruncatedLogNormal, Classification, attach_noise, prune
            >>> _ = torch.manual_seed(0)
            >>> x, y = torch.randn(100, 3), torch.randint(2, (100,))
            >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
            >>> guide = AutoTruncatedLogNormal(Classification(net, num_examples=100))
            >>> guide.noise_locs.data.fill_(-0.5)  # in place of fitting
            tensor([-0.5000, -0.5000, -0.5000, -0.5000])
            >>> found = BMRS_N().evaluate(net, guide, [(x, y)])
            >>> found.change["0"].shape, found.num_evaluated
            (torch.Size([4]), 100)
            >>> prune(net, guide, BMRS_N(evidence="evaluated", batches=[(x, y)])).criterion.name
            'BMRS_N-evaluated'
        """
        return evaluate_units(
            *(net, guide, self.reduced_prior, batches), likelihood=likelihood, num_exact=num_exact, progress=progress
        )

    def _evaluated_scores(self, net: nn.Module, guide: AutoTruncatedLogNormal) -> Scores:
        assert self.batches is not None, "checked"
        options: dict[str, Any] = {"likelihood": self.likelihood, "num_exact": self.num_exact}
        found = self.evaluate(net, guide, self.batches, **options, progress=self.progress)
        margins, errors = self.margins(found.change), found.error
        doubtful = sum(
            int((guide.noise[name].kept & (error > _NEGLIGIBLE) & (margins[name].abs() < 2 * error)).sum())
            for name, error in errors.items()
        )
        if doubtful:
            warnings.warn(
                f"the evidence of {doubtful} of {sum(map(len, errors.values()))} units is within two standard errors "
                f"of what decides about them; it was evaluated on {found.num_evaluated} of {found.num_examples} "
                f"examples, {found.num_exact} of them exactly: give more batches or a larger num_exact, or look at the "
                "errors that .evaluate(...) returns",
                ReductionWarning,
                stacklevel=2,
            )
        return found.change

    def margins(self, scores: Scores) -> Scores:
        """The posterior log odds for removal: the change in log evidence plus the prior log odds."""
        return {name: score + self._odds(name, scores) for name, score in scores.items()}

    def _odds(self, name: str, scores: Scores) -> float:
        if not isinstance(self.prior_log_odds, Mapping):
            return self.prior_log_odds
        if name not in self.prior_log_odds:
            raise ReductionError(
                f"prior_log_odds has no entry for noise site {name!r}; it has {sorted(self.prior_log_odds)}, and the "
                f"sites are {sorted(scores)}"
            )
        return self.prior_log_odds[name]


def check_evidence(evidence: str, batches: Iterable[Any] | None) -> None:
    """
    Sees that it is said where evidence is from, and that there are data where it needs them.

    :raises ReductionError: if not.
    """
    if evidence not in (CLOSED, EVALUATED):
        raise ReductionError(f"evidence is {CLOSED!r} or {EVALUATED!r}, not {evidence!r}")
    if evidence == EVALUATED and batches is None:
        raise ReductionError(
            "evidence='evaluated' needs data: batches=, a data loader or a list of pairs of inputs and targets"
        )


@dataclass(frozen=True, kw_only=True)
class ClosedOrEvaluated(EvidenceCriterion):
    """
    A criterion whose evidence is in closed form, or evaluated on data, as its user says.

    :param evidence: ``"closed"`` or ``"evaluated"``; see :class:`EvidenceCriterion`.
    :param batches: what to evaluate it on.
    :param likelihood: with which, if it is not the model of the guide.
    :param num_exact: of all examples, with how many to run the network for each unit; None for all.
    :param progress: whether to show a progress bar.
    :raises ReductionError: for another ``evidence``, one to be evaluated without batches, and prior odds that are no
        finite numbers.
    """

    evidence: str = CLOSED
    batches: Iterable[Any] | None = field(default=None, repr=False, compare=False)
    likelihood: Likelihood | None = field(default=None, repr=False, compare=False)
    num_exact: int | None = field(default=NUM_EXACT, repr=False)
    progress: bool = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_evidence(self.evidence, self.batches)
        odds = self.prior_log_odds
        for number in odds.values() if isinstance(odds, Mapping) else (odds,):
            check_number(number, "prior_log_odds, in nats,")

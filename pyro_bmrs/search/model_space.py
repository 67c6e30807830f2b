# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a search finds: :class:`ModelSpace`."""

from __future__ import annotations

import html
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import Predictive
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.plotting import plot_model_space
from pyro_bmrs.reduction.check import Check
from pyro_bmrs.reduction.reduce_model import reduce_posterior
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.search import space_tables
from pyro_bmrs.search.averaging.comparison import compare_predictions
from pyro_bmrs.search.averaging.model_average import AveragedPosterior
from pyro_bmrs.search.averaging.prediction import Averaged
from pyro_bmrs.search.groups import Candidates, Groups
from pyro_bmrs.search.probabilities.models import ModelPosterior, Models
from pyro_bmrs.search.refinement.agreement import Agreement
from pyro_bmrs.search.refinement.checks import check_models, warn_of_problems
from pyro_bmrs.search.refinement.refine import Refinement
from pyro_bmrs.structure.copies import detached
from pyro_bmrs.structure.mixtures import mix
from pyro_bmrs.structure.vectorised import TURN, own_parameters, own_random_numbers, set_seed
from pyro_bmrs.tables import element_labels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class ModelSpace:
    """
    The models in which some groups of elements take a reduced prior, with their posterior probabilities. Made by
    :func:`search_models`.

    Of a sample, the models are those visited, with their part of the probability of all as the walks see it.
    After a greedy search, only the models around the best are known: all that the dozen least decided groups can form
    while the others stay as they are in the best. Probabilities are then relative to these, and the inclusion
    probability of any other group is the one that it has while the rest is as in the best model.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoMultivariateNormal
        >>> from pyro_bmrs import search_models
        >>> def model():
        ...     pyro.sample("weights", dist.Normal(torch.zeros(3), 1.).to_event(1))
        >>> pyro.clear_param_store()
        >>> guide = AutoMultivariateNormal(model, init_scale=0.1); _ = guide()
        >>> with torch.no_grad():
        ...     _ = guide.loc.copy_(torch.tensor([0.02, 0.2, 2.0]))
        >>> reduced, tail = {"weights": dist.Normal(0., 0.01)}, {"tail": {"weights": [1, 2]}}
        >>> space = search_models(guide, reduced, groups=tail, refine=False)  # the guide was not fitted to this model
        >>> space.table()[["reduced", "probability"]].round(3)
              reduced  probability
        rank
        1     nothing          1.0
        2        tail          0.0
    """

    def __init__(
        self,
        candidates: Candidates,
        groups: Groups,
        models: ModelPosterior,
        posterior: AveragedPosterior,
        strategy: str,
        agreement: Agreement | None = None,
    ) -> None:
        self._candidates, self._fitted = candidates, candidates.fitted
        self._groups, self._models, self._posterior, self._strategy = groups, models, posterior, strategy
        self.checks: tuple[Check, ...] = ()
        """What :meth:`check` found of the most probable models, the first first; empty where it was not asked."""
        self.agreement = agreement
        """How far inclusion probabilities are from integrals, by a sample of models; None where they were read off."""
        self.unrefined: str | None = None
        """Why :func:`search_models` did not :meth:`refine` by itself; None where it did, or was not to."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelSpace:
        """The same models, with a best one of its own. The fitted guide is not copied."""
        twin = type(self)(self._candidates, self._groups, self._models, self._posterior, self._strategy, self.agreement)
        twin.checks, twin.unrefined = self.checks, self.unrefined
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Without the best and the median model, which are made anew."""
        return {name: value for name, value in vars(self).items() if name not in ("best", "median")}

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that switch between their full and their reduced prior."""
        return self._groups.names

    @property
    def strategy(self) -> str:
        """
        How the models were found: ``"factorised"`` (from each group by itself), ``"exhaustive"``, ``"sample"``,
        ``"greedy"``, or ``"refined"`` after :meth:`refine`.
        """
        return self._strategy

    @property
    def num_models(self) -> int:
        """How many models have a probability here: all 2^n, those visited, or those around the best after a climb."""
        return self._models.num_models

    def top(self, num_models: int = 20) -> Models:
        """
        The most probable models.

        :return: which groups are reduced in each (shape ``(num_models, num_groups)``, boolean), and the log evidence
            less that of the full model (nats) and the posterior probability of each.
        """
        return self._models.top(num_models)

    @property
    def delta_evidence(self) -> dict[str, Tensor]:
        """For each site, the change in log evidence (nats) of reducing each element's group alone; 0 in no group."""
        return self._groups.spread(self._models.alone, 0.0)

    @property
    def alone(self) -> Tensor:
        """The change in log evidence (nats) of reducing each group alone, shape ``(num_groups,)``."""
        return self._models.alone

    @property
    def inclusion_probability(self) -> dict[str, Tensor]:
        """
        For each site, the posterior probability that each of its elements keeps its full prior; 1 in no group.

        :warns ReductionWarning: after a greedy search, which does not know them.
        """
        if self._models.inclusion_error.isnan().any():
            warnings.warn(
                "After a greedy search, inclusion probabilities are those beside the best model, and may be far off; "
                "take strategy='sample'.",
                ReductionWarning,
                stacklevel=2,
            )
        return self._groups.spread(self._models.inclusion_probability, 1.0)

    @property
    def inclusion_error(self) -> dict[str, Tensor]:
        """
        For each site, the standard error of each inclusion probability: 0 where all models are counted, NaN where it is
        not known, after a greedy search.
        """
        return self._groups.spread(self._models.inclusion_error, 0.0)

    @property
    def element_labels(self) -> dict[str, list[str]]:
        """For each site, the names of its elements, in the order of ``tensor.flatten()``."""
        labels = self._fitted.labels
        return {name: element_labels(name, reduced.shape, labels.get(name)) for name, reduced in self.reduced.items()}

    @property
    def reduced(self) -> dict[str, Tensor]:
        """For each site, which of its elements take their reduced prior in the most probable model."""
        return self._groups.spread(self.top(1).reduced[0], False)

    @cached_property
    def best(self) -> Reduction:
        """The most probable model."""
        return self.reduction(self.top(1).reduced[0])

    @cached_property
    def median(self) -> Reduction:
        """
        The median model: every group that keeps its full prior with a probability of at least a half.

        For prediction by a single model it is often better than the most probable one (Barbieri and Berger 2004,
        https://doi.org/10.1214/009053604000000238).
        """
        return self.reduction(self._models.inclusion_probability < 0.5)

    def reduction(self, reduced: Tensor | Sequence[bool]) -> Reduction:
        """
        One of the models.

        :param reduced: which groups are reduced, shape ``(num_groups,)``, boolean; a row of ``top().reduced``.
        """
        sides = self._groups.spread(torch.as_tensor(reduced), False)
        _, priors, reduced_priors = self._candidates
        stated = {name: mix(prior, reduced_priors[name], sides[name]) for name, prior in priors.items()}
        changed = {name: prior for name, prior in stated.items() if sides[name].any()}
        with TURN:
            return reduce_posterior(self._fitted, changed or stated)

    def check(self, num_models: int = 5, *, progress: bool = False) -> tuple[Check, ...]:
        """
        The most probable models as the model has them: the evidence of each, integrated, beside what was read off.

        The evidence of the full model is integrated once for all. :meth:`table` shows what was found.

        :param num_models: how many.
        :param progress: whether to show progress bars.
        :return: the :class:`Check` of each, which are :attr:`checks` from now on.
        :raises ReductionError: for a model that cannot be integrated, as :meth:`Reduction.check` does, and for a number
            of models that is not positive.
        :warns ReductionWarning: where the model says something else of their evidence or of their order, or its
            integrals are not to be trusted.
        """
        if not isinstance(num_models, int) or num_models < 1:
            raise ReductionError(f"the number of models to check must be a positive integer, not {num_models!r}")
        reduced, delta_evidence, _ = self.top(num_models)
        rows = tqdm(reduced, desc="models checked", disable=not progress, leave=False)
        each = (self.reduction(row) if row.any() else None for row in rows)
        checks = check_models(self._fitted, each, progress)
        # What is held against the model is what the table says: after refine(), not what the guide does.
        self.checks = tuple(replace(found, read_off=float(own)) for found, own in zip(checks, delta_evidence))
        warn_of_problems(self.checks, self._models.prior.log_prob(reduced))
        return self.checks

    def refine(self) -> ModelSpace:
        """
        The same models, each with its evidence by the model's own density at the mean of its reduced posterior.

        What one fit says of a model far out in the tail of its posterior is off, of logistic regressions by some
        tenths of a nat, and inclusion probabilities with it. One evaluation of the density for each model mends most
        of that, and draws of some of them the rest, in all but reductions: :attr:`best` is of the guide as before. Of
        more than 16,000 models, those that are drawn from them are evaluated, and weighted. Where the guide is no joint
        normal of all sites, or the density says so, reduced posteriors are those of the normal that has the moments of
        the full model's integral; inclusion probabilities then do not depend on what was fitted.

        :return: a new space, whose ``strategy`` is ``"refined"``, and whose :attr:`agreement` tells how far it goes.
        :raises ReductionError: for models around the best of a greedy search, and a model whose density is not at hand,
            or cannot be integrated where that is needed.
        :warns ReductionWarning: where integrals of some models say that inclusion probabilities are off all the same.
        """
        with TURN, torch.no_grad(), own_random_numbers(), own_parameters():
            set_seed(0)
            found = Refinement(self._candidates, self._groups, self._posterior, self._models).insist()
        found.warn(self._fitted.noun)
        return type(self)(self._candidates, self._groups, found.models, found.posterior, "refined", found.agreement)

    def compare(self, num_models: int = 5, *, num_samples: int = 1000, method: str = "stacking") -> pd.DataFrame:
        """
        The most probable models, by how well they predict each observation without it: the table of ``arviz.compare``.

        ``weight`` is that of a model in predictions: evidence says which model is true, if one is; stacking says how
        to mix their predictions, if none is (Yao, Vehtari, Simpson and Gelman 2018, https://doi.org/10.1214/17-BA1091).

        :param num_models: how many, at least two.
        :param num_samples: draws from the reduced posterior of each.
        :param method: of the weights: ``"stacking"``, ``"BB-pseudo-BMA"`` or ``"pseudo-BMA"``.
        :raises ReductionError: for models without observed sites, and fewer than two models.
        :warns ReductionWarning: where Pareto k is too large for the estimate of a model to be trusted.
        """
        with TURN:
            return compare_predictions(self._averaged, self._names(num_models), num_samples, method)

    def predictive(
        self, num_samples: int = 1000, *, num_models: int | None = None, method: str = "evidence", **options: Any
    ) -> Predictive:
        """
        Predictions averaged over the models: ``space.predictive()(x_new)["y"]``.

        Each draw is of a model, and of its reduced posterior. The model's own code predicts, called with new data as it
        would be for ``pyro.infer.Predictive``.

        :param num_samples: how many draws.
        :param num_models: over how many models, by default as for :meth:`average`, or the best five.
        :param method: by what models are weighted: ``"evidence"``, their probabilities, or, as for :meth:`compare`,
            ``"stacking"``, ``"BB-pseudo-BMA"`` or ``"pseudo-BMA"``, by how they predict.
        :param options: for ``pyro.infer.Predictive``, such as ``return_sites``.
        :raises ReductionError: where nothing but priors is known of the model, and as :meth:`compare` does.
        :warns ReductionWarning: as :meth:`average` and :meth:`compare` do.
        """
        averaged = self._averaged
        if method != "evidence":
            table = self.compare(num_models or 5, num_samples=num_samples, method=method)
            weights = self.alone.new_tensor(table["weight"].loc[self._names(num_models or 5)].tolist())
            averaged = averaged.over(self.top(len(weights)), weights / weights.sum())
        with TURN:
            return averaged.predictive(num_samples, num_models, options)

    @property
    def _averaged(self) -> Averaged:
        return Averaged(self._fitted, self._posterior, self._models)

    def _names(self, num_models: int) -> list[str]:
        """Of the most probable models."""
        rows = enumerate(self.top(num_models).reduced, 1)
        return [f"{rank}: without {space_tables.name_of_model(self.groups, row)}" for rank, row in rows]

    def average(self, num_models: int | None = None) -> dict[str, Distribution]:
        """
        The posterior of each site, averaged over the models with their probabilities.

        Exact for a factorised posterior. For a joint normal one, a mixture of normals over the most probable models.
        Where a reduced prior is a point the average has mass there, and ``log_prob`` at the point is the logarithm of
        this mass. Sites that do not depend on the models are as in the fitted guide.

        :param num_models: over how many models, by default as many as need no more than some 100 MB.
        :warns ReductionWarning: where the models averaged hold less than 99 % of the probability.
        """
        # What the fit computed them from is no part of the average.
        others = {name: detached(factor.posterior(name)) for name, factor in self._fitted.factor_of.items()}
        with torch.no_grad():
            return others | self._posterior.average(self._models, num_models).sites()

    def table(self, num_models: int = 20) -> pd.DataFrame:
        """
        A table of the most probable models, one row a model.

        ``reduced`` names the groups that take their reduced prior, ``delta_evidence`` is in nats. After a
        :meth:`check`, ``checked_delta_evidence`` is what the model says, with its ``standard_error`` and the
        ``pareto_k`` of its integrals, above 0.7 where they are not to be trusted; NaN for models that were not checked.
        """
        return space_tables.table_of(self.top(num_models), self.groups, self.checks)

    def summary(self) -> pd.DataFrame:
        """
        A table of the elements, one row each.

        ``mean`` and ``sd`` are of the fitted posterior, ``delta_evidence`` is of reducing the element's group alone
        (nats), ``inclusion_probability`` the probability that it keeps its full prior, with its ``inclusion_error``
        where not all models were counted, and ``reduced`` whether it takes the reduced prior in the best model.
        ``source`` is what the last three go by (see :attr:`source`). Moments are NaN where elements cannot be parted.
        """
        labels, posteriors = self.element_labels, {n: self._fitted.factor_of[n].posterior(n) for n in self.reduced}
        values = {
            "delta_evidence": self.delta_evidence,
            "inclusion_probability": self.inclusion_probability,
            **({"inclusion_error": self.inclusion_error} if self._models.inclusion_error.any() else {}),
            "reduced": self.reduced,
        }
        return space_tables.summary_of(self._groups, labels, posteriors, values, self.source)

    def to_arviz(self, num_samples: int = 1000, num_models: int | None = None) -> Any:
        """
        Draws from the averaged posterior as ArviZ data, with groups of what is known of models and elements.

        ``models`` are the hundred most probable: the groups of elements that they reduce, their ``delta_evidence``
        (nats) and ``probability``. ``inclusion_probability`` has a number for each element of each site, ``evidence``
        the change in log evidence of reducing its group alone.

        :param num_samples: how many draws.
        :param num_models: over how many models, as for :meth:`average`.
        :return: an ``InferenceData`` (ArviZ before 1.0) or a ``DataTree``, with the sites that depend on the models.
        """
        with torch.no_grad():
            draws = self._posterior.average(self._models, num_models).draw(num_samples)
        elements = {"inclusion_probability": self.inclusion_probability, "evidence": self.delta_evidence}
        attributes = {"strategy": self.strategy, "source": self.source}
        return space_tables.arviz_of(draws, elements, self.top(100), self.groups, self._fitted.labels, attributes)

    def plot(self, **options: Any) -> Figure:
        """The probabilities of models and of elements as a figure; see :func:`pyro_bmrs.plotting.plot_model_space`."""
        return plot_model_space(self, **options)

    def __repr__(self) -> str:
        return f"ModelSpace({self._size()}): {self._headline()}"

    def _size(self) -> str:
        count = len(self.groups)
        models = f"2^{count}" if self.num_models > 10**9 else f"{self.num_models:,}"
        return f"{count:,} groups, {models} models, {self.strategy}"

    def _headline(self) -> str:
        words = space_tables.words_of_source(self.agreement, self.unrefined, self._fitted.noun)
        return space_tables.headline_of(self.top(1), self.groups, self.checks[0].words() if self.checks else words)

    @property
    def source(self) -> str:
        """
        What inclusion probabilities go by.

        ``"model"`` is the model's own density, with which they are within a twentieth of those by integrals;
        ``"model, in doubt"`` where they are not, and ``"posterior"`` what was read off the posterior, which may be off.
        """
        if self.agreement is None:
            return "posterior"
        return "model" if self.agreement.is_close else "model, in doubt"

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Models and elements, with figures, as a page that stands by itself; as :meth:`Reduction.to_html`."""
        return space_tables.page_of(self, f"Space of models: {self._size()}", self._headline(), path)

    def _repr_html_(self) -> str:
        tables = f"{self.table(5).to_html()}{self.summary().to_html(max_rows=20)}"
        return f"<p><b>ModelSpace</b> ({self._size()}): {html.escape(self._headline())}</p>{tables}"

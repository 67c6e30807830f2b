# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How far a guide has moved: the divergence of what it was from what it is, site by site."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch.distributions import Distribution, kl_divergence

from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.posteriors.reduced_guide import ReducedGuide
from pyro_bmrs.refitting.training import Objective, mean_and_error
from pyro_bmrs.refitting.unpinning import unpinned_guide
from pyro_bmrs.structure.vectorised import set_seed

_KL_DRAWS = 1000
_KL_RUNS = 200


@dataclass(frozen=True, eq=False)
class Posteriors:
    """
    The posterior of each site of a guide, as it was at one time.

    :param objective: the guide, and what it is run with.
    :param known: the posterior of each site that the guide draws by itself.
    :param conditional: the sites whose posterior depends on others.
    :param guide: a copy of the guide; None where there are none of these.
    """

    objective: Objective
    known: Mapping[str, Distribution]
    conditional: tuple[str, ...]
    guide: Any

    @staticmethod
    @torch.no_grad()
    def of(objective: Objective, origin: FittedGuide | None) -> Posteriors:
        """
        Reads them off a guide.

        :param objective: the guide, and what it is run with.
        :param origin: the guide that it was made from, where that tells what its points are; None where it does not.
        """
        # Of a subsample, the same is read each time.
        set_seed(objective.schedule.seed)
        read = partial(read_guide, model=objective.model, args=objective.args, kwargs=dict(objective.kwargs))
        fitted = read(objective.guide)
        is_reduced = isinstance(objective.guide, ReducedGuide)
        if is_reduced and origin is not None and not _is_known(fitted) and _is_known(origin):
            # A vector with points in it has no density; in the place of each, both sides get the same.
            fitted = read(unpinned_guide(objective.guide, origin, objective.model))
        upstream = fitted.posterior_upstream(fitted.factor_of)
        known = {
            name: copy.deepcopy(factor.posterior(name))
            for name, factor in fitted.factor_of.items()
            if not upstream[name]
        }
        conditional = tuple(name for name in fitted.factor_of if upstream[name])
        return Posteriors(objective, known, conditional, fitted.unreduced_guide if conditional else None)

    @torch.no_grad()
    def divergences_from(self, earlier: Posteriors) -> dict[str, tuple[float, float]]:
        """
        The Kullback-Leibler divergence (nats) of each site's earlier posterior from this one, with its standard error.

        That of a site whose posterior depends on others is the divergence given these, averaged over them, so that all
        add up to that of the joint posteriors.
        """
        shared = sorted(self.known.keys() & earlier.known.keys())
        found = {name: _divergence(self.known[name], earlier.known[name]) for name in shared}
        whole = {name: divergence for name, divergence in found.items() if divergence is not None}
        return whole | self._conditional_divergences(earlier)

    def _conditional_divergences(self, earlier: Posteriors) -> dict[str, tuple[float, float]]:
        """By runs of this guide, and of the earlier one upon its values."""
        names = [name for name in self.conditional if name in earlier.conditional]
        ratios = {name: np.empty(_KL_RUNS) for name in names}
        args, kwargs = self.objective.args, self.objective.kwargs
        for index in range(_KL_RUNS if names else 0):
            set_seed(self.objective.schedule.seed + index)
            now = poutine.trace(self.guide).get_trace(*args, **kwargs)
            then = poutine.trace(poutine.replay(earlier.guide, trace=now)).get_trace(*args, **kwargs)
            for name, values in ratios.items():
                one: Any = now.nodes[name]
                other: Any = then.nodes[name]
                values[index] = float((one["fn"].log_prob(one["value"]) - other["fn"].log_prob(one["value"])).sum())
        return {name: mean_and_error(values) for name, values in ratios.items() if np.isfinite(values).all()}


def _is_known(fitted: FittedGuide) -> bool:
    return fitted.sites <= fitted.factor_of.keys()


def _divergence(refitted: Distribution, reduced: Distribution) -> tuple[float, float] | None:
    """In closed form where there is one, else by draws; None where a density is not known."""
    try:
        return float(kl_divergence(refitted, reduced).sum()), 0.0
    except NotImplementedError:
        pass
    try:
        draws = refitted.sample(torch.Size([_KL_DRAWS]))
        ratios = refitted.log_prob(draws) - reduced.log_prob(draws)
    except NotImplementedError:
        return None
    return mean_and_error(ratios.reshape(_KL_DRAWS, -1).sum(-1).double().cpu().numpy())

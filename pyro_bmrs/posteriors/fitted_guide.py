# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A fitted guide, read: the priors of its model's latent sites, and the factors of its posterior."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoMessenger
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.posteriors.draws import Draws, PriorAtDraws, log_density, log_density_unseen
from pyro_bmrs.posteriors.factors import Factor
from pyro_bmrs.posteriors.guides.guide_factors import read_factors
from pyro_bmrs.posteriors.guides.pickles import Signature, bare_trace, signature
from pyro_bmrs.posteriors.reduced_guide import GuideCopy, ReducedGuide
from pyro_bmrs.posteriors.traces import (
    GuideRun,
    first_run,
    latent_nodes,
    masked_prior,
    of_one_branch,
    replay_whole,
    run,
    subsampled_plates,
    track,
    track_guide,
    upstream_sites,
    weight,
)
from pyro_bmrs.structure.copies import with_own_tensors
from pyro_bmrs.structure.parameters import map_parameters
from pyro_bmrs.structure.vectorised import Vectorised
from pyro_bmrs.tables import SiteLabels


class FittedGuide(GuideRun):
    """
    A fitted guide, read; made of what a :class:`~pyro_bmrs.posteriors.traces.GuideRun` is made of.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_guide
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> read_guide(guide, model).noun
        'the guide'
    """

    noun = "the guide"

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The guide's independent factors, as far as their densities are known."""
        return tuple(with_own_tensors(factor) for factor in read_factors(self.guide, self))

    @cached_property
    def copy(self) -> GuideCopy:
        """The guide as it is when this is first asked for."""
        return GuideCopy.take(self.guide, (self.args, self.kwargs))

    labels: ClassVar[Mapping[str, SiteLabels]] = {}
    """What the dimensions of sites are called, and the places along them, where that was said."""

    left_alone: ClassVar[Mapping[str, Tensor]] = {}
    """Nothing is drawn beside the model's sites."""

    restored: ClassVar[bool] = False
    """Whether it comes out of a pickle, with a copy of the guide in the place of the guide."""

    def __reduce__(self) -> tuple[Any, ...]:
        self.keep()
        traces = tuple(map(bare_trace, self.traces))
        kept = {"copy": self.copy, "factors": self.factors, "traces": traces, "signature": self.signature}
        kept["labels"] = self.labels
        return _made_anew, (self.model, self.args, self.kwargs, kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> FittedGuide:
        """Itself: once kept, nothing changes it, and the guide that it knows is the user's."""
        return self

    @cached_property
    def signature(self) -> Signature:
        """By which the guide is known where a copy of it comes out of a pickle."""
        return signature(self.guide if self.given is None else self.given)

    def keep(self) -> None:
        """Reads now what is read off the guide, so that more SVI with it changes nothing."""
        _ = self.traces, self.factors, self.copy

    @property
    def trace(self) -> poutine.Trace:
        """A run of the model, at values that the guide draws or began with."""
        return self.traces[1]

    @cached_property
    def unreduced_guide(self) -> ReducedGuide:
        """The guide as it was when it was kept, to be run: with parameters of its own, and all its statements."""
        return self.with_statements({}, self.model)

    @cached_property
    def factor_of(self) -> dict[str, Factor]:
        """The factor that determines each site whose density is known."""
        return {name: factor for factor in self.factors for name in factor.sites}

    @property
    def factored(self) -> FittedGuide | None:
        """Itself, where the density of some of its sites is known; None where it can only be drawn from."""
        return self if self.factors else None

    def prior(self, name: str) -> Distribution:
        """The prior of a site, at the size of the whole data where the guide's posterior is."""
        site: Any = self.traces[1].nodes[name]
        if self.is_weighted(name):
            raise ReductionError(
                f"the model counts the prior of site {name!r} with a weight other than 1 (poutine.scale), so that it "
                "is no density; take reduce_model with method='auto' or 'importance', which draw"
            )
        plates = subsampled_plates(site)
        if not plates or self.is_local(name):
            return masked_prior(site)
        if site["mask"] is not None and site["mask"] is not True:
            raise ReductionError(
                f"site {name!r} is masked in a subsampled plate, and its mask is seen on one subsample alone; pass "
                "args= for which the model subsamples nothing"
            )
        return _widen(name, site["fn"], plates)

    def is_weighted(self, name: str) -> bool:
        """Whether the model counts the site's prior with a weight other than 1, as ``poutine.scale`` gives it."""
        found = self._weight(self.traces[1].nodes[name])
        return isinstance(found, Tensor) or found != 1.0

    def _weight(self, site: Any) -> Tensor | float:
        """
        The power to which a prior is raised where the guide is at its best.

        What scales the guide's own statement as well, as it does where a messenger runs the model, scales the whole
        divergence: the prior counts once, and the likelihood for so much less.
        """
        name, guide_trace = site["name"], self.traces[0]
        runs_itself = first_run(self.guide) is None and name in guide_trace.nodes
        own = weight(guide_trace.nodes[name]) if runs_itself else 1.0
        ratio = weight(site) / own
        is_one = torch.allclose(ratio, torch.ones_like(ratio)) if isinstance(ratio, Tensor) else ratio == 1.0
        return 1.0 if is_one else ratio

    def is_local(self, name: str) -> bool:
        """Whether the guide knows the site on the plates' current subsample alone."""
        return name in self.factor_of and self.factor_of[name].traced and self.scale(name) != 1.0

    def multiplicity(self, name: str) -> float:
        """How many elements of a site each of those stands for that the guide knows: 1 where it knows them all."""
        return self.scale(name) if self.is_local(name) else 1.0

    def scale(self, name: str) -> float:
        """How many elements each element of a subsampled site stands for: plate size over subsample size."""
        return prod(size / subsample for _, subsample, size in subsampled_plates(self.traces[1].nodes[name]))

    def draw(self, names: Collection[str], num_samples: int, progress: bool = False) -> Draws:
        """
        Joint draws, with the priors of some sites at each of them: runs of guide and model, at once where their code
        allows it.

        :param names: the sites whose priors are asked for.
        :param num_samples: how many draws.
        :param progress: whether to show a progress bar.
        """
        vectorised = Vectorised("drawing from the guide")
        drawn = sorted(self.sites)
        guide = self.unreduced_guide if "copy" in vars(self) else self.guide

        def run_once() -> dict[str, Any]:
            of_guide, of_model = map(latent_nodes, run(guide, self.model, self.args, self.kwargs))
            for name in drawn:
                if name not in of_guide or name not in of_model:
                    raise of_one_branch(name, "the model" if name in of_guide else self.noun)
            return of_model

        def draw_one(_: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            nodes = run_once()
            density = log_density_unseen if vectorised.at_once else log_density
            log_probs = {name: density(masked_prior(nodes[name]), nodes[name]["value"]) for name in names}
            return {name: nodes[name]["value"] for name in drawn}, log_probs

        values, log_probs = vectorised(draw_one, torch.arange(num_samples), progress=progress)
        # One run more, alone: what guide and model keep of their last run is not to be of the vectorised one.
        with torch.no_grad():
            nodes = run_once()
        priors = {
            name: PriorAtDraws(masked_prior(nodes[name]), log_probs[name], self.scale(name) * self._weight(nodes[name]))
            for name in names
        }
        return Draws(values, priors)

    def log_weights(self, num_samples: int) -> Tensor | None:
        """
        log p(data, x) - log q(x) at draws x of the guide, shape ``(num_samples,)``: how far it is from the posterior.

        None where one of the two has no density for it: the model has sites that the guide does not draw, or the guide
        draws more than these.
        """
        guide = self.unreduced_guide if "copy" in vars(self) else self.guide
        if self.latent != self.sites or not self._draws_sites_alone(guide):
            return None

        def weigh(_: Tensor) -> Tensor:
            of_guide, of_model = run(guide, self.model, self.args, self.kwargs)
            ratio: Tensor = of_model.log_prob_sum() - of_guide.log_prob_sum()  # type: ignore[assignment]
            return ratio

        log_weights: Tensor = Vectorised("drawing from the guide")(weigh, torch.arange(num_samples))
        return log_weights

    def _draws_sites_alone(self, guide: Any) -> bool:
        """Whether all that a guide draws is sites of the model, or, as autoguides do it, a one-to-one map of them."""
        inner = guide.fitted_guide if isinstance(guide, ReducedGuide) else guide
        if isinstance(inner, (AutoGuide, AutoMessenger)):
            return not isinstance(inner, AutoDelta)
        return frozenset(latent_nodes(self.traces[0])) <= self.latent

    def upstream(self, names: Collection[str]) -> dict[str, frozenset[str]]:
        """
        For each site, the other latent sites that its prior, or its posterior in a traced guide, depends on.

        Among the latter may be auxiliary ones, which the guide alone has.
        """
        tracked = track(replay_whole(self.model, self.traces[0]), self.args, self.kwargs)
        latent = frozenset(latent_nodes(tracked))
        posterior = self.posterior_upstream(names)
        return {name: (sites & latent) | posterior[name] for name, sites in upstream_sites(tracked, names).items()}

    def posterior_upstream(self, names: Collection[str]) -> dict[str, frozenset[str]]:
        """For each site, the guide's other sites that its posterior depends on, which happens in a traced guide."""
        found: dict[str, frozenset[str]] = dict.fromkeys(names, frozenset())
        traced = [name for name in names if name in self.factor_of and self.factor_of[name].traced]
        if traced:
            tracked = track_guide(self.guide, self.args, self.kwargs)
            drawn = frozenset(latent_nodes(tracked))
            found |= {name: sites & drawn for name, sites in upstream_sites(tracked, traced).items()}
        return found

    def with_statements(self, statements: Mapping[str, Distribution], model: Callable[..., Any]) -> ReducedGuide:
        """
        A guide with other distributions in some of its sample statements, and parameters of its own.

        :param statements: the distributions, by sample statement. Those that a reduced guide has in place already
            stay, but for those named here.
        :param model: the model that the new guide belongs to.
        """
        return ReducedGuide(self.copy, model, {**self.copy.statements, **statements}, (self.args, self.kwargs))


def _made_anew(model: Any, args: Any, kwargs: Any, kept: Mapping[str, Any]) -> FittedGuide:
    fitted = FittedGuide(kept["copy"].guide, model, args, kwargs)
    vars(fitted).update(kept, restored=True)
    return fitted


def _widen(name: str, prior: Distribution, plates: Sequence[tuple[int, int, int]]) -> Distribution:
    """A prior seen on a subsample, at the size of the whole plate: it must be the same for all elements seen."""

    def widen(path: str, value: Tensor, constraint: Constraint, event_dim: int) -> Tensor:
        for plate_dim, subsample_size, size in plates:
            dim = plate_dim - event_dim
            if value.dim() < -dim or value.shape[dim] != subsample_size:
                continue
            if not (value == value.narrow(dim, 0, 1)).all():
                raise ReductionError(
                    f"the prior of site {name!r} differs between the elements of a subsampled plate, and only those of "
                    "one subsample are seen; pass args= for which the model subsamples nothing"
                )
            value = value.narrow(dim, 0, 1).expand(value.shape[:dim] + (size,) + value.shape[value.dim() + dim + 1 :])
        return value

    return map_parameters(prior, widen)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How an answer depends on the prior of a site: :func:`prior_sensitivity`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError, ReductionWarning, check_number, name_of_unknown
from pyro_bmrs.evidence.dispatch import NUM_SAMPLES
from pyro_bmrs.integration.fits import Shift, fit_of, full_evidence, mean_shift
from pyro_bmrs.integration.stated_model import LogDensity, PriorLike, check_density, read_stated
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.traces import masked_prior
from pyro_bmrs.reduction.automatic import check_where_cheap, where_cheap
from pyro_bmrs.reduction.families.curves import Curve, CurveOf, DrawsCurve, GuideCurve, ModelCurve
from pyro_bmrs.reduction.families.grid import FamilyLike, Grid, read_grid
from pyro_bmrs.reduction.families.sensitivity import PriorSensitivity, words
from pyro_bmrs.reduction.priors import ReducedPriors, match_prior
from pyro_bmrs.reduction.reduce_model import check_not_a_point, reduce_posterior, upstream_of
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.structure.copies import with_own_tensors
from pyro_bmrs.structure.layers import peel
from pyro_bmrs.structure.mixtures import mix
from pyro_bmrs.structure.vectorised import TURN, own_parameters, own_random_numbers, set_seed
from pyro_bmrs.tables import LabelsLike, element_labels


def prior_sensitivity(
    guide: Any,
    site: str,
    family: FamilyLike | None = None,
    grid: Any = None,
    *,
    against: Distribution | None = None,
    element: int | str | None = None,
    threshold: float = 0.0,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    prior: PriorLike | None = None,
    log_density: LogDensity | None = None,
    num_samples: int = NUM_SAMPLES,
    check: bool | str = "auto",
    labels: LabelsLike | None = None,
    progress: bool = False,
) -> PriorSensitivity:
    """
    How the evidence, the posterior and a decision depend on the prior of a site, from one fit.

    For each prior r of a grid in the place of the site's prior p, the log evidence changes by log E_q[r(x) / p(x)],
    and the posterior becomes q(x) r(x) / p(x), normalised, as in :func:`~pyro_bmrs.reduce_model` (Friston,
    Parr and Zeidman 2018, https://arxiv.org/abs/1805.07092). Priors may be
    broader than p, as long as that integral converges. It takes them all at once.

    :param guide: a fitted guide or draws from the posterior, as for :func:`~pyro_bmrs.reduce_model`.
    :param site: the site whose prior varies.
    :param family: the name of a parameter of its prior, which varies (by default ``"scale"``, or the only positive
        one); a function from a number to a prior; or priors by name.
    :param grid: the numbers; by default a hundred, from a tenth of the parameter to ten times it, or, of one that may
        be negative, within three standard deviations of the prior around it.
    :param against: a prior that each one of the grid is compared with, such as ``dist.Delta(torch.tensor(0.))`` for a
        null hypothesis; by default the model's own.
    :param element: the one element whose prior varies: its place in ``flatten()``, or its name; by default all of them.
    :param threshold: how many nats a log Bayes factor needs, to decide anything.
    :param model: the model, where the guide does not know it.
    :param args: positional arguments of model and guide; autoguides and an MCMC run remember theirs.
    :param kwargs: keyword arguments of both, remembered as those are.
    :param prior: the priors of draws that know no model, as for :func:`~pyro_bmrs.reduce_model`.
    :param log_density: the log joint density of such draws, as for :func:`~pyro_bmrs.reduce_model`.
    :param num_samples: draws from a guide, where there is no rule and no quadrature.
    :param check: whether to ask the model: True, False, or ``"auto"``, where that costs less than its fit did, as for
        :func:`~pyro_bmrs.reduce_model`. The evidence of the full model is integrated once, and its draws are weighted
        for each prior.
    :param labels: names of a site's elements, as for :func:`~pyro_bmrs.reduce_model`.
    :param progress: whether to show a progress bar while drawing.
    :return: the :class:`PriorSensitivity`.
    :raises ReductionError: for an unknown site, a grid without numbers or outside the parameter's domain, priors that
        do not fit the site, or all of which are so broad that the integral diverges, and whatever
        :func:`~pyro_bmrs.reduce_model` objects to.
    :warns ReductionWarning: of priors whose integral diverges, or whose importance weights have a Pareto k above 0.7,
        and where the model says otherwise.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import prior_sensitivity
        >>> def model():
        ...     pyro.sample("slope", dist.Normal(0., 1.))
        >>> pyro.clear_param_store()
        >>> guide = AutoNormal(model, init_scale=0.2); _ = guide()
        >>> with torch.no_grad():
        ...     _ = guide.locs.slope.copy_(torch.tensor(0.5))
        >>> found = prior_sensitivity(guide, "slope", against=dist.Delta(torch.tensor(0.)), check=False)
        >>> found
        PriorSensitivity(slope, 100 priors, exact): the decision for the prior holds from 0.1 to 5.26 for the scale of
        the prior of slope; the data favour the point 0 from 5.26 to 10 (of the posterior, not checked against the
        model)
    """
    check_options(threshold, check)
    with TURN, torch.no_grad():
        fitted = read_stated(guide, model, args, kwargs, prior, log_density, labels)
        if site not in fitted.sites:
            raise name_of_unknown(site, fitted.sites, fitted.noun)
        asked = Question(fitted, site, element, num_samples, progress)
        found = asked.answer(family, grid, against, threshold, check)
    for problem in problems(found):
        warnings.warn(problem, ReductionWarning, stacklevel=2)
    return found


def check_options(threshold: float, check: bool | str) -> None:
    """
    That options are what they can be.

    :raises ReductionError: where they are not.
    """
    if check not in (True, False, "auto"):
        raise ReductionError(f"check must be 'auto', True or False, not {check!r}")
    check_number(threshold, "threshold", low=0.0)


class Question:
    """A site of a posterior, whose prior is to vary."""

    def __init__(
        self, fitted: Posterior, site: str, element: int | str | None, num_samples: int, progress: bool
    ) -> None:
        self._fitted, self._site, self._num_samples, self._progress = fitted, site, num_samples, progress
        self._shift: Shift | None = None
        fitted.keep()
        self._prior = with_own_tensors(self._read_prior())
        shape = self._prior.batch_shape + self._prior.event_shape
        labels = fitted.labels.get(site)
        self.names = names = element_labels(site, shape, labels)
        """Of all the elements of the site."""
        self._element = _place(site, element, names, None if labels is None else list(labels.places(shape)))
        self.labels = names if self._element is None else [names[self._element]]
        # That it is a site of its own is asked of whatever takes the place of its prior.
        self._as_reduced = ReducedPriors({site: frozenset()}, lambda name, _: self._prior)
        self._others = upstream_of(fitted, self._as_reduced)[site]

    def _read_prior(self) -> Distribution:
        factored, site = self._fitted.factored, self._site
        if factored is not None and site in factored.factor_of and not factored.is_weighted(site):
            return factored.prior(site)
        return masked_prior(self._fitted.trace.nodes[site])

    def answer(
        self, family: FamilyLike | None, grid: Any, against: Distribution | None, threshold: float, check: bool | str
    ) -> PriorSensitivity:
        """What the posterior says, and, where it is to be asked, the model."""
        found = self._of_posterior(family, grid, against, threshold)
        if check:
            self._check(found, check == "auto")
        return found

    def _of_posterior(
        self, family: FamilyLike | None, grid: Any, against: Distribution | None, threshold: float
    ) -> PriorSensitivity:
        if self._others and (family is None or isinstance(family, str)):
            raise ReductionError(
                f"the prior of site {self._site!r} depends on {sorted(self._others)}, so that its parameters are none "
                "to vary; give family= as a function from a number to a prior, or priors by name, or vary the prior of "
                f"{min(self._others)!r}"
            )
        whole = read_grid(self._site, self._prior, family, grid)
        curve_of = self._curve_of(whole)
        with own_random_numbers():
            set_seed(0)
            curve = curve_of(whole)
        other = None if against is None else self._reduce(against)
        called = "" if against is None else words(against)
        return PriorSensitivity(self._site, whole, curve, curve_of, other, threshold, self.labels, called)

    def _curve_of(self, grid: Grid) -> CurveOf:
        factored, site = self._fitted.factored, self._site
        if factored is not None and site in factored.factor_of and not self._others and not factored.is_weighted(site):
            if factored.multiplicity(site) != 1.0:
                raise ReductionError(
                    f"the guide knows site {site!r} on a subsample of its plate alone; pass args= for which nothing is "
                    "subsampled"
                )
            check_not_a_point(factored, self._as_reduced)
            curve = GuideCurve(factored, site, self._element)
            if all(map(curve.is_exact, _one_of_each_type(grid.priors()))):
                return curve
        draws = self._fitted.draw([site], self._num_samples, self._progress)
        return DrawsCurve(draws, site, self._element)

    def _reduce(self, against: Distribution) -> Reduction:
        stated = match_prior(self._site, against, self._prior)
        if self._element is not None:
            if self._others:
                raise ReductionError(
                    f"the prior of site {self._site!r} depends on {sorted(self._others)}, so that no element of it can "
                    "be held against another prior alone; leave element= out"
                )
            mask = torch.zeros(self._prior.batch_shape + self._prior.event_shape, dtype=torch.bool)
            mask.view(-1)[self._element] = True
            stated = mix(self._prior, stated, mask)
        return reduce_posterior(self._fitted, {self._site: stated}, num_samples=self._num_samples)

    def _check(self, found: PriorSensitivity, unasked: bool) -> None:
        """Asks the model, too; where that was not asked for, if it costs less than the fit."""
        if unasked:
            found.checked, found.unchecked = where_cheap(
                self._fitted, lambda _: found.grid.priors(), lambda: self._by_model(found.grid)
            )
            if found.checked is not None and found.against is not None:
                check_where_cheap(found.against)
        else:
            check_density(self._fitted.model, "a check")
            with own_random_numbers(), own_parameters():
                set_seed(0)
                found.checked = self._by_model(found.grid)
            if found.against is not None and found.against.method != "integration":
                found.against.check(progress=self._progress)
        found.shift = self._shift

    def _by_model(self, grid: Grid) -> Curve:
        if self._others:
            raise ReductionError(f"the prior of site {self._site!r} depends on {sorted(self._others)}")
        fit = fit_of(self._fitted)
        is_known = None in fit.evidence
        full = full_evidence(self._fitted, progress=self._progress)
        fit.num_evaluations += 0 if is_known else full.integral.num_evaluations
        if not full.trusted:
            raise ReductionError("the integral of the model has not converged")
        if self._fitted.guide is None:
            self._shift = mean_shift(self._fitted, full)
        return ModelCurve(full, self._prior, self._site, self._element)(grid)


def _one_of_each_type(priors: list[Distribution]) -> list[Distribution]:
    return list({type(peel(prior).core): prior for prior in priors}.values())


def _place(site: str, element: int | str | None, names: list[str], places: list[tuple[Any, ...]] | None) -> int | None:
    """The place of an element, in ``flatten()``; None for all."""
    if element is None or isinstance(element, bool):
        return None
    if isinstance(element, int):
        if not -len(names) <= element < len(names):
            raise ReductionError(f"site {site!r} has {len(names)} elements, so none at {element}")
        return element % len(names)
    found = [at for at, name in enumerate(names) if name == element or places and element in map(str, places[at])]
    if len(found) != 1:
        raise ReductionError(
            f"{'several' if found else 'no'} elements of site {site!r} are called {element!r}; they are {names[:20]}"
        )
    return found[0]


def problems(found: PriorSensitivity) -> list[str]:
    """What is not to be trusted, each in a sentence or two."""
    places, said = found.places, []
    if found.curve.diverged is not None:
        lost = [place for place, value in zip(places, found.delta_evidence.tolist()) if value != value]
        said.append(
            f"The evidence cannot be had with {len(lost)} of the {len(places)} priors, the first at {found.label} "
            f"{_short(lost[0])}: {found.curve.diverged}"
        )
    k = found.pareto_k
    heavy = [place for place, value in zip(places, [] if k is None else k.tolist()) if not value <= 0.7]
    if heavy:
        said.append(
            f"The estimate is not to be trusted with {len(heavy)} of the {len(places)} priors, the first at "
            f"{found.label} {_short(heavy[0])}: their Pareto k is above 0.7. The posterior has too few draws where it "
            "would be under them; take more draws, or a fit under a prior nearer to these."
        )
    if found.shift is not None and found.shift.is_far:
        said.append(
            f"{found.shift.words('The set of draws')}. See that model=, args= and kwargs= are those that were "
            "sampled with."
        )
    off = found.off()
    if off is not None:
        worst = int(off.argmax())
        said.append(
            f"The model says otherwise with {int((off > 0).sum())} of the {len(places)} priors, by up to "
            f"{float(off[worst]):.2g} nats, at {found.label} {_short(places[worst])}. Go by checked_log_bayes_factor; "
            "the posterior is mended by more steps of SVI, a richer guide, or more draws."
        )
    return said


def _short(place: Any) -> str:
    return f"{place:.3g}" if isinstance(place, float) else repr(place)

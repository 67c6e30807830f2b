# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The front door: :func:`reduce_model` and the :class:`Reduction` that it returns."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs import arviz_adapter
from pyro_bmrs.errors import ReductionError, ReductionWarning, name_of_unknown
from pyro_bmrs.evidence.accuracy import Estimated
from pyro_bmrs.evidence.dispatch import METHODS, NUM_SAMPLES
from pyro_bmrs.plotting import plot_reduction
from pyro_bmrs.posteriors.draws import Draws
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.reading import read_posterior
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide
from pyro_bmrs.reduction.check import Check, check_reduction
from pyro_bmrs.reduction.factorwise import FactorwiseReduction
from pyro_bmrs.reduction.integrated import IntegratedReduction
from pyro_bmrs.reduction.priors import ReducedPriorLike, ReducedPriors, read_reduced_priors, reduced_model
from pyro_bmrs.reduction.weighted import DrawnReduction
from pyro_bmrs.structure.layers import has_points
from pyro_bmrs.tables import element_labels, moments

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def reduce_model(
    guide: Any,
    reduced_prior: ReducedPriorLike,
    *,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    method: str = "auto",
    num_samples: int = NUM_SAMPLES,
    progress: bool = False,
) -> Reduction:
    """
    How the log evidence and the posterior change when some sites get another prior, without refitting.

    The guide stands for the posterior under the model's own priors. With q the posterior, p the prior and r the reduced
    prior of the sites named, the change in log evidence is log E_q[r(x) / p(x)], and the reduced posterior is
    q(x) r(x) / p(x), normalised (Friston, Parr and Zeidman 2018, https://arxiv.org/abs/1805.07092). It is as good as
    the guide is: exact if the guide is the posterior.

    :param guide: a fitted guide: any Pyro autoguide or GuideMessenger, or a callable with sample sites (then ``model``
        is needed); or draws from the posterior: a finished ``pyro.infer.MCMC``, or an ArviZ posterior
        (``InferenceData`` or ``DataTree``; ``model`` is needed).
    :param reduced_prior: a distribution (where there is one latent site), a mapping from site name to distribution, or
        a Pyro program whose sample sites are the reduced priors. ``dist.Delta(x0)`` fixes a site at ``x0``.
    :param model: the model, where the guide does not know it.
    :param args: positional arguments of model and guide, as given to ``svi.step``; autoguides and an MCMC run remember
        theirs.
    :param kwargs: keyword arguments of both, remembered as those are.
    :param method: ``"auto"`` takes the exact rule where there is one, else quadrature for one-dimensional elements,
        else importance sampling, and where the draws are too few for that, or a point is asked for, the integrals of
        the model's density under both priors; ``"exact"``, ``"quadrature"``, ``"importance"`` and ``"integration"``
        insist on one. Integrals have no gradient.
    :param num_samples: draws for importance sampling from a guide; of draws that are there already, all are used.
    :param progress: whether to show a progress bar while drawing.
    :return: the :class:`Reduction`.
    :raises ReductionError: for what the caller can mend: an unknown site, shapes that do not fit, a reduced prior
        broader than the prior or outside its support, a guide that is not fitted or has no density, draws that are
        not finite or not of the model's sites.
    :warns ReductionWarning: where the importance weights' Pareto k is above 0.7.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import reduce_model
        >>> def model(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0., 1.))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.), obs=y)
        >>> pyro.clear_param_store(); pyro.set_rng_seed(0)
        >>> x = torch.linspace(-2., 2., 50)
        >>> guide = AutoNormal(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        >>> for _ in range(500): loss = svi.step(x, torch.sin(x))
        >>> reduction = reduce_model(guide, dist.Delta(torch.tensor(0.)))
        >>> bool(reduction.delta_evidence < 0)
        True
    """
    if method not in METHODS:
        raise ReductionError(f"method must be one of {', '.join(map(repr, METHODS))}, not {method!r}")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ReductionError(f"num_samples must be a positive integer, not {num_samples!r}")
    fitted = read_posterior(guide, model, args, kwargs)
    return reduce_posterior(fitted, reduced_prior, method, num_samples, progress)


def reduce_posterior(
    fitted: Posterior,
    reduced_prior: ReducedPriorLike,
    method: str = "auto",
    num_samples: int = NUM_SAMPLES,
    progress: bool = False,
    draws: Draws | None = None,
) -> Reduction:
    """
    What :func:`reduce_model` does once the posterior has been read.

    Factor by factor where posterior, prior and reduced prior of each reduced site have a density of their own, else by
    draws.

    :param fitted: the posterior, read.
    :param reduced_prior: as for :func:`reduce_model`, as are ``method``, ``num_samples`` and ``progress``.
    :param draws: draws from it to use where importance sampling has to be, rather than new ones.
    :raises ReductionError: as :func:`reduce_model` does.
    """
    priors = read_reduced_priors(reduced_prior, fitted.latent, fitted.args, fitted.kwargs)
    upstream = _upstream(fitted, priors)
    factored = fitted.factored
    if (
        method != "integration"
        and factored is not None
        and all(name in factored.factor_of and not upstream[name] for name in priors.sites)
    ):
        how = {"method": method, "num_samples": num_samples}
        return Reduction(fitted, priors, FactorwiseReduction(factored, priors, how))
    if method == "integration" or (method == "auto" and _has_points(fitted, priors)):
        return Reduction(fitted, priors, IntegratedReduction(fitted, priors, progress))
    if method not in ("auto", "importance"):
        raise ReductionError(
            f"method={method!r} cannot be had: the posterior or the prior of a reduced site depends on other sites, or "
            "has no density of its own; take method='auto' or 'importance'"
        )
    given = draws is not None
    draws = fitted.draw(sorted(priors.sites), num_samples, progress) if draws is None else draws
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReductionWarning)
        drawn = DrawnReduction(draws, priors, (fitted.args, fitted.kwargs))
    if caught and method == "auto" and not given and not drawn.delta_evidence.requires_grad:
        # Where the posterior has too few draws, the model can still be asked.
        try:
            return Reduction(fitted, priors, IntegratedReduction(fitted, priors, progress))
        except ReductionError:
            pass  # a model without a density at hand
    for warning in caught:
        warnings.warn(warning.message, stacklevel=3)
    return Reduction(fitted, priors, drawn)


def _has_points(fitted: Posterior, priors: ReducedPriors) -> bool:
    """Whether a reduced prior has its mass at points, at which no draw of a continuous posterior lies."""
    drawn = fitted.draw(sorted(priors.sites), 1)
    values = {name: values[0] for name, values in drawn.values.items()}
    continuous = [name for name, prior in drawn.priors.items() if not prior.example.support.is_discrete]  # type: ignore[union-attr]
    return any(has_points(priors.at(name, values)) for name in continuous)


def _upstream(fitted: Posterior, priors: ReducedPriors) -> dict[str, frozenset[str]]:
    """For each reduced site, the sites that its posterior, its prior or its reduced prior depends on."""
    for name in priors.sites - fitted.sites:
        raise name_of_unknown(name, fitted.sites, fitted.noun)
    upstream = fitted.upstream(priors.sites)
    for name, sites in upstream.items():
        if sites - fitted.sites:
            raise ReductionError(
                f"the prior of site {name!r} depends on {sorted(sites - fitted.sites)}, which {fitted.noun} does not "
                "hold (enumerated sites are summed out); reduce other sites, or have these drawn too"
            )
    return {name: sites | priors.upstream[name] for name, sites in upstream.items()}


class Reduction(Estimated):
    """
    A model under reduced priors, beside the model that was fitted. Made by :func:`reduce_model`.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import reduce_model
        >>> def model():
        ...     pyro.sample("weights", dist.Normal(torch.zeros(2), 1.).to_event(1))
        >>> pyro.clear_param_store()
        >>> guide = AutoNormal(model); _ = guide()
        >>> with torch.no_grad():
        ...     _ = guide.locs.weights.copy_(torch.tensor([0.01, 2.0]))
        >>> reduction = reduce_model(guide, {"weights": dist.Normal(0., 0.1)})
        >>> reduction
        Reduction(weights): ΔF = -95.58 nats (exact), probability 0.000
        >>> reduction.elementwise["weights"].detach()
        tensor([  1.9560, -97.5390])
        >>> reduction.posterior["weights"].mean.detach()
        tensor([0.0050, 1.0050])
    """

    def __init__(
        self,
        fitted: Posterior,
        reduced_priors: ReducedPriors,
        result: FactorwiseReduction | DrawnReduction | IntegratedReduction,
    ) -> None:
        self.fitted, self.reduced_priors, self._result = fitted, reduced_priors, result
        self.accuracy = result.accuracy

    @property
    def delta_evidence(self) -> Tensor:
        """Log evidence of the reduced model less that of the model fitted: 0-d, nats; positive favours the reduced."""
        return self._result.delta_evidence

    @property
    def elementwise(self) -> dict[str, Tensor]:
        """
        For each reduced site, the change in log evidence (nats) of reducing each of its elements alone.

        Of the site's shape; where the elements of an event cannot be parted (a Dirichlet's, say), of its batch shape.
        """
        return self._result.elementwise

    @property
    def probability(self) -> Tensor:
        """Posterior probability of the reduced model, against the model fitted, at even prior odds."""
        return torch.sigmoid(self.delta_evidence)

    @property
    def posterior(self) -> dict[str, Distribution]:
        """The posterior of each site under the reduced model, in the site's own coordinates."""
        return self._result.posterior

    @property
    def fitted_posterior(self) -> dict[str, Distribution]:
        """The posterior of each site as it was fitted, in the site's own coordinates."""
        return self._result.fitted_posterior

    @property
    def draws(self) -> Draws | None:
        """The draws that the posterior was represented by; None where its density is known."""
        return self._result.draws

    @cached_property
    def model(self) -> Callable[..., Any]:
        """The model with the reduced priors in place, a Pyro program that takes the model's arguments."""
        return reduced_model(self.fitted.model, self.reduced_priors)

    @cached_property
    def guide(self) -> Any:
        """
        The reduced posterior as a guide for :attr:`model`: for ``Predictive``, more SVI, or a second reduction.

        Its parameters are its own, so more SVI leaves the fitted guide as it is. After importance sampling it holds
        weighted draws and has no parameters.
        """
        return self.new_guide()

    def new_guide(self) -> Any:
        """What :attr:`guide` is, made anew: its parameters are at the reduced posterior, whatever became of others."""
        return self._result.guide(self.model)

    def check(self, *, num_draws: int | None = None, progress: bool = False) -> Check:
        """
        The change in log evidence as the model has it, beside what was read off the posterior.

        The evidence of the full and of the reduced model are integrated by adaptive importance sampling, begun at the
        posterior and at the reduced posterior; see :func:`pyro_bmrs.log_evidence`. A guide may be off where the answer
        is decided, far out in its tails, and its closed form with it; the integrals are not.

        :param num_draws: draws a round; by default some hundred for each coordinate.
        :param progress: whether to show a progress bar while drawing from guides.
        :raises ReductionError: for a model whose density is not at hand: one that subsamples, or has latent sites with
            infinitely many discrete values.
        """
        return check_reduction(self, num_draws=num_draws, progress=progress)

    @property
    def element_labels(self) -> dict[str, list[str]]:
        """For each reduced site, the names of the elements of :attr:`elementwise`, in the order of ``flatten()``."""
        return {name: element_labels(name, delta.shape) for name, delta in self.elementwise.items()}

    @property
    def reduced_sites(self) -> tuple[str, ...]:
        """Names of the sites whose prior was reduced."""
        return tuple(sorted(self.reduced_priors.sites))

    def __repr__(self) -> str:
        return f"Reduction({', '.join(self.reduced_sites)}): {self._headline()}"

    def _headline(self) -> str:
        how = self.method
        if self.standard_error is not None:
            how += f", standard error {float(self.standard_error):.2g}"
        if self.pareto_k is not None:
            warning = " > 0.7: not to be trusted" if self.pareto_k > 0.7 else ""
            how += f", Pareto k {float(self.pareto_k):.2f}{warning}"
        if self.effective_sample_size is not None:
            how += f", effective sample size {float(self.effective_sample_size):.0f}"
        with torch.no_grad():
            return f"ΔF = {self.delta_evidence:.2f} nats ({how}), probability {self.probability:.3f}"

    def _repr_html_(self) -> str:
        sites = ", ".join(f"<code>{html.escape(name)}</code>" for name in self.reduced_sites)
        return (
            f"<p><b>Reduction</b> of {sites}: {html.escape(self._headline())}</p>{self.summary().to_html(max_rows=20)}"
        )

    def summary(self) -> pd.DataFrame:
        """
        A table of the reduced sites, one row an element: its moments before and after, and what its reduction brings.

        ``delta_evidence`` and ``probability`` are of reducing the element alone; ``reduced_mean`` and ``reduced_sd``
        are under the reduction of all. Moments are NaN where elements cannot be parted.
        """
        return summarise(self)

    def to_arviz(self, num_samples: int = 1000) -> Any:
        """
        Draws from the reduced posterior as ArviZ data, with the change in log evidence among its attributes.

        They are independent and in one chain. After importance sampling they are drawn with replacement from the
        weighted draws, so that chains are given up; the weighted draws themselves are ``guide.draws``, with
        ``guide.log_weights``.

        :param num_samples: how many draws.
        :return: an ``InferenceData`` (ArviZ before 1.0) or a ``DataTree``.
        """
        return to_arviz(self, num_samples)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The elementwise changes in log evidence as a figure; see :func:`pyro_bmrs.plotting.plot_reduction`."""
        return plot_reduction(self, ax=ax)


def summarise(reduction: Reduction) -> pd.DataFrame:
    """The table behind :meth:`pyro_bmrs.Reduction.summary`."""
    import pandas as pd

    tables, fitted_posterior, posterior = [], reduction.fitted_posterior, reduction.posterior
    for name in reduction.reduced_sites:
        delta = reduction.elementwise[name].detach()
        mean, sd = moments(fitted_posterior.get(name), delta.shape)
        reduced_mean, reduced_sd = moments(posterior.get(name), delta.shape)
        columns = {
            "mean": mean,
            "sd": sd,
            "reduced_mean": reduced_mean,
            "reduced_sd": reduced_sd,
            "delta_evidence": delta,
            "probability": torch.sigmoid(delta),
        }
        flat = {label: column.detach().reshape(-1).cpu().numpy() for label, column in columns.items()}
        tables.append(pd.DataFrame(flat, index=reduction.element_labels[name]))
    return pd.concat(tables)


@torch.no_grad()
def to_arviz(reduction: Reduction, num_samples: int) -> Any:
    """The data behind :meth:`pyro_bmrs.Reduction.to_arviz`."""
    guide = reduction.guide
    draws = guide.resample(num_samples) if isinstance(guide, DrawsGuide) else _run_guide(reduction, num_samples)
    chain = {name: values.unsqueeze(0).cpu().numpy() for name, values in draws.items()}
    data = arviz_adapter.to_arviz({"posterior": chain})
    data.posterior.attrs["method"] = reduction.method
    for attribute in ("delta_evidence", "standard_error", "pareto_k", "effective_sample_size"):
        value = getattr(reduction, attribute)
        if value is not None:
            data.posterior.attrs[attribute] = float(value)
    return data


def _run_guide(reduction: Reduction, num_samples: int) -> dict[str, Tensor]:
    fitted = reduction.fitted
    draws: dict[str, list[Tensor]] = {}
    for _ in range(num_samples):
        trace = poutine.trace(reduction.guide).get_trace(*fitted.args, **fitted.kwargs)
        for name in fitted.sites:
            draws.setdefault(name, []).append(trace.nodes[name]["value"])
    return {name: torch.stack(values) for name, values in draws.items()}

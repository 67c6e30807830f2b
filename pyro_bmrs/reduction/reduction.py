# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A model under reduced priors, beside the model that was fitted."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs import arviz_adapter
from pyro_bmrs.evidence.accuracy import Estimated
from pyro_bmrs.integration.fits import guide_tail, mean_shift
from pyro_bmrs.plotting import plot_reduction
from pyro_bmrs.plotting.canvas import height_of
from pyro_bmrs.plotting.html_report import Part, report, stacked
from pyro_bmrs.posteriors.draws import Draws
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide
from pyro_bmrs.reduction.check import Check
from pyro_bmrs.reduction.factorwise import BranchedReduction, FactorwiseReduction
from pyro_bmrs.reduction.integrated import IntegratedReduction, reduced_draws
from pyro_bmrs.reduction.priors import ReducedPriors, reduced_model
from pyro_bmrs.reduction.weighted import DrawnReduction
from pyro_bmrs.structure.vectorised import TURN, own_parameters
from pyro_bmrs.tables import element_labels, moments

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


# What is exact, or as good as, is so of the guide.
_OF_THE_GUIDE = {"exact": "closed form, of the guide", "quadrature": "quadrature, of the guide"}


class Reduction(Estimated):
    """
    A model under reduced priors, beside the model that was fitted. Made by :func:`reduce_model`.

    The method is that of K. Friston, T. Parr and P. Zeidman (2018), *Bayesian model reduction*,
    https://arxiv.org/abs/1805.07092.

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
        >>> reduction = reduce_model(guide, {"weights": dist.Normal(0., 0.1)}, check=False)
        >>> reduction
        Reduction(weights): ΔF = -95.58 nats (closed form, of the guide; not checked against the model), probability ...
        >>> reduction.elementwise["weights"].detach()
        tensor([  1.9560, -97.5390])
        >>> reduction.posterior["weights"].mean.detach()
        tensor([0.0050, 1.0050])
    """

    def __init__(
        self,
        fitted: Posterior,
        reduced_priors: ReducedPriors,
        result: FactorwiseReduction | BranchedReduction | DrawnReduction | IntegratedReduction,
    ) -> None:
        self.fitted, self.reduced_priors, self._result = fitted, reduced_priors, result
        self.checked: Check | None = None
        """What :meth:`check` found when it was last called; None where it was not."""
        self.unchecked: str | None = None
        """Why it was not checked by itself, in words; None where that was not tried."""
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
        with TURN:
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Reduction:
        """The same value, with a guide of its own. The fitted guide is not copied: autoguides lose their model so."""
        twin = type(self)(self.fitted, self.reduced_priors, self._result)
        twin.checked, twin.unchecked = self.checked, self.unchecked
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Without model and guide, which are made anew; so the fitted guide's parameters are not touched."""
        return {name: value for name, value in vars(self).items() if name not in ("model", "guide")}

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
        with TURN:
            return self._result.guide(self.model)

    def check(self, *, elementwise: bool = False, num_draws: int | None = None, progress: bool = False) -> Check:
        """
        The change in log evidence as the model has it, beside what was read off the posterior.

        The evidence of the full and of the reduced model are integrated by adaptive importance sampling, begun at the
        posterior and at the reduced posterior; see :func:`pyro_bmrs.log_evidence`. A guide may be off where the answer
        is decided, far out in its tails, and its closed form with it; the integrals are not.

        :param elementwise: whether to integrate the reduction of each element alone, too: an integral each.
        :param num_draws: draws a round; by default some hundred for each coordinate.
        :param progress: whether to show progress bars.
        :return: the :class:`Check`, which is :attr:`checked` from now on.
        :raises ReductionError: for a model whose density is not at hand: one that subsamples, or has latent sites with
            infinitely many discrete values.
        """
        read_off = float(self.delta_evidence.detach())
        error = 0.0 if self.standard_error is None else float(self.standard_error)
        with TURN, own_parameters():
            draws = reduced_draws(self, progress)
            integrated = IntegratedReduction(
                self.fitted, self.reduced_priors, near=draws, num_draws=num_draws, progress=progress
            )
            each, errors = (integrated.elementwise, integrated.elementwise_error) if elementwise else (None, None)
            tail = guide_tail(self.fitted)
            shift = mean_shift(self.fitted, integrated.full) if self.fitted.guide is None else None
        self.checked = Check(integrated.full, integrated.reduced, read_off, error, tail, each, errors, shift)
        return self.checked

    @property
    def element_labels(self) -> dict[str, list[str]]:
        """For each reduced site, the names of the elements of :attr:`elementwise`, in the order of ``flatten()``."""
        labels = self.fitted.labels
        return {name: element_labels(name, delta.shape, labels.get(name)) for name, delta in self.elementwise.items()}

    @property
    def reduced_sites(self) -> tuple[str, ...]:
        """Names of the sites whose prior was reduced."""
        return tuple(sorted(self.reduced_priors.sites))

    def __repr__(self) -> str:
        return f"Reduction({', '.join(self.reduced_sites)}): {self._headline()}"

    def _headline(self) -> str:
        with torch.no_grad():
            read_off = f"ΔF = {self.delta_evidence:.2f} nats ({self._how()}), probability {self.probability:.3f}"
        return read_off if self.checked is None else f"{self.checked.words()}; read off: {read_off}"

    def _how(self) -> str:
        """How the number was come by, and how far it goes."""
        how = _OF_THE_GUIDE.get(self.method, self.method)
        if self.standard_error is not None:
            how += f", standard error {float(self.standard_error):.2g}"
        if self.pareto_k is not None:
            warning = " > 0.7: not to be trusted" if self.pareto_k > 0.7 else ""
            how += f", Pareto k {float(self.pareto_k):.2f}{warning}"
        if self.effective_sample_size is not None:
            how += f", effective sample size {float(self.effective_sample_size):.0f}"
        return how if self.checked is not None or self._is_the_models else f"{how}; {self._words_of_check()}"

    @property
    def _is_the_models(self) -> bool:
        """Whether the number is not read off the posterior, so that there is nothing to check."""
        return self.unchecked is None and self.method not in _OF_THE_GUIDE

    def _words_of_check(self) -> str:
        why = f": {self.unchecked}" if self.unchecked else ""
        return f"not checked against the model{why}" if self.checked is None else self.checked.words()

    def _repr_html_(self) -> str:
        sites = ", ".join(f"<code>{html.escape(name)}</code>" for name in self.reduced_sites)
        return (
            f"<p><b>Reduction</b> of {sites}: {html.escape(self._headline())}</p>{self.summary().to_html(max_rows=20)}"
        )

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """
        The answer with its figure and its table as a page of HTML that stands by itself: nothing is fetched.

        :param path: the file that the page is written to; none by default.
        :return: the page.
        :raises ImportError: without matplotlib.
        """
        return report(f"Reduction of {', '.join(self.reduced_sites)}", self._headline(), *parts_of(self), path=path)

    def summary(self) -> pd.DataFrame:
        """
        A table of the reduced sites, one row an element: its moments before and after, and what its reduction brings.

        ``delta_evidence`` and ``probability`` are of reducing the element alone; ``reduced_mean`` and ``reduced_sd``
        are under the reduction of all. Moments are NaN where elements cannot be parted. After a check of each element,
        ``checked_delta_evidence`` is what the model says; what it says of the whole is in ``attrs["check"]``, or that
        it was not asked.
        """
        table = summarise(self)
        if not self._is_the_models:
            table.attrs["check"] = self._words_of_check()
        return table

    def to_arviz(self, num_samples: int = 1000) -> Any:
        """
        Draws from the reduced posterior as ArviZ data, with a group ``evidence``.

        That has, in nats, the :attr:`elementwise` changes in log evidence as variables, by the names of the sites, and
        ``delta_evidence`` of all, its ``method`` and its errors as attributes. It goes into a file with the rest.

        They are independent and in one chain. What ArviZ data hold beside the model's sites, such as generated
        quantities, is there under the reduced prior as well. After importance sampling they are drawn with replacement
        from the weighted draws, so that chains are given up; the weighted draws themselves are ``guide.draws``, with
        ``guide.log_weights``.

        :param num_samples: how many draws.
        :return: an ``InferenceData`` (ArviZ before 1.0) or a ``DataTree``.
        """
        with TURN:
            return to_arviz(self, num_samples)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The elementwise changes in log evidence as a figure; see :func:`pyro_bmrs.plotting.plot_reduction`."""
        return plot_reduction(self, ax=ax)


def summarise(reduction: Reduction) -> pd.DataFrame:
    """The table behind :meth:`pyro_bmrs.Reduction.summary`."""
    import pandas as pd

    tables, fitted_posterior, posterior = [], reduction.fitted_posterior, reduction.posterior
    checked = reduction.checked
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
        if checked is not None and checked.elementwise is not None:
            columns["checked_delta_evidence"] = checked.elementwise[name]
        flat = {label: column.detach().reshape(-1).cpu().numpy() for label, column in columns.items()}
        tables.append(pd.DataFrame(flat, index=reduction.element_labels[name]))
    return pd.concat(tables)


@torch.no_grad()
def parts_of(reduction: Reduction) -> tuple[Part, ...]:
    """What stands on the page of :meth:`pyro_bmrs.Reduction.to_html`."""
    table = reduction.summary()
    figure, (ax,) = stacked(height_of(len(table)))
    reduction.plot(ax)
    facts: dict[str, Any] = {
        "read off the posterior": float(reduction.delta_evidence),
        "probability of the reduced model": float(reduction.probability),
        "how": _OF_THE_GUIDE.get(reduction.method, reduction.method),
    }
    named = {
        "standard error": "standard_error",
        "Pareto k": "pareto_k",
        "effective sample size": "effective_sample_size",
    }
    values = {name: getattr(reduction, attribute) for name, attribute in named.items()}
    facts |= {name: float(value) for name, value in values.items() if value is not None}
    if "check" in table.attrs:
        facts["check"] = table.attrs["check"]
    return (
        Part(
            "Change in log evidence (nats)",
            facts,
            "Of the reduced model, less that of the fitted one: what is positive speaks for the reduced model. The "
            "probability is at even prior odds.",
        ),
        Part("Elements, each reduced alone", figure, "To the right: better without it."),
        Part(
            "Elements before and after",
            table,
            "Means and standard deviations of the posterior, those called reduced under the reduction of all; the "
            "change in log evidence and the probability, of reducing the element alone.",
        ),
    )


@torch.no_grad()
def to_arviz(reduction: Reduction, num_samples: int) -> Any:
    """The data behind :meth:`pyro_bmrs.Reduction.to_arviz`."""
    guide = reduction.guide
    if isinstance(guide, DrawsGuide):
        chosen = guide.choose(num_samples)
        # What another language computed at these draws goes with them.
        beside = reduction.fitted.left_alone if reduction.draws is not None else {}
        draws = {name: values[chosen] for name, values in {**guide.draws, **beside}.items()}
    else:
        draws = _run_guide(reduction, num_samples)
    chain = {name: values.unsqueeze(0).cpu().numpy() for name, values in draws.items()}
    data = arviz_adapter.to_arviz({"posterior": chain}, reduction.fitted.labels)
    attributes: dict[str, str | float] = {"method": reduction.method}
    for attribute in ("delta_evidence", "standard_error", "pareto_k", "effective_sample_size"):
        value = getattr(reduction, attribute)
        if value is not None:
            attributes[attribute] = float(value)
    if reduction.checked is not None:
        attributes["checked_delta_evidence"] = reduction.checked.delta_evidence
        attributes["checked_standard_error"] = reduction.checked.standard_error
    elements = {name: delta.cpu().numpy() for name, delta in reduction.elementwise.items()}
    arviz_adapter.add_elements(data, "evidence", elements, reduction.fitted.labels, attributes)
    return data


def _run_guide(reduction: Reduction, num_samples: int) -> dict[str, Tensor]:
    fitted = reduction.fitted
    draws: dict[str, list[Tensor]] = {}
    for _ in range(num_samples):
        trace = poutine.trace(reduction.guide).get_trace(*fitted.args, **fitted.kwargs)
        for name in fitted.sites:
            draws.setdefault(name, []).append(trace.nodes[name]["value"])
    return {name: torch.stack(values) for name, values in draws.items()}

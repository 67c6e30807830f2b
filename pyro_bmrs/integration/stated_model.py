# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The model of draws that were made in another language, as far as its priors and its density say what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyro_bmrs.arviz_adapter import has_posterior
from pyro_bmrs.errors import ReductionError, name_of_unknown
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.reading import is_mapping_of_draws, name_elements, read_draws, read_posterior
from pyro_bmrs.structure.layers import to_event
from pyro_bmrs.tables import LabelsLike

PriorLike: TypeAlias = Mapping[str, Distribution | Constraint] | Callable[..., Any]
LogDensity: TypeAlias = Callable[[dict[str, Tensor]], Tensor]


class StatedModel:
    """
    A Pyro program of a model's priors, and of its log density where that is known.

    What the data say of the sites is in the log density alone, which holds the priors as well: they are taken off it
    where the program samples them. Without it the program is good for what needs no more than draws.

    :param program: a Pyro program whose sample sites have the model's priors.
    :param log_density: the log joint density of data and sites, from a value of each site; None where it is not known.
    :raises ReductionError: for a program that samples nothing.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.integration.stated_model import StatedModel
        >>> prior, data = dist.Normal(0.0, 1.0), torch.tensor([0.5, 1.5])
        >>> def log_density(site):
        ...     return prior.log_prob(site["b"]) + dist.Normal(site["b"], 1.0).log_prob(data).sum()
        >>> model = StatedModel(lambda: pyro.sample("b", prior), log_density)
        >>> trace = pyro.poutine.trace(pyro.poutine.condition(model, {"b": torch.tensor(0.3)})).get_trace()
        >>> bool(trace.log_prob_sum() == log_density({"b": torch.tensor(0.3)}))
        True
    """

    def __init__(self, program: Callable[..., Any], log_density: LogDensity | None = None) -> None:
        self.program, self.log_density = program, log_density

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Samples the sites; takes the arguments of the program."""
        with poutine.trace() as tracer:
            self.program(*args, **kwargs)
        if self.log_density is None:
            return
        # All of them: a handler around the model may hold some to values, so that they count as observed.
        nodes: Any = tracer.trace.nodes
        values = {name: site["value"] for name, site in nodes.items() if site["type"] == "sample"}
        # The priors that stand in the program: whoever reduces the model has put others in their place.
        with poutine.block():
            stated = poutine.trace(poutine.condition(self.program, data=values)).get_trace(*args, **kwargs)
            own: Any = stated.log_prob_sum()
        log_likelihood = self._total(values) - own
        pyro.factor("_likelihood", log_likelihood)

    def _total(self, values: dict[str, Tensor]) -> Tensor:
        assert self.log_density is not None
        total = self.log_density(values)
        if not isinstance(total, Tensor) or total.dim():
            kind = f"shape {tuple(total.shape)}" if isinstance(total, Tensor) else f"a {type(total).__name__}"
            raise ReductionError(
                f"log_density gives {kind}; give the log joint density of one value of each site, a tensor of no "
                "dimension"
            )
        return total


def read_stated(
    source: Any,
    model: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    prior: PriorLike | None,
    log_density: LogDensity | None,
    labels: LabelsLike | None = None,
) -> Posterior:
    """
    Whatever stands for a posterior, read, with its model or with what is stated of it, and the names of its elements.

    :raises ReductionError: as :func:`~pyro_bmrs.posteriors.read_posterior` does; for a model that is given twice, and
        for priors beside what knows its model.
    """
    if prior is not None:
        if model is not None:
            raise ReductionError("model= and prior= are both given; the model has its priors, so give one of the two")
        if not (has_posterior(source) or is_mapping_of_draws(source)):
            raise ReductionError(
                f"prior= is for draws that know no model, which {type(source).__name__} does; leave it out"
            )
        shapes = {name: torch.Size(drawn.values.shape[2:]) for name, drawn in read_draws(source).items()}
        model = stated_model(prior, shapes, log_density)
    elif log_density is not None:
        raise ReductionError("log_density= goes with prior=, which says what the sites are; give it too")
    return name_elements(read_posterior(source, model, args, kwargs), labels)


def stated_model(prior: PriorLike, shapes: Mapping[str, torch.Size], log_density: LogDensity | None) -> StatedModel:
    """
    The model of draws, by what a user states of it.

    :param prior: a mapping from site to prior, or a Pyro program that samples the sites from their priors. Of a site
        whose prior is not to be reduced, the support will do, a ``torch.distributions.constraints.Constraint``.
    :param shapes: of each variable that was drawn.
    :param log_density: as for :class:`StatedModel`.
    :raises ReductionError: for a site that was not drawn, or a prior that is no distribution or does not fit.
    """
    if log_density is not None and not callable(log_density):
        raise ReductionError(
            f"log_density is a {type(log_density).__name__}; give a function from a mapping of values to a tensor"
        )
    if isinstance(prior, Mapping) and prior:
        for name in prior:
            if name not in shapes:
                raise name_of_unknown(name, shapes, "prior: the set of draws")
        return StatedModel(_Priors({n: _of_shape(n, given, shapes[n]) for n, given in prior.items()}), log_density)
    if isinstance(prior, Mapping) or isinstance(prior, Distribution) or not callable(prior):
        raise ReductionError(
            f"prior is {prior!r}; give a mapping from site to prior, or a Pyro program that samples sites from theirs"
        )
    return StatedModel(prior, log_density)


class _Priors:
    """A Pyro program that samples each site from a prior that depends on no other."""

    def __init__(self, priors: Mapping[str, Any]) -> None:
        self.priors = priors

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        for name, prior in self.priors.items():
            pyro.sample(name, prior)


def _of_shape(name: str, given: Distribution | Constraint, shape: torch.Size) -> Distribution:
    """A prior at the shape of a site's draws, its elements independent where it does not say otherwise."""
    if isinstance(given, Constraint):
        flat: Distribution = dist.ImproperUniform(given, torch.Size(), shape[len(shape) - given.event_dim :])
        return to_event(flat.expand(shape[: len(shape) - given.event_dim]), len(shape) - given.event_dim)
    if not isinstance(given, Distribution):
        raise ReductionError(f"the prior of site {name!r} is a {type(given).__name__}; give a distribution")
    own = given.batch_shape + given.event_shape
    if [size for size in own if size != 1] == [size for size in shape if size != 1]:
        return to_event(given, len(given.batch_shape))
    batch = shape[: len(shape) - len(given.event_shape)]
    try:
        fits = shape[len(batch) :] == given.event_shape and torch.broadcast_shapes(given.batch_shape, batch) == batch
    except RuntimeError:
        fits = False
    if not fits:
        raise ReductionError(
            f"the prior of site {name!r} has shape {tuple(own)}, and each of its draws {tuple(shape)}; give it a shape "
            "that broadcasts to that, or a scalar distribution for all elements"
        )
    return to_event(given.expand(batch), len(batch))


def check_density(model: Any, what: str) -> None:
    """
    That the density of a model is known.

    :param model: the model.
    :param what: what needs it.
    :raises ReductionError: where nothing but its priors was stated.
    """
    if isinstance(model, StatedModel) and model.log_density is None:
        raise ReductionError(
            f"{what} needs the density of the model, of which nothing but priors is known; give log_density=, a "
            "function from a mapping of sites to the log joint density of data and sites, or the model itself as model="
        )

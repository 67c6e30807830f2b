# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a reduction asks of a posterior, be it a guide or draws."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.posteriors.draws import Draws
from pyro_bmrs.posteriors.factors import Factor
from pyro_bmrs.tables import SiteLabels


class Posterior(Protocol):
    """
    The posterior of a model, read: what it can be drawn from, and what its sites and their priors are.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_guide
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> posterior = read_guide(guide, model)
        >>> posterior.latent, posterior.draw(["x"], 3).values["x"].shape
        (frozenset({'x'}), torch.Size([3, 2]))
    """

    @property
    def noun(self) -> str:
        """What it is, for an error message."""

    @property
    def model(self) -> Callable[..., Any]:
        """The model."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments that the model is run with."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments that the model is run with."""

    @property
    def guide(self) -> Any:
        """The guide that it was read from; None where it was read from draws."""

    @property
    def latent(self) -> frozenset[str]:
        """All the model's latent sites."""

    @property
    def sites(self) -> frozenset[str]:
        """The model's latent sites that it is a posterior of."""

    @property
    def labels(self) -> Mapping[str, SiteLabels]:
        """What the dimensions of sites are called, and the places along them; of the sites that have names."""

    @property
    def left_alone(self) -> Mapping[str, Tensor]:
        """What was drawn beside the model's sites, the draws along the first dimension."""

    @property
    def trace(self) -> poutine.Trace:
        """A run of the model, at values that it allows."""

    @property
    def factored(self) -> FactoredPosterior | None:
        """Itself, where the density of some of its sites is known; None where it can only be drawn from."""

    def keep(self) -> None:
        """Reads now what is read later, so that it is as it was at this time."""

    def upstream(self, names: Collection[str]) -> dict[str, frozenset[str]]:
        """For each site, the other latent sites that its prior, or its posterior, depends on."""

    def draw(self, names: Collection[str], num_samples: int, progress: bool = False) -> Draws:
        """Joint draws, with the priors of some sites at each of them."""

    def log_weights(self, num_samples: int) -> Tensor | None:
        """Log density of the model less its own, at draws of it; None where it is draws, or one of them has none."""


class FactoredPosterior(Posterior, Protocol):
    """
    A posterior that falls into independent factors, the density of some of which is known.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_guide
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> posterior = read_guide(guide, model)
        >>> posterior.factored is posterior, len(posterior.factors)
        (True, 1)
    """

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The factors whose density is known."""

    @property
    def factor_of(self) -> dict[str, Factor]:
        """The factor that determines each site whose density is known."""

    def prior(self, name: str) -> Distribution:
        """The prior of a site, of the shapes of its posterior."""

    def is_weighted(self, name: str) -> bool:
        """Whether the model counts the site's prior with a weight other than 1, as ``poutine.scale`` gives it."""

    def multiplicity(self, name: str) -> float:
        """How many elements of a site each of those stands for whose posterior is known."""

    def with_statements(self, statements: Mapping[str, Distribution], model: Callable[..., Any]) -> Any:
        """A guide for a model, with these distributions in the place of some of its factors."""

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The log evidence of a model, from a fitted guide, a finished MCMC run, or an ArviZ posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro_bmrs.integration.ends import LogEvidence, integrate_model
from pyro_bmrs.integration.stated_model import check_density
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.posteriors.reading import read_posterior
from pyro_bmrs.posteriors.traces import latent_nodes
from pyro_bmrs.structure.vectorised import TURN

# Draws of the posterior to begin at: at least so many, and so many for each dimension, whose covariance they tell.
_FEWEST_STARTS, _STARTS_OF_A_DIMENSION = 400, 40


def log_evidence(
    model: Callable[..., Any] | None,
    posterior: Any,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_draws: int | None = None,
    progress: bool = False,
) -> LogEvidence:
    """
    The log marginal likelihood of a model.

    The joint density of data and latent sites is integrated in unconstrained coordinates by adaptive importance
    sampling (O. Cappé et al. 2008, *Adaptive importance sampling in general mixture classes*,
    https://arxiv.org/abs/0710.4242), begun at the moments of the posterior. These need not be right: a guide that is
    too narrow, or a little
    beside the posterior, costs more draws and does no harm. Where the posterior is of a shape that no such proposal
    covers, the result says that it is not to be trusted.

    Further modes are looked for by climbs from draws of the prior and from far around the posterior, and integrated
    over; many that were found once only are a sign of others, and the result is not to be trusted. A mode so narrow
    that no climb begins near it is not found, nor are any where the model's code has no second derivatives at many
    points at once.

    :param model: the model; None where the posterior knows it.
    :param posterior: a fitted guide, a finished ``pyro.infer.MCMC``, or an ArviZ posterior (then ``model`` is needed).
    :param args: arguments of the model; autoguides and an MCMC run remember theirs.
    :param kwargs: keyword arguments of the model.
    :param num_draws: draws a round; by default some hundred for each coordinate.
    :param progress: whether to show a progress bar while drawing from the guide.
    :return: its ``value`` in nats, with standard error, Pareto k, and whether it is ``trusted``.
    :raises ReductionError: for what :func:`~pyro_bmrs.reduce_model` cannot read, and a model whose density is not at
        hand: one that subsamples, or has latent sites with infinitely many discrete values.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([0.5, 1.5])
        >>> guide = AutoNormal(model)
        >>> _ = guide(y)  # not even fitted, so far beside the posterior
        >>> estimate = log_evidence(model, guide, args=(y,))
        >>> exact = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1.0).log_prob(y)
        >>> abs(estimate.value - exact) < 0.05
        tensor(True)
    """
    with TURN:
        return integrate(read_posterior(posterior, model, args, kwargs), num_draws=num_draws, progress=progress)


def integrate(fitted: Posterior, *, num_draws: int | None = None, progress: bool = False) -> LogEvidence:
    """What :func:`log_evidence` does once the posterior has been read."""
    check_density(fitted.model, "the evidence")
    start = fitted.draw((), num_starts(fitted), progress).values
    return integrate_model(fitted.model, fitted.args, fitted.kwargs, [start], num_draws=num_draws)


def num_starts(fitted: Posterior) -> int:
    """How many draws of a posterior an integral is to begin at."""
    dim: int = sum(site["value"].numel() for site in latent_nodes(fitted.trace).values())
    return max(_FEWEST_STARTS, _STARTS_OF_A_DIMENSION * dim)

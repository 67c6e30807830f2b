# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Joint draws from a posterior, with what the priors of some sites say at each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.structure.coordinates import elements
from pyro_bmrs.structure.layers import peel


@dataclass(frozen=True)
class PriorAtDraws:
    """
    What the prior of a site says at each of a number of draws.

    :param example: the prior at one of them; those at the others have its shapes and its type.
    :param log_prob: log density, of the site's shape where its elements are independent, else of its batch shape;
        the draws along the first dimension.
    :param scale: how many elements each element stands for, times the weight that the model gives to the prior.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_guide
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> read_guide(guide, model).draw(["x"], 5).priors["x"].log_prob.shape
        torch.Size([5, 2])
    """

    example: Distribution
    log_prob: Tensor
    scale: Tensor | float = 1.0


@dataclass(frozen=True)
class Draws:
    """
    Joint draws from a posterior.

    :param values: of each latent site, the draws along the first dimension.
    :param priors: of each site that may be reduced.
    :param num_chains: into how many Markov chains of equal length the draws fall, one after the other; None where they
        are independent.
    :param relative_efficiency: of Markov chains, the effective sample size of each site over the number of draws.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import read_guide
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> draws = read_guide(guide, model).draw(["x"], 5)
        >>> draws.values["x"].shape, draws.num_chains
        (torch.Size([5, 2]), None)
    """

    values: Mapping[str, Tensor]
    priors: Mapping[str, PriorAtDraws]
    num_chains: int | None = None
    relative_efficiency: Mapping[str, float] = field(default_factory=dict)


def log_density_unseen(distribution: Distribution, values: Tensor) -> Tensor:
    """What :func:`log_density` gives, without its gradient and without a look at values, for vectorised runs."""
    parted = elements(distribution)
    bare: Any = distribution if parted is None else parted
    return torch.where(
        bare.support.check(values) | ~torch.as_tensor(peel(bare).mask), bare.log_prob(values), -torch.inf
    )


def log_density(distribution: Distribution, values: Tensor) -> Tensor:
    """
    Log density at each of a number of values, element by element where the elements are independent.

    :param distribution: one distribution, for all values.
    :param values: along the first dimension, or one alone; minus infinity outside the support, and 0 where the
        distribution is masked.
    """
    parted = elements(distribution)
    bare: Any = distribution if parted is None else parted
    inside: Tensor = bare.support.check(values)
    if inside.all():
        log_prob: Tensor = bare.log_prob(values)
        return log_prob
    event_dim = len(bare.event_shape)
    # What is outside is put where there is a density, so that no NaN comes back through the gradient.
    stand_in = bare.sample().expand(values.shape)
    chosen = torch.where(inside.reshape(inside.shape + (1,) * event_dim), values, stand_in)
    return torch.where(inside | ~torch.as_tensor(peel(bare).mask), bare.log_prob(chosen), -torch.inf)

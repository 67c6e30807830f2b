# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Labels and moments of a site's elements: what every table needs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.distributions import Distribution

# Draws for the moments of a posterior that has no closed form for them.
_NUM_DRAWS = 4000


def element_labels(name: str, shape: torch.Size) -> list[str]:
    """Labels of a site's elements, as ArviZ writes them.

    Example::

        >>> element_labels("w", torch.Size([2]))
        ['w[0]', 'w[1]']
    """
    indices = itertools.product(*map(range, shape))
    return [f"{name}[{', '.join(map(str, index))}]" if index else name for index in indices]


@torch.no_grad()
def moments(distribution: Distribution | None, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each element; by draws where the distribution knows no closed form."""
    missing = torch.full(shape, torch.nan)
    if distribution is None or distribution.batch_shape + distribution.event_shape != shape:
        return missing, missing
    try:
        return distribution.mean, distribution.stddev
    except NotImplementedError:
        draws = distribution.sample(torch.Size([_NUM_DRAWS]))
        return draws.mean(0), draws.std(0)

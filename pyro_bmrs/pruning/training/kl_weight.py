# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The weight of the noise's divergence, which may change from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pyro.poutine.messenger import Messenger

from pyro_bmrs.errors import ReductionError, check_number

KLWeight: TypeAlias = "float | str | Mapping[str, float] | WarmUp | Callable[[int], float]"


class WarmUp:
    """
    A KL weight that rises linearly from 0 over the first training steps.

    A step is a loss that is computed in training; where gradients are accumulated over batches, each is one.

    :param num_steps: how many steps it takes.
    :param weight: where it ends, as any ``kl_weight`` of :class:`Likelihood`; 1 is the ELBO.
    :raises ReductionError: for less than one step, or a number of them that is not finite.

    Example::

        >>> from pyro_bmrs.pruning import WarmUp
        >>> [WarmUp(4).share(step) for step in (0, 1, 4, 100)]
        [0.25, 0.5, 1.0, 1.0]
    """

    def __init__(self, num_steps: int, weight: KLWeight = 1.0) -> None:
        check_number(num_steps, "the number of steps that a warm-up takes", low=1)
        self.num_steps, self.weight = num_steps, weight

    def share(self, step: int) -> float:
        """The share of the weight in a step, counted from 0."""
        return min(1.0, (step + 1) / self.num_steps)


def check_kl_weight(weight: KLWeight, sizes: Mapping[str, int]) -> None:
    """
    Sees that a KL weight is one, for noise sites of these sizes.

    :param weight: what a user gave.
    :param sizes: how many units each site has.
    :raises ReductionError: if it is not.
    """
    weight = weight.weight if isinstance(weight, WarmUp) else weight
    if isinstance(weight, Mapping):
        if weight.keys() != sizes.keys():
            raise ReductionError(
                f"kl_weight has numbers for {sorted(weight)}, and the network's noise sites are {sorted(sizes)}"
            )
        numbers: list[Any] = list(weight.values())
    elif weight == "layer_mean" or (callable(weight) and not isinstance(weight, WarmUp)):
        numbers = []
    else:
        numbers = [weight]
    if not all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers):
        raise ReductionError(
            "kl_weight is a number, finite and not negative, one for each site, 'layer_mean', a callable of the step, "
            f"or a WarmUp of these; not {weight!r}"
        )
    if weight == "layer_mean" and not sizes:
        raise ReductionError("kl_weight='layer_mean' is a mean over noise sites, and the network has none")


def weight_of_site(weight: Any, site: str, step: int, sizes: Mapping[str, int], num_examples: int) -> float:
    """
    The number that a KL weight is for one site in one step.

    :param weight: what a user gave.
    :param site: the name of the site.
    :param step: how many training steps there were.
    :param sizes: how many units each site has.
    :param num_examples: how many examples there are in the training data.
    :raises ReductionError: if what a callable returns is no weight.
    """
    if isinstance(weight, (int, float)):
        return float(weight)
    if isinstance(weight, WarmUp):
        return weight.share(step) * weight_of_site(weight.weight, site, step, sizes, num_examples)
    if weight == "layer_mean":
        return num_examples / (len(sizes) * sizes[site])
    if isinstance(weight, Mapping):
        return float(weight[site])
    number = weight(step)
    check_number(number, f"what kl_weight returns for step {step}", low=0)
    return float(number)


class Scales(Messenger):
    """
    Scales what latent sites contribute.

    :param scale: for all of them.
    :param weight: for noise besides, given the name of its site.
    """

    def __init__(self, scale: float, weight: Callable[[str], float]) -> None:
        super().__init__()
        self.scale, self.weight = scale, weight

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] *= self.scale
        if msg["infer"].get("is_noise"):
            msg["scale"] *= self.weight(msg["name"])

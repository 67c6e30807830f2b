# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The weight of the noise's divergence, which may change from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pyro.poutine.messenger import Messenger

from pyro_bmrs.errors import ReductionError

KLWeight: TypeAlias = "float | str | Mapping[str, float] | WarmUp | Callable[[int], float]"


class WarmUp:
    """
    A KL weight that rises linearly from 0 over the first training steps.

    :param num_steps: how many steps it takes.
    :param weight: where it ends, as any ``kl_weight`` of :class:`Likelihood`; 1 is the ELBO.
    :raises ReductionError: for less than one step.

    Example::

        >>> from pyro_bmrs.pruning import WarmUp
        >>> [WarmUp(4).share(step) for step in (0, 1, 4, 100)]
        [0.25, 0.5, 1.0, 1.0]
    """

    def __init__(self, num_steps: int, weight: KLWeight = 1.0) -> None:
        if num_steps < 1:
            raise ReductionError(f"a warm-up takes at least one step, not {num_steps}")
        self.num_steps, self.weight = num_steps, weight

    def share(self, step: int) -> float:
        """The share of the weight in a step, counted from 0."""
        return min(1.0, (step + 1) / self.num_steps)


class _Scales(Messenger):
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

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""As many changes of a network as leave its outputs as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from pyro_bmrs.pruning.examples import Outputs

Step = TypeVar("Step")


def attempt(build: Callable[[], nn.Module], outputs: Outputs) -> tuple[nn.Module | None, str]:
    """
    A network, if it can be built and computes what it must; else None, and why.

    :param build: the network.
    :param outputs: what it must compute.
    """
    try:
        net = build()
        difference = outputs.difference(net)
    except Exception as error:  # of the user's network, which any change of sizes may upset
        return None, f"the network does not run without them: {error}"
    if difference > 1:
        return None, "the network's outputs would change"
    return net, ""


def most_that_work(
    steps: Sequence[Step], build: Callable[[Sequence[Step]], nn.Module], outputs: Outputs
) -> tuple[nn.Module, dict[int, str]]:
    """
    As many steps as leave a network's outputs as they are.

    :param steps: what can be done to the network, independently.
    :param build: the network after some of the steps.
    :param outputs: what it must compute.
    :return: the network after the steps that work, and why each of the others, by its place, does not.
    """
    if not steps:
        return build([]), {}
    failed: dict[int, str] = {}

    def extend(places: list[int], more: list[int]) -> list[int]:
        net, reason = attempt(lambda: build([steps[place] for place in (*places, *more)]), outputs)
        if net is not None:
            built[:] = [net]
            return [*places, *more]
        if len(more) == 1:
            failed[more[0]] = reason
            return places
        half = len(more) // 2
        return extend(extend(places, more[:half]), more[half:])

    built = [build([])]
    extend([], list(range(len(steps))))
    return built[0], failed

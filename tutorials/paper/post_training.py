# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a trained network with noise would be worth, pruned by one criterion or another, and as far as each goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_bmrs.pruning import (
    BMRS_N,
    BMRS_U,
    Criterion,
    accuracy_vs_compression,
    compact,
    compaction_report,
    prune,
    rank_correlations,
)
from pyro_bmrs.pruning.criteria.criterion import margins_of, score_units
from pyro_bmrs.pruning.selection.order import removal_order, rescue, unit_groups

from .data import Examples
from .module import NoisyClassifier

# The numbers of bits that BMRS_U is tried with.
BITS = range(1, 21)
ODDS_RULES = {"exact, even odds": BMRS_N(0.0), "paper's code": BMRS_N.paper(), "1 nat": BMRS_N(1.0)}


@torch.no_grad()
def measure_accuracy(predict: Callable[[Tensor], Tensor], examples: Examples, device: torch.device) -> float:
    """
    The share of examples that are classified correctly.

    :param predict: given images, their logits.
    :param examples: the examples.
    :param device: where the images are wanted.
    """
    correct = sum(int((predict(x.to(device)).argmax(-1) == y.to(device)).sum()) for x, y in examples.batches())
    return correct / len(examples)


class Comparison:
    """
    Criteria of pruning compared on one trained network, which is as it was afterwards.

    :param module: the network with noise.
    :param examples: what it is tested on.
    :param device: where.
    :param example: images that the network is called with.
    :param tied: the same where units can only go together, else none.
    :param tune: trains the network a little, which curves do after each removal; by default they do not.
    """

    def __init__(
        self,
        module: NoisyClassifier,
        examples: Examples,
        device: torch.device,
        example: Tensor,
        tied: Tensor | None,
        tune: Callable[[], None] | None = None,
    ) -> None:
        self.tune = tune
        self.module, self.examples, self.device = module.to(device).eval(), examples, device
        self.example, self.tied = example.to(device), None if tied is None else tied.to(device)
        self.num_units = sum(noise.num_units for noise in module.guide.noise.values())
        # Criteria that agree ask for the same units again and again.
        self._measured: dict[tuple[bool, ...], tuple[float, float]] = {}

    def row(self, criteria: Sequence[Criterion], num_points: int) -> dict[str, Any]:
        """
        What a row of the results says of it.

        :param criteria: those to compare.
        :param num_points: how many points a curve has.
        """
        correlations = rank_correlations(self.module.net, self.module.guide, criteria)
        curve = self.curve if self.tune is None else self.tuned_curve
        return {
            "curves": {criterion.name: curve(criterion, num_points) for criterion in criteria},
            "rank_correlations": correlations.to_dict(),
            "p1": [{"p1": bits, **self.stop(BMRS_U.paper(bits))} for bits in BITS],
            "delta_evidence": score_units(BMRS_N(0.0), self.module.net, self.module.guide),
            "odds_stops": [{"rule": rule, **self.stop(criterion)} for rule, criterion in ODDS_RULES.items()],
        }

    def curve(self, criterion: Criterion, num_points: int) -> dict[str, Any]:
        """The accuracy as units go one by one in a criterion's order, and where it stops, if it does."""
        removed = []

        def evaluate(_: Callable[..., Any]) -> float:
            share, accuracy = self._measure()
            removed.append(share)
            return accuracy

        table = accuracy_vs_compression(
            self.module.net,
            self.module.guide,
            criterion,
            evaluate,
            num_points=num_points,
            example_inputs=self.tied,
        )
        return {
            "share_removed": table["share_removed"].tolist(),
            "parameters_removed": removed,
            "accuracy": table["value"].tolist(),
            "stop": self.stop(criterion) if criterion.decides else None,
        }

    def tuned_curve(self, criterion: Criterion, num_points: int) -> dict[str, Any]:
        """The same with training after each removal; it stops where the criterion would let no more units go."""
        assert self.tune is not None
        state = {name: value.clone() for name, value in self.module.state_dict().items()}
        most = self.num_units - len(self.module.guide.noise)
        points: list[dict[str, float]] = []
        stop = None
        try:
            for number in range(num_points):
                left = self.num_units - round(number * most / (num_points - 1))
                if self._remove(criterion, left):
                    self.tune()
                points.append(self._point())
                if stop is None and criterion.decides and not self._lets_go(criterion):
                    stop = points[-1]
        finally:
            self.module.load_state_dict(state)
            self.module.eval()
        return {
            "share_removed": [point["units_removed"] for point in points],
            "parameters_removed": [point["parameters_removed"] for point in points],
            "accuracy": [point["accuracy"] for point in points],
            "stop": stop,
        }

    def _remove(self, criterion: Criterion, left: int) -> bool:
        """Removes units in a criterion's order as of now, until so many are left; whether any went."""
        net, noise = self.module.net, self.module.guide.noise
        margins = margins_of(criterion, score_units(criterion, net, self.module.guide))
        order = removal_order(net, margins, unit_groups(net, self.tied), adds=criterion.adds)
        going, _ = rescue(net, [group for group, _ in order], [group for group, _ in order])
        before = self.module.units_left
        for group in going:
            if self.module.units_left <= left:
                break
            for name, unit in group:
                noise[name].kept[unit] = False
        return self.module.units_left < before

    def _lets_go(self, criterion: Criterion) -> bool:
        """Whether a criterion would remove any unit now."""
        with self._restored():
            return prune(self.module.net, self.module.guide, criterion, example_inputs=self.tied).num_removed > 0

    def stop(self, criterion: Criterion) -> dict[str, float]:
        """What a criterion would remove by its own threshold, and the accuracy then."""
        with self._restored():
            prune(self.module.net, self.module.guide, criterion, example_inputs=self.tied)
            return self._point(self._measure())

    def _point(self, measured: tuple[float, float] | None = None) -> dict[str, float]:
        """What is removed, and the accuracy."""
        removed, accuracy = self._measure_anew() if measured is None else measured
        units = 1 - self.module.units_left / self.num_units
        return {"units_removed": units, "parameters_removed": removed, "accuracy": accuracy}

    def _measure(self) -> tuple[float, float]:
        """The share of the parameters that compaction takes out with the pruned units, and the accuracy of the rest."""
        kept = tuple(torch.cat([noise.kept for noise in self.module.guide.noise.values()]).tolist())
        if kept not in self._measured:
            self._measured[kept] = self._measure_anew()
        return self._measured[kept]

    def _measure_anew(self) -> tuple[float, float]:
        # It computes what the masked network does, and the faster the less is left.
        small = compact(self.module.net, self.module.guide, self.example)
        layers = compaction_report(small).layers
        # Biases may be new in it.
        removed = 1 - math.fsum(layers["parameters_after"]) / math.fsum(layers["parameters_before"])
        return removed, measure_accuracy(small, self.examples, self.device)

    @contextmanager
    def _restored(self) -> Iterator[None]:
        kept = {noise: noise.kept.clone() for noise in self.module.guide.noise.values()}
        try:
            yield
        finally:
            for noise, before in kept.items():
                noise.kept.copy_(before)

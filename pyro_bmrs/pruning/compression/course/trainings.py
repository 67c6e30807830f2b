# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The trainings of which a compression is made: of the whole network, with noise, and of what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.compact import compact
from pyro_bmrs.pruning.compaction.reporting.cost import cost
from pyro_bmrs.pruning.compression.budget import Budget, prune_within
from pyro_bmrs.pruning.compression.course.data import Data
from pyro_bmrs.pruning.compression.course.fitting import MakeOptimizer, Schedule, fit, half_cosine
from pyro_bmrs.pruning.compression.course.held_out import held_out
from pyro_bmrs.pruning.compression.prices import Occam, OccamPrices
from pyro_bmrs.pruning.compression.result import PathStep
from pyro_bmrs.pruning.criteria.bmrs_n import BMRS_N
from pyro_bmrs.pruning.criteria.snr import SNR
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.selection.order import Unit, unit_groups
from pyro_bmrs.pruning.selection.prune import PruningResult, prune_groups
from pyro_bmrs.pruning.training.batches import on_device, pair_of, run_on_batch
from pyro_bmrs.pruning.training.elbo import NoiseELBO
from pyro_bmrs.pruning.training.models import Likelihood
from pyro_bmrs.structure.vectorised import set_seed

MakeLikelihood = Callable[[nn.Module, int], Likelihood]
# How far the location of noise may go in a step of the path, of the twenty nats to the low end; and how fast.
_REACH, _FASTEST = 6.0, 0.5
# The learning rate of a likelihood's own numbers.
_OWN_RATE = 0.05
# So many examples say what the data lose without a unit.
_NUM_WEIGHED = 1024
# How far the seeds of trainings are from each other, so that those of runs with seeds in a row are others.
_APART = 1_000_003


class PlainLoss(nn.Module):
    """
    The mean negative log likelihood of a batch.

    :param model: a network without noise, and its likelihood.
    """

    def __init__(self, model: Likelihood) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any, y: Tensor) -> Tensor:
        """Of inputs and targets, in nats."""
        return self.model.negative_log_likelihood(run_on_batch(self.model.net, x), y)


@dataclass(frozen=True)
class Course:
    """
    How networks are trained, whole, with noise, and compact.

    :param data: what on.
    :param make_likelihood: of a network, and the number of examples.
    :param make_optimizer: of parameters.
    :param seed: of all random numbers; each training begins with its own.
    :param on_step: called after each step of training.
    """

    data: Data
    make_likelihood: MakeLikelihood
    make_optimizer: MakeOptimizer
    seed: int
    on_step: Callable[[], Any]

    def model_of(self, net: nn.Module, like: Likelihood | None = None) -> Likelihood:
        """
        A network and its likelihood.

        :param net: the network.
        :param like: a likelihood whose own parameters it begins with.
        """
        model = self.make_likelihood(net, self.data.num_examples)
        device = next(net.parameters()).device
        if like is not None:
            own = {name: value for name, value in like.state_dict().items() if not name.startswith("net.")}
            model.load_state_dict(own, strict=False)
        return model.to(device)

    @cached_property
    def example(self) -> Any:
        """The inputs of one example."""
        inputs, _ = pair_of(next(iter(self.data.validation)))
        return tree_map_only(Tensor, lambda value: value[:1], inputs)

    def example_on(self, net: nn.Module) -> Any:
        """The inputs of one example on the device of a network."""
        device = next(net.parameters()).device
        return on_device(self.example, device)

    def train(
        self,
        model: Likelihood,
        num_steps: int,
        stage: int,
        loader: DataLoader[Any] | None = None,
        schedule: Schedule = half_cosine,
    ) -> None:
        """
        Trains a network without noise; the learning rate falls to 0 in the course.

        :param model: the network and its likelihood.
        :param num_steps: how many batches to take; 0 for no training.
        :param stage: a number of the training, by which its random numbers are its own.
        :param loader: of the batches; by default of those that are not held out.
        :param schedule: how the rate falls.
        """
        if not num_steps:
            return
        model.train()
        optimizers = self.optimizers_of(model, _trained(model))
        set_seed(self.seed + _APART * stage)
        fit(PlainLoss(model), optimizers, optimizers, loader or self.data.train, num_steps, self.on_step, schedule)

    def optimizers_of(self, model: Likelihood, parameters: Sequence[nn.Parameter]) -> list[Optimizer]:
        """
        Optimisers of what is trained of a network and its likelihood.

        Numbers that are the likelihood's own, such as the scale of normal observations, may have a long way to go,
        and are one where the network has many: at the network's rate they would arrive long after it.

        :param model: the network and its likelihood.
        :param parameters: what is trained.
        """
        of_likelihood = set(model.parameters()) - set(model.net.parameters())
        own = [parameter for parameter in parameters if parameter.dim() < 2 and parameter in of_likelihood]
        others = [parameter for parameter in parameters if parameter not in set(own)]
        # Either may be all there is: of a network whose weights are frozen, or whose likelihood has nothing to learn.
        of_others = [self.make_optimizer(others)] if others else []
        return of_others + ([torch.optim.Adam(own, lr=_OWN_RATE)] if own else [])

    def measure(
        self,
        model: Likelihood,
        kept: Mapping[str, Tensor],
        temperature: float = 0.0,
        prices: OccamPrices | None = None,
        decisions: PruningResult | None = None,
        *,
        is_trained: bool = False,
    ) -> PathStep:
        """
        A step of the path.

        :param model: a network without noise, and its likelihood.
        :param kept: as of :class:`PathStep`, as are the others.
        """
        costs = cost(model.net, self.example_on(model.net)).sum()
        return PathStep(
            temperature,
            model.net.eval(),
            is_trained,
            {name: units.clone() for name, units in kept.items()},
            held_out(model, self.data.validation),
            int(costs["parameters"]),
            int(costs["macs"]),
            prices,
            decisions,
        )


class NoisyCourse:
    """
    A network with noise whose units pay their prices, at one temperature after the other.

    :param course: how it is trained.
    :param model: the network with noise, and its likelihood.
    :param criterion: what decides which units go.
    """

    def __init__(self, course: Course, model: Likelihood, criterion: BMRS_N) -> None:
        self.course, self.model, self.criterion = course, model, criterion
        self.guide = AutoTruncatedLogNormal(model)
        elbo: Any = NoiseELBO
        self.elbo: Any = elbo()(model, self.guide).to(next(model.net.parameters()).device)

    @property
    def kept(self) -> dict[str, Tensor]:
        """For each noise site, which of its units are left."""
        return {name: noise.kept for name, noise in self.guide.noise.items()}

    def train(self, occam: Occam, num_steps: int, stage: int) -> None:
        """
        Trains at a temperature.

        :param occam: the prices, and their temperature.
        :param num_steps: how many batches to take.
        :param stage: a number of the training.
        """
        self.model.kl_weight = occam
        self.elbo.train()
        set_seed(self.course.seed + _APART * stage)
        noise = self.guide.noise_parameters
        others = [parameter for parameter in _trained(self.elbo) if parameter is not noise]
        annealed = self.course.optimizers_of(self.model, others)
        own = torch.optim.Adam([noise], lr=min(_FASTEST, _REACH / num_steps), fused=True)
        fit(self.elbo, [*annealed, own], annealed, self.course.data.train, num_steps, self.course.on_step)

    def prune(self) -> PruningResult:
        """Decides which units go, of those that are left."""
        return prune_groups(self.model.net, self.guide, self.criterion, self._groups)

    def between(
        self, before: Mapping[str, Tensor], decisions: PruningResult, count: int
    ) -> Iterator[tuple[Likelihood, PruningResult]]:
        """
        Networks between two of a path: of the units that went some, those first that are missed least.

        :param before: for each site the units that were left.
        :param decisions: by which units went.
        :param count: how many networks.
        :return: each without noise, and by what it came to be.
        """
        num_left = sum(int(kept.sum()) for kept in before.values())
        for number in range(1, count + 1):
            self._leave(before)
            share = number / (count + 1) * decisions.num_removed / num_left
            part = prune_groups(self.model.net, self.guide, self.criterion, self._groups, share)
            yield self.compact(part), part
        self._leave(decisions.kept)

    def has_lost(self, before: Mapping[str, Tensor]) -> bool:
        """
        Whether units went.

        :param before: for each site the units that were left.
        """
        return any(not torch.equal(before[name], kept) for name, kept in self.kept.items())

    @property
    def share_leaving(self) -> float:
        """Of the units that are left, the share whose noise is louder than its signal: they are on their way out."""
        ratios, kept = SNR().scores(self.model.net, self.guide), self.kept
        louder = torch.cat([ratios[name][units] < 1 for name, units in kept.items()])
        return float(louder.double().mean())

    def prune_within(self, budget: Budget, target: float, kept: Mapping[str, Tensor]) -> None:
        """
        Leaves what is worth most within a budget.

        :param budget: the kind of cost.
        :param target: the most that it may be.
        :param kept: for each site the units to choose from.
        """
        self._leave(kept)
        prune_within(self.model, self.guide, self._batches(), budget, target)

    def _leave(self, kept: Mapping[str, Tensor]) -> None:
        for name, noise in self.guide.noise.items():
            noise.kept.copy_(kept[name])

    def compact(self, decisions: PruningResult | None) -> Likelihood:
        """
        The network without noise and without what went, and its likelihood.

        :param decisions: by which it went, for the report; None where a budget decided.
        """
        evidence = None if decisions is None else decisions.scores
        net = compact(self.model.net, self.guide, self._example, delta_evidence=evidence)
        return self.course.model_of(net, self.model)

    def _batches(self) -> list[tuple[Any, Tensor]]:
        """Some of the data, where the network is."""
        device = next(self.model.net.parameters()).device
        batches: list[tuple[Any, Tensor]] = []
        for batch in self.course.data.train:
            batches.append(on_device(pair_of(batch), device))
            if sum(len(own) for _, own in batches) >= _NUM_WEIGHED:
                break
        return batches

    @cached_property
    def _groups(self) -> list[list[Unit]]:
        """The units that go together, which stay the same while some of them go."""
        return unit_groups(self.model.net, self._example)

    @property
    def _example(self) -> Any:
        return self.course.example_on(self.model.net)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ReductionError("no parameter of the network requires a gradient: there is nothing to train")
    return parameters

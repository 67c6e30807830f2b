# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Compression in one call: a network, data, and out comes a smaller network that does no worse on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compression.budget import Budget
from pyro_bmrs.pruning.compression.checkpoint import Checkpoint
from pyro_bmrs.pruning.compression.course.data import read_data
from pyro_bmrs.pruning.compression.course.fitting import MakeOptimizer, one_cycle
from pyro_bmrs.pruning.compression.course.held_out import held_out
from pyro_bmrs.pruning.compression.course.plan import MOST_TRIED, NUM_STEPS, Plan
from pyro_bmrs.pruning.compression.course.rules import Rule, is_worse, keeps_accuracy, near_the_best, with_end
from pyro_bmrs.pruning.compression.course.trainings import Course, MakeLikelihood, NoisyCourse
from pyro_bmrs.pruning.compression.options import check_odds, check_options, likelihood_for, warn_of_what_it_has_seen
from pyro_bmrs.pruning.compression.path import FIRST, is_too_fast, next_temperature, num_between
from pyro_bmrs.pruning.compression.prices import Occam, occam_prices
from pyro_bmrs.pruning.compression.result import Compression, PathStep
from pyro_bmrs.pruning.criteria.bmrs_n import BMRS_N
from pyro_bmrs.pruning.examples import copy_network
from pyro_bmrs.pruning.noise.attachment import attach_noise
from pyro_bmrs.pruning.selection.prune import PruningResult
from pyro_bmrs.pruning.training.batches import pair_of
from pyro_bmrs.pruning.training.models import Likelihood
from pyro_bmrs.structure.vectorised import own_random_numbers

# Of the prices, as :class:`Occam` has it.
_POWER = 0.5
# What there is noise on. Not on blocks: those of which little is left lose their units first.
_KINDS = ("units", "heads", "width")
# A step in which less than this share of the parameters went is no network of its own.
_LEAST_LOSS = 0.1
# A network on the path is tried that has less than this share of the parameters of the last one that was.
_TRIED = 1 / 3
# How far the number of a second training is from that of the first.
_AGAIN = 1000


def compress(
    net: nn.Module,
    train_data: Any,
    validation_data: Any = None,
    *,
    likelihood: MakeLikelihood | None = None,
    epochs: int = 30,
    optimizer: MakeOptimizer | None = None,
    is_trained: bool = False,
    budget: Mapping[str, float] | None = None,
    accuracy_loss: float | None = None,
    prior_log_odds: float | Mapping[str, float] = 1.0,
    attach: Callable[[nn.Module], nn.Module] | None = None,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | PathLike[str] | None = None,
) -> Compression:
    """
    A smaller network that does as well on held-out data, from one call, with nothing to choose.

    The network is trained; then noise on its units is trained along with it, and each unit has to pay what its weights
    cost, :func:`~pyro_bmrs.pruning.occam_prices`. The temperature of these prices rises step by step; after each step
    the units go of which :class:`~pyro_bmrs.pruning.BMRS_N` says that they are better gone (D. Wright, C. Igel and R.
    Selvan (2024), https://arxiv.org/abs/2406.01345). What is left is compacted and kept; where much went, networks
    between are, too. Of the networks on this path some are trained on without noise, each time that it has come to a
    third, until one does not do, and then by bisection. The smallest is taken whose accuracy and log likelihood on
    held-out data are within one standard error of the whole network's, or of a better one's less two, of accuracy
    within half a point too; where no labels are observed, whose log likelihood is within one of the best. What is not
    far from it is trained once more before it is given up. At last the network that is taken is trained once more, by
    the examples too that were held out, unless they were given. All of it takes some 2 to 2.5 times as long as plain
    training of as many epochs, and more where data are few.

    :param net: the network, without noise; left as it is. It is trained on the device that it is on.
    :param train_data: a data loader, a data set of pairs of inputs and targets (or of mappings that hold the targets as
        ``"labels"``), or a pair of tensors.
    :param validation_data: the same, held out; by default a tenth of the other, or a fifth of a few thousand and less,
        drawn at random.
    :param likelihood: what makes a :class:`~pyro_bmrs.pruning.Likelihood` of a network and the number of examples; by
        default :class:`~pyro_bmrs.pruning.Classification` where the targets are integers, and
        :class:`~pyro_bmrs.pruning.Regression` where they are real numbers.
    :param epochs: for how many epochs the network would be trained without any of this.
    :param optimizer: what makes an optimiser of parameters; by default Adam with a learning rate of 1e-3. The rate
        falls to 0 along half a cosine in each training; what has lost units begins with a rise to 3 times of it.
    :param is_trained: whether the network is trained already, so that this need not be done. It wants validation data
        that it has not seen: against examples that it knows by heart no smaller network does as well.
    :param budget: one of ``"parameters"``, ``"macs"`` and ``"latency"`` (both of one example) with its limit: a share
        of the whole network's, as a float up to 1, or a number, as an int; of microseconds for the latency. The units
        that are worth most within it are left, and at least 99 % of it is used where units are as small as that.
    :param accuracy_loss: how much accuracy may be lost on held-out data, 0.005 for half a point; the smallest network
        on the path that does not lose more is taken.
    :param prior_log_odds: for the removal of a unit, in nats; see :class:`~pyro_bmrs.pruning.BMRS_N`.
    :param attach: puts noise on a network; a ``partial`` of :func:`~pyro_bmrs.pruning.attach_noise` has options. By
        default it goes on units, heads, and the width of streams that are read through norms.
    :param seed: of all random numbers of torch; the generators are then as they were.
    :param progress: whether to show a bar.
    :param checkpoint: a folder, made where there is none, in which each step of the path is kept. A run that was
        interrupted goes on from there when it is called in the same way, and ends as if it had not been.
    :return: the :class:`Compression`.
    :raises ReductionError: for data, targets, a budget, odds or a loss of accuracy that make no sense; for a network to
        which no noise can be attached; for training that diverges.
    :warns ReductionWarning: for a network that came trained, and no validation data.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import compress
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(400, 4)
        >>> net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> result = compress(net, (x, (x[:, 0] > 0).long()), epochs=2, progress=False)
        >>> result.network
        Sequential(
          (0): Linear(in_features=4, out_features=..., bias=True)
          (1): ReLU()
          (2): Linear(in_features=..., out_features=2, bias=True)
        )
    """
    check_options(epochs, accuracy_loss, prior_log_odds)
    limit = None if budget is None else Budget.of(budget)
    if limit is not None and accuracy_loss is not None:
        raise ReductionError("give a budget, or a loss of accuracy, and not both")
    if is_trained and validation_data is None and limit is None:
        warn_of_what_it_has_seen()
    with own_random_numbers():
        data = read_data(train_data, validation_data, seed=seed)
        first_batch = next(iter(data.validation))
        plan = Plan.of(epochs * len(data.train), is_trained)
        settings = {
            "epochs": epochs,
            "seed": seed,
            "is_trained": is_trained,
            "budget": repr(limit),
            "prior_log_odds": repr(prior_log_odds),
            "num_examples": data.num_examples,
            "network": repr([(name, tuple(value.shape)) for name, value in net.state_dict().items()]),
        }
        with tqdm(total=plan.most, desc="compress", unit="step", disable=not progress) as bar:
            make_optimizer = optimizer or partial(torch.optim.Adam, lr=1e-3, fused=True)
            course = Course(
                data, likelihood or likelihood_for(pair_of(first_batch)[1]), make_optimizer, seed, bar.update
            )
            if attach is None:
                attach = partial(attach_noise, kinds=_KINDS, example_inputs=course.example_on(net))
            run = _Run(course, plan, BMRS_N(prior_log_odds), attach, Checkpoint.at(checkpoint, settings))
            # What cannot be done with this network, or told from these data, shows before the training, not after it.
            check_odds(attach(copy_network(net)), prior_log_odds)
            model = course.model_of(copy_network(net))
            first = held_out(model, [first_batch])
            if accuracy_loss is not None and first.right is None:
                raise ReductionError(
                    "accuracy_loss is of labels, and none are observed: leave it out, or give a budget"
                )
            if limit is not None:
                steps, rule = run.within(model, limit), f"within the budget of {limit.kind}"
                chosen = len(steps) - 1
            elif accuracy_loss is not None:
                steps, chosen = run.choose(model, partial(keeps_accuracy, loss=accuracy_loss))
                rule = f"the smallest that loses at most {accuracy_loss:.2%} of accuracy"
            else:
                steps, chosen = run.choose(model, near_the_best)
                has_labels = first.right is not None
                other = "whole, or of a surely better one, and half a point of accuracy" if has_labels else "best"
                rule = f"the smallest within one standard error of the {other}"
            run.finish(steps, chosen)
            bar.total = bar.n
    return Compression(steps, chosen, rule if limit is not None else with_end(rule, chosen, len(steps)))


class _Run:
    """
    One compression.

    :param course: how networks are trained.
    :param plan: for how long.
    :param criterion: what decides which units go.
    :param attach: puts noise on a network.
    :param checkpoint: where the steps are kept.
    """

    def __init__(
        self,
        course: Course,
        plan: Plan,
        criterion: BMRS_N,
        attach: Callable[[nn.Module], nn.Module],
        checkpoint: Checkpoint,
    ) -> None:
        self.course, self.plan, self.criterion, self.attach = course, plan, criterion, attach
        self.checkpoint = checkpoint

    def path(self, model: Likelihood, budget: Budget | None = None) -> Iterator[list[PathStep]]:
        """
        The networks on the path, the whole one first; with a budget, the last is within it.

        :param model: the whole network and its likelihood, which are trained.
        :param budget: what the network may cost.
        :return: all of them so far, again and again while it grows; steps may be replaced.
        """
        self._train_whole(model)
        net: Any = model.net
        noisy = NoisyCourse(self.course, self.course.model_of(self.attach(copy_network(net)), model), self.criterion)
        example = self.course.example_on(net)
        target = math.nan if budget is None else budget.target(budget.cost(net, example))
        steps = [self.course.measure(model, noisy.kept, is_trained=True)]
        done = self.checkpoint.load("noisy")
        if done is None:
            done = {"number": 0, "steps": 1, "is_over": False, "parameters": steps[0].parameters}
            done |= {
                "temperature": FIRST,
                "last": FIRST**2,
                "has_waited": False,
                "state": deepcopy(noisy.elbo.state_dict()),
            }
        prices = occam_prices(noisy.model, self.course.data.train)
        if done["number"]:
            noisy.elbo.load_state_dict(done["state"])
            steps += [self.checkpoint.load_step(number, net, self.criterion) for number in range(1, done["steps"])]
        yield steps
        for number in range(done["number"] + 1, NUM_STEPS + 1):
            if done["is_over"]:
                break
            before = {name: kept.clone() for name, kept in noisy.kept.items()}
            noisy.train(Occam(prices, done["temperature"], _POWER), self.plan.step, stage=number)
            decisions: PruningResult | None = noisy.prune()
            is_last, step, parameters = number == NUM_STEPS, None, done["parameters"]
            # Where nothing went the network is what it was.
            if budget is not None or noisy.has_lost(before):
                small = noisy.compact(decisions)
                if budget is not None and (is_last or budget.cost(small.net, example) <= target):
                    noisy.prune_within(budget, target, before)
                    decisions, is_last = None, True
                    small = noisy.compact(decisions)
                step = self.course.measure(small, noisy.kept, done["temperature"], prices, decisions)
                parameters = step.parameters
            went = 1 - parameters / done["parameters"]
            if not is_last and is_too_fast(went, done["temperature"], done["last"]):
                noisy.elbo.load_state_dict(done["state"])
                done |= {"number": number, "temperature": math.sqrt(done["temperature"] * done["last"])}
                self.checkpoint.save("noisy", done)
                continue
            if step is not None:
                self._extend(steps, step, noisy, before)
            temperature = next_temperature(done["temperature"], went, noisy.share_leaving, done["has_waited"])
            done = {
                "number": number,
                "steps": len(steps),
                "parameters": parameters,
                "temperature": temperature,
                "last": done["temperature"],
                "has_waited": temperature == done["temperature"],
                "is_over": is_last or all(kept.sum() <= 1 for kept in noisy.kept.values()),
                "state": deepcopy(noisy.elbo.state_dict()),
            }
            self.checkpoint.save("noisy", done)
            yield steps

    def within(self, model: Likelihood, budget: Budget) -> list[PathStep]:
        """
        The networks on the path to one within a budget, which is trained without noise.

        :param model: the whole network and its likelihood, which are trained.
        :param budget: what the network may cost.
        """
        *_, steps = self.path(model, budget)
        self.attempt(steps, len(steps) - 1)
        return steps

    def _extend(self, steps: list[PathStep], step: PathStep, noisy: NoisyCourse, before: Mapping[str, Tensor]) -> None:
        """Adds a step, if it is smaller by enough, and before it those between where it is smaller by much."""
        if step.decisions is not None:
            count = num_between(steps[-1].parameters, step.parameters)
            for between, own in noisy.between(before, step.decisions, count):
                self._add(steps, self.course.measure(between, own.kept, step.temperature, step.prices, own))
        if step.decisions is None or step.parameters < (1 - _LEAST_LOSS) * steps[-1].parameters:
            self._add(steps, step)

    def _add(self, steps: list[PathStep], step: PathStep) -> None:
        self.checkpoint.save_step(len(steps), step)
        steps.append(step)

    def attempt(self, steps: list[PathStep], number: int, is_short: Callable[[], bool] = lambda: False) -> None:
        """
        Trains the network of a step without noise, so that it can be compared with others, if it is not worse for that.

        :param steps: the path; the step is replaced.
        :param number: of the step.
        :param is_short: asked when that is done, whether the network seems to be short of training: it gets as much
            again.
        """
        step = steps[number]
        if step.is_trained:
            return
        model = self.course.model_of(deepcopy(step.network), self._model)
        steps[number] = replace(step, is_trained=True)
        for trainings, stage in enumerate((-number, -number - _AGAIN), 1):
            self.course.train(model, self.plan.end, stage, schedule=one_cycle)
            trained = self._measure_again(model, step, trainings)
            # Few data can be learned by heart: what noise has left may be the better network.
            if not is_worse(trained, steps[number]):
                steps[number] = replace(trained, network=deepcopy(trained.network))
            if not is_short():
                break
        self.checkpoint.save_step(number, steps[number])

    def finish(self, steps: list[PathStep], number: int) -> None:
        """
        Trains the network that was chosen to its end: by all examples, those that were held out to choose it too.

        :param steps: the path; the step is replaced.
        :param number: of the step. The whole network stays as it is where it has seen all examples: it came trained, or
            none were taken from its training data; and another that was worse for being trained.
        """
        data, step = self.course.data, steps[number]
        stays = step.trainings == 0 if number else not self.plan.whole or data.is_held_out_for_good
        if stays:
            return
        model = self.course.model_of(step.network, self._model)
        state = self.checkpoint.load("end")
        if state is None:
            self.course.train(model, self.plan.end, NUM_STEPS + 1, data.all, one_cycle)
            self.checkpoint.save("end", model.state_dict())
        else:
            model.load_state_dict(state)
        model.net.eval()
        if data.is_held_out_for_good:
            steps[number] = self._measure_again(model, step, step.trainings + 1)

    def _measure_again(self, model: Likelihood, step: PathStep, trainings: int) -> PathStep:
        """A step whose network was trained on."""
        trained = self.course.measure(model, step.kept, step.temperature, step.prices, step.decisions, is_trained=True)
        return replace(trained, trainings=trainings)

    def choose(self, model: Likelihood, rule: Rule) -> tuple[list[PathStep], int]:
        """
        Finds the smallest network that will do, training only those between one that does and one that does not.

        A network on the path is tried when it is a third of the last one that was; the path goes on while it would do
        if twice as much were allowed. Of those between, the smallest is found by bisection. What would do only if twice
        as much were allowed is trained once more before it is given up: it may be short of training.

        :param model: the whole network and its likelihood, which are trained.
        :param rule: of networks trained without noise, which will do.
        :return: the path, and the number of the step.
        """
        steps: list[PathStep] = []

        def trained() -> list[int]:
            return [number for number, step in enumerate(steps) if step.is_trained]

        def may_do(allowed: float = 1.0) -> list[int]:
            chosen = rule([steps[number] for number in trained()], allowed)
            return [number for number, does in zip(trained(), chosen) if does]

        def attempt(number: int) -> None:
            self.attempt(steps, number, lambda: number in may_do(2.0) and number not in may_do())

        for steps in self.path(model):
            if self.checkpoint.load("over"):
                break
            last = len(steps) - 1
            if len(trained()) <= MOST_TRIED and steps[last].parameters <= _TRIED * steps[trained()[-1]].parameters:
                attempt(last)
            if trained()[-1] not in may_do(2.0):
                break
        self.checkpoint.save("over", True)
        low = may_do()[-1]
        high = min([number for number in trained() if number > low], default=len(steps))
        while high - low > 1:
            middle = (low + high) // 2
            attempt(middle)
            low, high = (middle, high) if middle in may_do() else (low, middle)
        return steps, min(may_do(), key=lambda number: (steps[number].parameters, -steps[number].mean_log_likelihood))

    def _train_whole(self, model: Likelihood) -> None:
        self._model = model
        state = self.checkpoint.load("whole")
        if state is not None:
            model.load_state_dict(state)
            return
        self.course.train(model, self.plan.whole, stage=0)
        self.checkpoint.save("whole", model.state_dict())

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A run: trains a network with noise, prunes it, trains on, compacts it, tests it, and adds a row to the results."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import (
    BMRS_N,
    BMRS_U,
    SNR,
    Criterion,
    PosteriorMean,
    PruningCallback,
    Saliency,
    WeightNorm,
    compact,
    detach_noise,
    in_proportion_to_cost,
    prune,
    save_compact,
)
from pyro_bmrs.pruning.compaction.cost import cost
from pyro_bmrs.pruning.selection.callback import agree_on_kept

from .data import Examples, Images
from .module import Classifier, NoisyClassifier, PlainClassifier
from .networks import build_network, find_network
from .post_training import Comparison, measure_accuracy
from .results import SCHEMA, append_row, read_rows

Odds = float | Literal["paper", "parameters", "macs"]
MakeTrainer = Callable[..., Trainer]

# The criteria whose curves post-training runs draw.
COMPARED = (
    *("BMRS_N", "BMRS_U-8", "BMRS_U-4", "SNR"),
    *("PosteriorMean", "WeightNorm", "Saliency-taylor", "Saliency-fisher"),
)

_GRADIENT_BATCHES = 2
_TIMED_EXAMPLES, _TIMED_CALLS = 128, 20


@dataclass(frozen=True)
class Experiment:
    """
    What a run does, beside its data, its network and how they are trained.

    :param results: the folder of results: a row in results.jsonl, checkpoints and logs in runs.
    :param experiment: continuous prunes during training and after it; post_training prunes after it, and compares
        criteria at all compressions.
    :param settings: the name of the settings in the results.
    :param criterion: BMRS_N, BMRS_U-8 (or another number of bits), SNR, PosteriorMean, WeightNorm, Saliency-taylor,
        Saliency-fisher, or null to train the network without noise.
    :param odds: the prior log odds for removal of BMRS_N and BMRS_U, in nats: a number; parameters or macs for odds in
        proportion to what a unit costs; or paper for the rule of the paper's code.
    :param mean_odds: the mean over units of odds in proportion to costs.
    :param fraction: the share of the units that goes after training; by default the criterion decides.
    :param start: how many epochs continuous pruning leaves the network alone.
    :param every: how many epochs are between prunings.
    :param fine_tune_epochs: how many epochs to train after pruning.
    :param fine_tune: masked trains on with noise; compact trains the compact network, which has none.
    :param fine_tune_lr: learning rate of the weights then; by default as before.
    :param num_points: how many points the curves of post_training have.
    :param key: the name of the run in the results; by default made of the settings.
    """

    results: Path = Path("results")
    experiment: Literal["continuous", "post_training"] = "continuous"
    settings: str = "custom"
    criterion: str | None = "BMRS_N"
    odds: Odds = 1.0
    mean_odds: float = 1.0
    fraction: float | None = None
    start: int = 0
    every: int = 1
    fine_tune_epochs: int = 10
    fine_tune: Literal["masked", "compact"] = "masked"
    fine_tune_lr: float | None = None
    num_points: int = 40
    key: str | None = None


def job_key(
    experiment: str,
    settings: str,
    data: str,
    network: str,
    criterion: str | None,
    seed: int,
    overrides: Mapping[str, Any] | None = None,
) -> str:
    """
    What a run is known by in the results, where it is not given a key.

    :param overrides: what differs from the settings' file, by the names of the options.

    Example::

        >>> job_key("continuous", "paper", "mnist", "mlp", "BMRS_N", 0, {"trainer.max_epochs": 5})
        'continuous-paper-mnist-mlp-BMRS_N-0-trainer.max_epochs=5'
    """
    parts = [experiment, settings, data, network, criterion or "none", seed]
    return "-".join(map(str, [*parts, *(f"{name}={value}" for name, value in sorted((overrides or {}).items()))]))


def run_folder(results: Path, key: str) -> Path:
    """The folder of a run's checkpoints and logs."""
    return results / "runs" / re.sub(r"[^\w.,=+-]+", "_", key)


class _Beside:
    """The first examples in batches, on the device that a network is on by then."""

    def __init__(self, net: nn.Module, examples: Examples) -> None:
        self.net, self.examples = net, examples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self.net.parameters()).device
        for x, y in itertools.islice(self.examples.batches(), _GRADIENT_BATCHES):
            yield x.to(device), y.to(device)


class Criteria:
    """
    The criteria of pruning by name, for one network.

    :param experiment: says what the prior odds are.
    :param net: the network, with noise.
    :param example: an image that it is called with.
    :param examples: those that criteria take gradients for.
    """

    def __init__(self, experiment: Experiment, net: nn.Module, example: Tensor, examples: Examples) -> None:
        self.batches = _Beside(net, examples)
        self.is_papers = experiment.odds == "paper"
        odds: Any = experiment.odds
        if odds in ("parameters", "macs"):
            odds = in_proportion_to_cost(net, example if odds == "macs" else None, mean=experiment.mean_odds)
        self.odds: float | Mapping[str, float] = odds

    def find(self, name: str) -> Criterion:
        """
        A criterion by name; see :class:`Experiment`.

        :raises ReductionError: for a name that is not known.
        """
        if name == "BMRS_N":
            return BMRS_N.paper() if self.is_papers else BMRS_N(self.odds)
        if bits := re.fullmatch(r"BMRS_U-(\d+(?:\.\d+)?)", name):
            return BMRS_U.paper(float(bits[1])) if self.is_papers else BMRS_U(float(bits[1]), self.odds)
        others: list[Criterion] = [SNR(), PosteriorMean(), WeightNorm()]
        others += [Saliency(self.batches, kind) for kind in ("taylor", "fisher")]
        known = {criterion.name: criterion for criterion in others}
        if name not in known:
            raise ReductionError(f"no criterion is called {name!r}; there are BMRS_N, BMRS_U-8, {', '.join(known)}")
        return known[name]


def fit(
    make_trainer: MakeTrainer,
    stage: str,
    epochs: int | None,
    callbacks: list[Callback],
    classifier: Classifier,
    data: Images,
    folder: Path,
) -> Trainer:
    """
    Trains, from a checkpoint where there is one; it is written after each epoch, in the place of the one before.

    :param make_trainer: see :func:`run`.
    :param stage: likewise; the name of the checkpoint.
    :param epochs: likewise.
    :param callbacks: likewise.
    :param classifier: what is trained.
    :param data: the data.
    :param folder: the folder of the checkpoint.
    :return: the trainer.
    """
    checkpoint = folder / f"{stage}.ckpt"
    save = ModelCheckpoint(folder, stage, save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = make_trainer(stage, epochs, [*callbacks, save])
    # The trainer takes the modes of modules as it finds them.
    classifier.train()
    trainer.fit(classifier, datamodule=data, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    return trainer


def is_done(results: Path, key: str) -> bool:
    """Whether a run has a row in the results."""
    return any(row["key"] == key for row in read_rows(results))


def run(
    experiment: Experiment, module: NoisyClassifier, data: Images, make_trainer: MakeTrainer, key: str
) -> dict[str, Any] | None:
    """
    Does what an experiment says, from where it was interrupted, if it was; nothing if it is done.

    Under several processes each calls this; the first one tests, and writes the row.

    :param experiment: what to do.
    :param module: the network with noise, not yet trained.
    :param data: the data.
    :param make_trainer: given the name of a stage, a number of epochs (or none for the trainer's own) and callbacks,
        makes a trainer.
    :param key: the name of the run.
    :return: the row; none where there is one already, or in a process that is not the first.
    :raises ReductionError: for a criterion that is not known, or has no threshold and is given no fraction.
    """
    if is_done(experiment.results, key):
        print(f"done: {key} has a row in {experiment.results}")
        return None
    folder = run_folder(experiment.results, key)
    example = data.train[:2][0]
    tied = example if find_network(module.network).ties_units else None
    criteria = Criteria(experiment, module.net, example[:1], data.train)
    criterion = None if experiment.criterion is None else criteria.find(experiment.criterion)
    if criterion is not None and not criterion.decides and experiment.fraction is None:
        raise ReductionError(f"{criterion.name} has no threshold of its own; say what share of units goes: --fraction")

    trained: Classifier = module
    callbacks: list[Callback] = []
    if criterion is None:
        trained = PlainClassifier(detach_noise(module.net), lr=module.lr, schedule=module.schedule, seed=module.seed)
    elif experiment.experiment == "continuous" and experiment.fraction is None:
        every, start = experiment.every, experiment.start
        callbacks.append(PruningCallback(criterion, every_n_epochs=every, start=start, example_inputs=tied))
    trainer = fit(make_trainer, "train", None, callbacks, trained, data, folder)
    device, epochs = trainer.strategy.root_device, trainer.max_epochs or 0
    row = describe(experiment, module, data, trainer, key)
    row["accuracy_unpruned"] = measure_accuracy(trained.to(device).eval().predict, data.test, device)
    history, seconds = trained.history, trained.seconds
    state = {name: value.clone() for name, value in module.state_dict().items()}

    tuned: Classifier = trained
    if criterion is not None:
        prune(
            module.net,
            module.guide,
            criterion,
            fraction=experiment.fraction,
            example_inputs=None if tied is None else tied.to(device),
        )
        agree_on_kept(trainer, module.guide)
        row["accuracy_pruned"] = measure_accuracy(module.predict, data.test, device)
        row["units_left"] = module.units_left
        row["sites"] = {name: [noise.num_units, int(noise.kept.sum())] for name, noise in module.guide.noise.items()}
        if experiment.fine_tune == "compact":
            small = compact(module.net, module.guide, example.to(device))
            tuned = PlainClassifier(small, lr=module.lr, schedule=module.schedule, seed=module.seed)
    if experiment.fine_tune_epochs:
        tuned.lr = experiment.fine_tune_lr or module.lr
        tuned.history, tuned.seconds = [], 0.0
        fit(make_trainer, "fine_tune", experiment.fine_tune_epochs, [], tuned, data, folder)
        left = row["units_left"]
        history = [*history, *((epochs + epoch, left, accuracy) for epoch, _, accuracy in tuned.history)]
        seconds += tuned.seconds
    if not trainer.is_global_zero:
        return None

    small = tuned.to(device).eval().net
    if isinstance(tuned, NoisyClassifier):
        small = compact(tuned.net, tuned.guide, example.to(device))
    row["accuracy"] = measure_accuracy(small, data.test, device)
    row["validation_accuracy"] = measure_accuracy(small, data.validation, device)
    plain = build_network(module.network, data.image_shape, data.num_classes).to(device).eval()
    row |= {"history": history, "seconds": seconds, **compare_sizes(plain, small, example.to(device))}
    if criterion is not None:
        save_compact(small.cpu(), folder / "compact.pt")
    if criterion is not None and experiment.experiment == "post_training":
        module.load_state_dict(state)
        comparison = Comparison(module, data.test, device, example, tied)
        row |= comparison.row([criteria.find(name) for name in COMPARED], experiment.num_points)
    append_row(experiment.results, row)
    return row


def describe(
    experiment: Experiment, module: NoisyClassifier, data: Images, trainer: Trainer, key: str
) -> dict[str, Any]:
    """What a row says before anything is measured."""
    odds: Any = experiment.odds
    sites = {name: noise.num_units for name, noise in module.guide.noise.items()}
    return {
        "schema": SCHEMA,
        "key": key,
        "experiment": experiment.experiment,
        "settings": experiment.settings,
        "data": data.name,
        "network": module.network,
        "criterion": experiment.criterion,
        "seed": module.seed,
        "epochs": trainer.max_epochs,
        "fine_tune_epochs": experiment.fine_tune_epochs,
        "batch_size": data.batch_size,
        "lr": module.lr,
        "noise_lr": module.noise_lr,
        "kl_weight": module.kl_weight,
        "odds": f"{odds}, mean {experiment.mean_odds:g}" if odds in ("parameters", "macs") else odds,
        "num_train": data.num_train,
        "units": sum(sites.values()),
        "units_left": sum(sites.values()),
        "sites": {name: [units, units] for name, units in sites.items()},
        "accuracy_pruned": None,
        "world_size": trainer.world_size,
        "versions": {name: version(name) for name in ("torch", "pyro-ppl", "lightning", "pyro_bmrs")},
    }


def compare_sizes(net: nn.Module, small: nn.Module, example: Tensor) -> dict[str, Any]:
    """
    Parameters, multiplications of an image and milliseconds of a batch, of a network and of what is left of it.

    :param net: the network without noise.
    :param small: what is left.
    :param example: images, which are repeated to a batch.
    """
    batch = example[:1].expand(_TIMED_EXAMPLES, *example.shape[1:]).contiguous()
    sizes: dict[str, Any] = {}
    for suffix, measured in (("", net), ("_left", small)):
        costs = cost(measured, example[:1]).sum()
        sizes |= {f"parameters{suffix}": int(costs["parameters"]), f"macs{suffix}": int(costs["macs"])}
        sizes[f"milliseconds{suffix}"] = 1e3 * _seconds(measured, batch)
    return sizes


@torch.no_grad()
def _seconds(net: nn.Module, batch: Tensor) -> float:
    """The shortest of several times that a network takes."""
    times = []
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        net(batch)
        if batch.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)

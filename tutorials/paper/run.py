# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A run: trains a network with noise, prunes it, trains on, compacts it, tests it, and adds a row to the results."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import (
    Criterion,
    PruningCallback,
    compact,
    compress,
    detach_noise,
    prune,
    save_compact,
)
from pyro_bmrs.pruning.selection.callback import agree_on_kept

from .costs import compare_sizes, compare_steps
from .criteria import COMPARED, COMPRESS, AsMany, Criteria, units_by_epoch
from .data import Images
from .module import Classifier, NoisyClassifier, PlainClassifier
from .networks import build_network, find_network
from .post_training import Comparison, measure_accuracy
from .results import SCHEMA, append_row, read_rows, run_folder

Odds = float | Literal["paper", "parameters", "macs"]
MakeTrainer = Callable[..., Trainer]


@dataclass(frozen=True)
class Experiment:
    """
    What a run does, beside its data, its network and how they are trained.

    :param results: the folder of results: a row in results.jsonl, checkpoints and logs in runs.
    :param experiment: continuous prunes during training and after it; post_training prunes after it, and compares
        criteria at all compressions.
    :param settings: the name of the settings in the results.
    :param criterion: BMRS_N, BMRS_U-8 (or another number of bits), SNR, PosteriorMean, WeightNorm, Saliency-taylor,
        Saliency-fisher, null to train the network without noise, or compress for the project's own default, which has a
        schedule of its own.
    :param odds: the prior log odds for removal of BMRS_N and BMRS_U, in nats: a number; parameters or macs for odds in
        proportion to what a unit costs; or paper for the rule of the paper's code.
    :param mean_odds: the mean over units of odds in proportion to costs.
    :param fraction: the share of the units that goes after training; by default the criterion decides.
    :param as_many_as: another criterion: after each epoch as many units are left as in its run, of which the results
        have a row with the same settings and seed.
    :param start: how many epochs continuous pruning leaves the network alone.
    :param every: how many epochs are between prunings.
    :param fine_tune_epochs: how many epochs to train after pruning.
    :param fine_tune: masked trains on with noise; compact trains the compact network, which has none.
    :param fine_tune_lr: learning rate of the weights then; by default as before.
    :param tested: whether the weights of the last epoch are tested, or of the best one by validation accuracy: of the
        epochs of fine-tuning, where there are any, as before them the best networks have yet to be pruned.
    :param num_points: how many points the curves of post_training have.
    :param epochs_between: how many epochs to train after each removal of those curves, as the paper does one.
    :param compared: the criteria that curves are drawn of; by default all.
    :param key: the name of the run in the results; by default made of the settings.
    """

    results: Path = Path("results")
    experiment: Literal["continuous", "post_training"] = "continuous"
    settings: str = "custom"
    criterion: str | None = "BMRS_N"
    odds: Odds = 1.0
    mean_odds: float = 1.0
    fraction: float | None = None
    as_many_as: str | None = None
    start: int = 0
    every: int = 1
    fine_tune_epochs: int = 10
    fine_tune: Literal["masked", "compact"] = "masked"
    fine_tune_lr: float | None = None
    tested: Literal["last", "best"] = "last"
    num_points: int = 40
    epochs_between: int = 0
    compared: list[str] | None = None
    key: str | None = None


def fit(
    make_trainer: MakeTrainer,
    stage: str,
    epochs: int | None,
    callbacks: list[Callback],
    classifier: Classifier,
    data: Images,
    folder: Path,
    *,
    to_best: bool = False,
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
    :param to_best: whether the weights are those of the epoch of the best validation accuracy afterwards.
    :return: the trainer.
    """
    checkpoint = folder / f"{stage}.ckpt"
    save = ModelCheckpoint(folder, stage, save_on_train_epoch_end=True, enable_version_counter=False)
    best = ModelCheckpoint(
        folder,
        f"{stage}-best",
        monitor="validation_accuracy",
        mode="max",
        save_weights_only=True,
        enable_version_counter=False,
    )
    trainer = make_trainer(stage, epochs, [*callbacks, *([best] if to_best else []), save])
    # The trainer takes the modes of modules as it finds them.
    classifier.train()
    trainer.fit(classifier, datamodule=data, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    if to_best:
        weights = torch.load(best.best_model_path, map_location=classifier.device, weights_only=True)["state_dict"]
        classifier.load_state_dict(weights)
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
    :raises ReductionError: for a criterion that is not known, or is not told how many units go and has no threshold;
        for a run to follow that has no row.
    """
    if is_done(experiment.results, key):
        print(f"done: {key} has a row in {experiment.results}")
        return None
    folder = run_folder(experiment.results, key)
    example = data.train[:2][0]
    tied = example if find_network(module.network).ties_units else None
    criteria = Criteria(experiment.odds, experiment.mean_odds, module.net, example[:1], data.train)
    if experiment.criterion == COMPRESS:
        return run_default(experiment, module, data, make_trainer, key)
    criterion = None if experiment.criterion is None else criteria.find(experiment.criterion)
    pruning = continuous_pruning(experiment, criterion, key, tied)
    fraction = 0.0 if isinstance(pruning, AsMany) else experiment.fraction

    trained: Classifier = module
    if criterion is None:
        trained = PlainClassifier(detach_noise(module.net), lr=module.lr, schedule=module.schedule, seed=module.seed)
    callbacks: list[Callback] = [] if pruning is None else [pruning]
    to_best, tunes = experiment.tested == "best", experiment.fine_tune_epochs > 0
    trainer = fit(make_trainer, "train", None, callbacks, trained, data, folder, to_best=to_best and not tunes)
    device, epochs = trainer.strategy.root_device, trainer.max_epochs or 0
    row = describe(experiment, module, data, trainer.world_size, epochs, key)
    row["accuracy_unpruned"] = measure_accuracy(trained.to(device).eval().predict, data.test, device)
    history, seconds, cpu_seconds = trained.history, trained.seconds, trained.cpu_seconds
    state = {name: value.clone() for name, value in module.state_dict().items()}

    tuned: Classifier = trained
    if criterion is not None:
        prune(
            module.net,
            module.guide,
            criterion,
            fraction=fraction,
            example_inputs=None if tied is None else tied.to(device),
        )
        agree_on_kept(trainer, module.guide)
        row["accuracy_pruned"] = measure_accuracy(module.predict, data.test, device)
        row["units_left"] = module.units_left
        row["sites"] = {name: [noise.num_units, int(noise.kept.sum())] for name, noise in module.guide.noise.items()}
        if experiment.fine_tune == "compact":
            small = compact(module.net, module.guide, example.to(device))
            tuned = PlainClassifier(small, lr=module.lr, schedule=module.schedule, seed=module.seed)
    if tunes:
        tuned.lr = experiment.fine_tune_lr or module.lr
        tuned.history, tuned.seconds, tuned.cpu_seconds = [], 0.0, 0.0
        fit(make_trainer, "fine_tune", experiment.fine_tune_epochs, [], tuned, data, folder, to_best=to_best)
        left = row["units_left"]
        history = [*history, *((epochs + epoch, left, accuracy) for epoch, _, accuracy in tuned.history)]
        seconds, cpu_seconds = seconds + tuned.seconds, cpu_seconds + tuned.cpu_seconds
    if not trainer.is_global_zero:
        return None

    small = tuned.to(device).eval().net
    if isinstance(tuned, NoisyClassifier):
        small = compact(tuned.net, tuned.guide, example.to(device))
    row |= {"history": history, "seconds": seconds, "cpu_seconds": cpu_seconds}
    row |= measure(module, data, small, example.to(device))
    if criterion is not None:
        save_compact(small.cpu(), folder / "compact.pt")
    if criterion is not None and experiment.experiment == "post_training":
        module.load_state_dict(state)
        module.to(device).eval()

        def tune() -> None:
            make_trainer("between", experiment.epochs_between, []).fit(module.train(), datamodule=data)
            module.to(device).eval()

        between = tune if experiment.epochs_between else None
        comparison = Comparison(module, data.test, device, example, tied, between)
        names = COMPARED if experiment.compared is None else experiment.compared
        row |= comparison.row([criteria.find(name) for name in names], experiment.num_points)
        row["epochs_between"] = experiment.epochs_between
    append_row(experiment.results, row)
    return row


def continuous_pruning(
    experiment: Experiment, criterion: Criterion | None, key: str, tied: Tensor | None
) -> PruningCallback | None:
    """
    What prunes in training; nothing, for a run that prunes after it or not at all.

    :raises ReductionError: for a criterion that is not told how many units go and has no threshold of its own; for a
        run to follow that has no row.
    """
    if criterion is None:
        return None
    if experiment.as_many_as is not None:
        if experiment.experiment != "continuous" or experiment.fraction is not None:
            raise ReductionError("as_many_as is for continuous runs without a fraction")
        rows = read_rows(experiment.results)
        return AsMany(criterion, units_by_epoch(rows, key, criterion.name, experiment.as_many_as), tied)
    if not criterion.decides and experiment.fraction is None:
        raise ReductionError(
            f"{criterion.name} has no threshold of its own; say what share of units goes (--fraction), or which other "
            "criterion's run to follow (--as_many_as)"
        )
    if experiment.experiment != "continuous" or experiment.fraction is not None:
        return None
    return PruningCallback(criterion, every_n_epochs=experiment.every, start=experiment.start, example_inputs=tied)


def run_default(
    experiment: Experiment, module: NoisyClassifier, data: Images, make_trainer: MakeTrainer, key: str
) -> dict[str, Any]:
    """
    The project's own default in the place of a criterion: :func:`~pyro_bmrs.pruning.compress`, with its own schedule.

    Only the number of epochs is the trainer's; the network, the data and what is held out are as in other runs.
    """
    epochs = make_trainer("compress", None, []).max_epochs
    if epochs is None:
        raise ReductionError("a trainer without max_epochs goes on for ever: set --trainer.max_epochs")
    start, cpu_start = time.perf_counter(), time.process_time()
    plain = detach_noise(module.net)
    result = compress(
        plain,
        data.train[:],
        data.validation[:],
        epochs=epochs,
        attach=partial(find_network(module.network).attach_noise, per_example=True),
        seed=module.seed,
        progress=False,
        checkpoint=run_folder(experiment.results, key) / "compress",
    )
    row = describe(experiment, module, data, 1, epochs, key)
    sites = {name: [len(kept), int(kept.sum())] for name, kept in result.kept.items()}
    row |= {"sites": sites, "units_left": sum(left for _, left in sites.values()), "rule": result.rule}
    row |= {"fine_tune_epochs": None, "batch_size": None, "lr": None, "noise_lr": None, "kl_weight": None, "odds": None}
    row["accuracy_unpruned"] = measure_accuracy(result.at(0).eval(), data.test, torch.device("cpu"))
    row |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start, "history": []}
    row |= measure(module, data, result.network, data.train[:2][0])
    append_row(experiment.results, row)
    return row


def measure(module: NoisyClassifier, data: Images, small: nn.Module, example: Tensor) -> dict[str, Any]:
    """
    How good a compact network is, and what it costs beside the whole one.

    :param module: says which network it was.
    :param data: the data.
    :param small: the compact network, in evaluation mode.
    :param example: images, where it is.
    """
    plain = build_network(module.network, data.image_shape, data.num_classes).to(example.device)
    noisy = find_network(module.network).attach_noise(deepcopy(plain), per_example=True)
    return {
        "accuracy": measure_accuracy(small, data.test, example.device),
        "validation_accuracy": measure_accuracy(small, data.validation, example.device),
        **compare_sizes(plain.eval(), small, example),
        "step_milliseconds": compare_steps(plain, noisy, small, example),
    }


def describe(
    experiment: Experiment, module: NoisyClassifier, data: Images, world_size: int, epochs: int, key: str
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
        "epochs": epochs,
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
        "world_size": world_size,
        "versions": {name: version(name) for name in ("torch", "pyro-ppl", "lightning", "pyro_bmrs")},
    }

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The command line: a run, a sweep of runs, a report of their results."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pyro
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from tqdm import tqdm

from pyro_bmrs.errors import ReductionError

from .data import Images
from .module import NoisyClassifier, count_steps
from .results import job_key, run_folder
from .run import Experiment, run

USAGE = """usage: python -m tutorials.paper COMMAND [OPTIONS]

The experiments of the BMRS paper (https://arxiv.org/abs/2406.01345).

  run      train a network with noise, prune it, fine-tune, compact and test it: a row of the results
  sweep    run the jobs that a sweep lists and the results lack
  report   tables and figures of the results
  pack     move the rows of the results to a compressed file

COMMAND --help lists the options. For example:
  python -m tutorials.paper run --config tutorials/paper/configs/quick.yaml --criterion SNR --seed 1 --results results
"""

_RUN = "Trains a network with noise, prunes it, fine-tunes, compacts and tests it, and adds a row to the results."
_STEPS_BETWEEN_REFRESHES = 50
# The data are in memory, epochs may be short, and the folder of a run that is resumed has its checkpoint.
_KNOWN_WARNINGS = (
    ".*does not have many workers",
    ".*is smaller than the logging interval",
    "Checkpoint directory .* exists",
    ".*LeafSpec.* is deprecated",
)
_WORDY = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")
# Settings that change what comes out, beside all those of the model.
_OF_DATA = ("size", "channels", "batch_size", "validation_share", "limit")
_OF_TRAINER = (
    *("max_epochs", "max_steps", "limit_train_batches", "limit_val_batches", "overfit_batches", "fast_dev_run"),
    *("precision", "gradient_clip_val", "accumulate_grad_batches"),
)
_OF_KEY = ("results", "key", "experiment", "settings", "criterion")


class StepProgress(ProgressBar):
    """
    A bar of all steps of a stage, with the last validation accuracy and the units that are left.

    :param stage: the name of the stage.
    """

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage, self._enabled, self._bar = stage, True, tqdm(disable=True)

    def disable(self) -> None:
        """Shows nothing, as in processes that are not the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Opens the bar where the training begins."""
        total, done = count_steps(trainer), trainer.global_step
        self._bar = tqdm(total=total, initial=done, desc=self.stage, unit="step", disable=not self._enabled)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Moves it now and then."""
        if trainer.global_step - self._bar.n >= _STEPS_BETWEEN_REFRESHES:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Says how good the network is."""
        self._bar.update(trainer.global_step - self._bar.n)
        if pl_module.history:
            _, units, accuracy = pl_module.history[-1]
            self._bar.set_postfix({"validation": f"{accuracy:.2%}"} | ({"units": units} if units else {}))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Closes it."""
        self._bar.close()


class PaperCLI(LightningCLI):
    """
    Lightning's command line, with the options of an :class:`~tutorials.paper.run.Experiment` besides.

    :param arguments: what follows the command.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        defaults = {
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        }
        super().__init__(
            NoisyClassifier,
            Images,
            trainer_defaults=defaults,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "python -m tutorials.paper run", "description": _RUN},
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed."""
        parser.add_argument(
            "--seed_everything", "--seed", type=int, default=0, help="of the weights, the noise and the order of data"
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of a run, and what the network has to know of the data."""
        parser.add_class_arguments(Experiment)
        parser.add_argument("--threads", type=int, default=1, help="how many threads a process has")
        parser.add_argument(
            "--process_timeout",
            type=float,
            default=600.0,
            help="for how many seconds processes of the strategy ddp wait for each other before the run fails",
        )
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "model.seed")
        for name in ("image_shape", "num_classes", "num_train", "steps_per_epoch"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses what follows the command."""
        self.config = parser.parse_args(self.arguments)

    def instantiate_classes(self) -> None:
        """Nothing yet: the name of the run needs no data."""

    def instantiate_trainer(self, **options: Any) -> Any:
        """None yet: each stage has its own."""

    @property
    def experiment(self) -> Experiment:
        """What to do."""
        return Experiment(**{field.name: self.config[field.name] for field in fields(Experiment)})

    @property
    def key(self) -> str:
        """The name of the run: given, or made of what differs from the settings' file."""
        if self.experiment.key:
            return self.experiment.key
        files = [f"--config={path}" for path in self.config.get("config") or []]
        plain, own = _settings(self.parser.parse_args(files)), _settings(self.config)
        experiment, names = self.experiment, {"experiment", "criterion", "seed", "data.name", "model.network"}
        overrides = {name: value for name, value in own.items() if name not in names and value != plain[name]}
        return job_key(
            experiment.experiment,
            experiment.settings,
            self.config.data.name,
            self.config.model.network,
            experiment.criterion,
            self.config.seed_everything,
            overrides,
        )

    def run(self) -> None:
        """
        Runs the experiment.

        :raises ReductionError: also where another run has the same key.
        """
        torch.set_num_threads(self.config.threads)
        key = self.key
        self.folder = run_folder(self.experiment.results, key)
        self._keep_settings()
        with pyro.validation_enabled(False):
            super().instantiate_classes()
            run(self.experiment, self.model, self.datamodule, self.make_trainer, key)

    def _keep_settings(self) -> None:
        """Writes the settings beside the checkpoints, or sees that they are those that are there."""
        settings, path = _settings(self.config), self.folder / "settings.yaml"
        if path.exists():
            earlier = yaml.safe_load(path.read_text(encoding="utf-8"))
            other = sorted(name for name, value in settings.items() if earlier.get(name) != value)
            if other:
                raise ReductionError(
                    f"{self.folder} holds a run of other settings ({', '.join(other)}): give this one another --key, "
                    "or remove the folder"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def make_trainer(self, stage: str, epochs: int | None, callbacks: list[Callback]) -> Trainer:
        """
        A trainer of a stage of the run.

        :param stage: its name.
        :param epochs: how many epochs it trains; by default what the options say.
        :param callbacks: beside those of the options.
        """
        # Each trainer has its own: what was given as objects is not made for two.
        options: Any = copy.deepcopy(self.config_init.trainer)
        callbacks = [*(options.callbacks or []), *callbacks]
        if options.enable_progress_bar is not False:
            callbacks.append(StepProgress(stage))
        changes: dict[str, Any] = {"callbacks": callbacks, "default_root_dir": self.folder}
        if epochs is not None:
            changes["max_epochs"] = epochs
        if options.logger is None:
            changes["logger"] = TensorBoardLogger(self.folder, name="", version=stage)
        if options.strategy == "ddp":
            changes["strategy"] = DDPStrategy(timeout=timedelta(seconds=self.config.process_timeout))
        return self.trainer_class(**{**options, **changes})


def _settings(config: Any) -> dict[str, Any]:
    """All that changes what comes out of a run, by the names of the options."""
    plain = {field.name: getattr(config, field.name) for field in fields(Experiment) if field.name not in _OF_KEY}
    named = {"experiment": config.experiment, "criterion": config.criterion, "seed": config.seed_everything}
    data = {f"data.{name}": config.data[name] for name in ("name", *_OF_DATA)}
    model = {f"model.{name}": value for name, value in vars(config.model).items() if name != "seed"}
    return named | plain | data | model | {f"trainer.{name}": config.trainer[name] for name in _OF_TRAINER}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Does what a command line says.

    :param arguments: the command and its options; by default those of the program.
    :return: the exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command, options = (given[0], given[1:]) if given else ("", [])
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in _WORDY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if command == "run":
            PaperCLI(options).run()
        elif command in ("sweep", "report", "pack"):
            function = _command(command)
            parser = ArgumentParser(prog=f"python -m tutorials.paper {command}")
            parser.add_function_arguments(function)
            return function(**parser.parse_args(options).as_dict()) or 0
        else:
            print(USAGE, end="")
            return 0 if command in ("-h", "--help") else 2
    except ReductionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _command(name: str) -> Any:
    # None needs what another does, nor what a run does.
    if name == "pack":
        from .results import pack

        return pack
    if name == "sweep":
        from .sweep import sweep

        return sweep
    from .report import report

    return report

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Pruning during training with Lightning. It needs Lightning, which ``pip install pyro_bmrs[lightning]`` brings."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pyro_bmrs.errors import ReductionError, ReductionWarning, check_number
from pyro_bmrs.pruning.criteria.criterion import Criterion
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.selection.prune import PruningResult, prune
from pyro_bmrs.pruning.training.models import Likelihood

try:
    from lightning.fabric.utilities import move_data_to_device
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("PruningCallback needs Lightning: pip install pyro_bmrs[lightning]") from error


class PruningCallback(Callback):
    """
    Prunes a network every so many epochs or steps of a Lightning trainer.

    The guide is found in the trained module, which holds it (as the ELBO that it computes its loss with does), and with
    it the network. Pruning comes after the last step of an epoch, before validation and checkpoints, so that both are
    of the pruned network. What is kept is part of the module's own state; the states of the random number generators
    are saved with the callback's, so that a run that is resumed from the checkpoint of the end of an epoch goes on as
    one that was never interrupted, on the same machine. Resumed in the middle of an epoch, where Lightning begins the
    data anew, it does not, and a :class:`~pyro_bmrs.ReductionWarning` says so.

    Steps are those of the optimiser: with gradients that are accumulated over batches, one for several of these.

    Logged are ``pruning/units``, how many are left, and ``pruning/SITE``, how many of each site.

    :param criterion: decides which units go; :class:`~pyro_bmrs.pruning.BMRS_N` by default.
    :param every_n_epochs: after how many epochs to prune, again and again; by default after each.
    :param every_n_steps: after how many training steps, in the place of epochs.
    :param start: how many epochs (or steps) to leave the network alone at first.
    :param fraction: as for :func:`~pyro_bmrs.pruning.prune`.
    :param example_inputs: as for :func:`~pyro_bmrs.pruning.prune`.
    :raises ReductionError: for both epochs and steps, or a number of them that is not positive, or not finite; at the
        start of the training, for a module that holds no guide of noise, or more than one.

    Example::

        >>> from pyro_bmrs.pruning import BMRS_N, PruningCallback
        >>> PruningCallback(BMRS_N(), every_n_epochs=5, start=10).results
        []
    """

    def __init__(
        self,
        criterion: Criterion | None = None,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        start: int = 0,
        fraction: float | None = None,
        example_inputs: Any = None,
    ) -> None:
        if every_n_epochs is not None and every_n_steps is not None:
            raise ReductionError("prune every so many epochs or every so many steps, not both")
        every_n_epochs = 1 if every_n_epochs is None and every_n_steps is None else every_n_epochs
        for name, number in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if number is not None:
                check_number(number, name, low=1)
        check_number(start, "start", low=0)
        self.criterion, self.fraction, self.example_inputs = criterion, fraction, example_inputs
        self.every_n_epochs, self.every_n_steps, self.start = every_n_epochs, every_n_steps, start
        self.results: list[PruningResult] = []
        # How many epochs, or steps, were done when it was last looked.
        self._done = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sees that there is something to prune."""
        if stage == "fit":
            _guide_of(pl_module)
            self._done = trainer.global_step if self.every_n_steps is not None else trainer.current_epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says that a run which goes on in the middle of an epoch is another one."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        has_state = all(hasattr(loader, "load_state_dict") for loader in tree_leaves(trainer.train_dataloader))
        if progress.current.ready and not progress.is_last_batch and not has_state:
            warnings.warn(
                f"training goes on behind batch {progress.current.ready} of an epoch, and the data begin anew: the "
                "rest of the epoch is of other examples than it would have been. To go on exactly, save checkpoints at "
                "the end of epochs, or load the data by a loader with load_state_dict",
                ReductionWarning,
                stacklevel=2,
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prunes, where it is time."""
        if self.every_n_steps is not None:
            done, every = trainer.global_step, self.every_n_steps
        elif trainer.is_last_batch and self.every_n_epochs is not None:
            done, every = trainer.current_epoch + 1, self.every_n_epochs
        else:
            return
        # Where gradients are accumulated, several batches end at one step; several optimisers make several steps.
        before, self._done = self._done, done
        if done <= self.start or done // every == before // every:
            return
        guide = _guide_of(pl_module)
        example_inputs = move_data_to_device(self.example_inputs, pl_module.device)
        result = prune(_net_of(guide), guide, self.criterion, fraction=self.fraction, example_inputs=example_inputs)
        agree_on_kept(trainer, guide)
        self.results.append(result)
        pl_module.log("pruning/units", float(result.num_kept))
        for name, kept in result.kept.items():
            pl_module.log(f"pruning/{name}", float(kept.sum()))

    def state_dict(self) -> dict[str, Any]:
        """The states of the random number generators, and how far the training is."""
        legacy: Any = np.random.get_state(legacy=True)
        algorithm, keys, *rest = legacy
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": random.getstate(),
            "numpy": (algorithm, keys.tolist(), *rest),
            "done": self._done,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the random number generators to where they were."""
        self._done = state_dict["done"]
        torch.set_rng_state(state_dict["torch"].cpu())
        random.setstate(_tuples(state_dict["python"]))
        np.random.set_state(_tuples(state_dict["numpy"]))
        if torch.cuda.is_available() and len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])


def agree_on_kept(trainer: Trainer, guide: AutoTruncatedLogNormal) -> None:
    """
    Lets all processes of a trainer keep the units that its first one does.

    Their parameters are the same, and so are their decisions, but for what the arithmetic of unlike machines may do.

    :param trainer: the trainer.
    :param guide: the guide of the noise.

    Example::

        >>> from types import SimpleNamespace
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, agree_on_kept, attach_noise
        >>> guide = AutoTruncatedLogNormal(attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))))
        >>> agree_on_kept(SimpleNamespace(world_size=1, strategy=SimpleNamespace(broadcast=lambda kept: kept)), guide)
    """
    for noise in guide.noise.values():
        noise.kept.copy_(trainer.strategy.broadcast(noise.kept.cpu()))


def _tuples(state: Any) -> Any:
    return tuple(map(_tuples, state)) if isinstance(state, (tuple, list)) else state


def _guide_of(module: nn.Module) -> AutoTruncatedLogNormal:
    guides = [child for child in module.modules() if isinstance(child, AutoTruncatedLogNormal)]
    if len(guides) != 1:
        raise ReductionError(
            f"the trained module holds {len(guides)} guides of noise, and one is needed: keep the "
            "AutoTruncatedLogNormal, or the ELBO of model and guide, as an attribute"
        )
    return guides[0]


def _net_of(guide: AutoTruncatedLogNormal) -> nn.Module:
    model: Any = guide.model
    return model.net if isinstance(model, Likelihood) else model

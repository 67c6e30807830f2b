# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is asked of a compression, and what is guessed where nothing is said."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.pruning.compression.course.trainings import MakeLikelihood
from pyro_bmrs.pruning.noise.attachment import noise_sites
from pyro_bmrs.pruning.training.classification import Classification
from pyro_bmrs.pruning.training.regression import Regression


def likelihood_for(targets: Tensor) -> MakeLikelihood:
    """
    The likelihood that targets of a type usually have.

    :param targets: some of them.
    :raises ReductionError: for types that may mean many things.
    """
    if targets.is_floating_point():
        return Regression
    if targets.dtype not in (torch.bool, torch.uint8) and not targets.is_complex():
        return Classification
    raise ReductionError(
        f"targets of type {targets.dtype} may mean many things: give likelihood=, Classification or one of your own"
    )


def check_odds(net: nn.Module, prior_log_odds: float | Mapping[str, float]) -> None:
    """
    Whether odds fit a network.

    :param net: with noise.
    :param prior_log_odds: a number of nats, or one by site.
    :raises ReductionError: for other sites than the network's.
    """
    sites = noise_sites(net).keys()
    if isinstance(prior_log_odds, Mapping) and prior_log_odds.keys() != sites:
        raise ReductionError(
            f"prior_log_odds has numbers for {sorted(prior_log_odds)}, and the noise sites are {sorted(sites)}"
        )


def check_options(epochs: Any, accuracy_loss: float | None, prior_log_odds: float | Mapping[str, float]) -> None:
    """
    Whether options make sense by themselves.

    :param epochs: as of :func:`~pyro_bmrs.pruning.compress`, as are the others.
    :raises ReductionError: where they do not.
    """
    if not isinstance(epochs, Integral) or epochs < 1:
        raise ReductionError(f"epochs is a positive number of them, not {epochs!r}")
    if accuracy_loss is not None and not 0 <= accuracy_loss < 1:
        raise ReductionError(f"accuracy_loss is a share of the examples, from 0 up to 1, not {accuracy_loss!r}")
    odds = prior_log_odds.values() if isinstance(prior_log_odds, Mapping) else [prior_log_odds]
    if not all(math.isfinite(number) for number in odds):
        raise ReductionError(f"prior_log_odds are finite numbers of nats, not {prior_log_odds!r}")


def warn_of_what_it_has_seen() -> None:
    """Of a network that came trained there is nothing held out that it is known not to have seen."""
    warnings.warn(
        "the network came trained, perhaps by the examples that are held out now, and would then look better than any "
        "smaller one: give validation_data that it has not seen",
        ReductionWarning,
        stacklevel=3,
    )

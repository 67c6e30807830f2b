# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The most probable models of a space, held against the model: what it says of their order and of their evidence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionWarning
from pyro_bmrs.integration.fits import full_evidence
from pyro_bmrs.posteriors.posterior import Posterior
from pyro_bmrs.reduction.check import Check
from pyro_bmrs.reduction.reduction import Reduction
from pyro_bmrs.structure.vectorised import TURN


def check_models(fitted: Posterior, reductions: Iterable[Reduction | None], progress: bool) -> list[Check]:
    """
    Models, each with its evidence integrated; that of the full model once for all.

    :param fitted: the full posterior.
    :param reductions: of each model; None for the full one.
    :param progress: whether to show progress bars.
    """
    found = []
    for reduction in reductions:
        if reduction is None:
            with TURN:
                full = full_evidence(fitted, progress=progress)
            found.append(Check(full, full, 0.0))
        else:
            found.append(reduction.check(progress=progress))
    return found


def warn_of_problems(checks: Sequence[Check], log_odds: Tensor) -> None:
    """Says what the model says otherwise, as :func:`problems` has it; of the caller's caller."""
    if found := problems(checks, log_odds):
        warnings.warn(
            f"Of the {len(checks)} best models {'; '.join(found)}. Go by checked_delta_evidence in table(); the search "
            "is mended by more steps of SVI, or a richer guide.",
            ReductionWarning,
            stacklevel=3,
        )


def problems(checks: Sequence[Check], log_odds: Tensor) -> list[str]:
    """
    What the model says otherwise of models that stand in the order of their probability, in words.

    :param checks: one for each, the most probable first.
    :param log_odds: prior log odds of each against the full model, in nats, shape ``(num_models,)``.
    """
    found = []
    doubtful = [rank for rank, check in enumerate(checks, 1) if not check.trusted]
    if doubtful:
        found.append(f"the integrals of {_ranks(doubtful)} are not to be trusted")
    off = {rank: abs(c.delta_evidence - c.read_off) for rank, c in enumerate(checks, 1) if c.trusted and not c.agrees}
    if off:
        found.append(f"the evidence of {_ranks(off)} is off, by up to {max(off.values()):.2g} nats")
    best = _overtaken(checks, log_odds)
    if best is not None:
        found.append(f"their order is another, with {_ranks([best])} the first")
    return found


def columns_of(checks: Sequence[Check], count: int) -> dict[str, np.ndarray]:
    """Columns of a table of so many models, the first of which were checked; none where none was."""
    names = {"checked_delta_evidence": "delta_evidence", "standard_error": "standard_error", "pareto_k": "pareto_k"}
    missing = [math.nan] * count
    rows = {name: [getattr(check, own) for check in checks] for name, own in names.items()} if checks else {}
    return {name: np.array([*values, *missing][:count]) for name, values in rows.items()}


def _overtaken(checks: Sequence[Check], log_odds: Tensor) -> int | None:
    """The rank of the best model by the integrals, where a model overtakes another by more than two standard errors."""
    score = torch.tensor([check.delta_evidence for check in checks], dtype=torch.double) + log_odds.double().cpu()
    # The full model's end is the same for all, and so is its error.
    errors = [check.reduced.standard_error for check in checks]
    for place, later in enumerate(score):
        for before in range(place):
            if later - score[before] > 2 * math.hypot(errors[place], errors[before]):
                return int(score.argmax()) + 1
    return None


def _ranks(ranks: Sequence[int] | dict[int, float]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"

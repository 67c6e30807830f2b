# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What the package answers about the published models, beside the truth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal

from pyro_bmrs import reduce_model
from tests.truth.generalised import GENERALISED
from tests.truth.held_out import HELD_OUT
from tests.truth.hierarchical import HIERARCHICAL
from tests.truth.nonlinear import NONLINEAR
from tests.truth.regressions import REGRESSIONS
from tests.truth.studies import FOLDER, Study

STUDIES = {study.name: study for study in (*REGRESSIONS, *GENERALISED, *HIERARCHICAL, *NONLINEAR, *HELD_OUT)}
TRUTH = json.loads((FOLDER / "truth.json").read_text())
# The kinds of fit, and how many steps they take.
KINDS: dict[str, tuple[Callable[..., AutoGuide], int]] = {
    "AutoNormal": (AutoNormal, 1000),
    "AutoMultivariateNormal": (AutoMultivariateNormal, 1500),
    "AutoLaplaceApproximation": (AutoLaplaceApproximation, 800),
}
# An answer is right within this of the truth, in nats and as a share of it.
TOLERANCE, RELATIVE_TOLERANCE = 0.25, 0.05


@dataclass(frozen=True)
class Answer:
    """
    :param truth: the change in log evidence, with its error.
    :param closed_form: what is read off the guide.
    :param checked: what the check makes of it, with its standard error, and whether it is to be trusted.
    :param seconds: what the check took of a processor; ``fit_seconds`` what the fit took, for all questions together.
    """

    study: str
    kind: str
    question: str
    truth: float
    truth_error: float
    closed_form: float
    checked: float
    standard_error: float
    trusted: bool
    seconds: float
    fit_seconds: float

    @property
    def right(self) -> bool:
        return abs(self.checked - self.truth) <= TOLERANCE + RELATIVE_TOLERANCE * abs(self.truth)

    @property
    def covered(self) -> bool:
        """Whether the truth is within two standard errors, those of the truth included."""
        return abs(self.checked - self.truth) <= 2 * (self.standard_error**2 + self.truth_error**2) ** 0.5

    @property
    def quick(self) -> bool:
        """Whether the check took at most 2 s of a processor, or half of what the fit did."""
        return self.seconds <= max(2.0, self.fit_seconds / 2)


def fitted(study: Study, kind: str) -> AutoGuide:
    """As a user would: a rate that falls by a factor of 30, and no more thought."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    build, steps = KINDS[kind]
    guide = build(study.model)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": (1 / 30) ** (1 / steps)})
    svi = SVI(study.model, guide, optimizer, Trace_ELBO())
    data = study.data()
    for _ in range(steps):
        svi.step(*data)
    return guide.laplace_approximation(*data) if isinstance(guide, AutoLaplaceApproximation) else guide


def answers(study: Study, kind: str) -> Iterator[Answer]:
    """One for each question, from one fit; none where the posterior has no mode, so that Laplace's method fails."""
    start = time.process_time()
    try:
        guide: Any = fitted(study, kind)
    except torch.linalg.LinAlgError:
        return
    fit_seconds = time.process_time() - start
    for question, reduced in study.questions.items():
        truth = TRUTH[study.name]["questions"][question]
        reduction = reduce_model(guide, reduced, args=study.data(), check=False)
        start = time.process_time()
        check = reduction.check()
        yield Answer(
            study.name,
            kind,
            question,
            truth["delta_evidence"],
            truth["error"],
            float(reduction.delta_evidence.detach()),
            float(check.delta_evidence),
            float(check.standard_error),
            bool(check.trusted),
            time.process_time() - start,
            fit_seconds,
        )


def table(answered: Sequence[Answer]) -> pd.DataFrame:
    """A row an answer, with what became of it."""
    rows = [vars(answer) | {"right": answer.right, "covered": answer.covered} for answer in answered]
    return pd.DataFrame(rows).round(4)

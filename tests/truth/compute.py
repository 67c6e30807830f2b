# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The truth about the published models, without a word from the package.

``python -m tests.truth.compute`` at the top of the repository writes truth.json anew, in minutes; with names, as in
``python -m tests.truth.compute kidiq lynx``, it writes what it finds about these alone. What is normal and linear is
integrated in closed form, random effects one by one, and the rest over a lattice, with quasi-Monte Carlo beside it
(exact/integrals.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.truth.exact import generalised, held_out, hierarchical, nonlinear, regressions
from tests.truth.exact.case import FOLDER, Case, evidence
from tests.truth.exact.integrals import Integral

CASES: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        regressions.kidiq,
        regressions.mesquite,
        regressions.earnings,
        regressions.ar,
        regressions.lynx,
        regressions.diabetes,
        regressions.pines,
        generalised.counts,
        generalised.nes,
        generalised.dogs,
        generalised.beetles,
        hierarchical.schools,
        hierarchical.dyes,
        hierarchical.rats,
        hierarchical.pumps,
        hierarchical.surgical,
        hierarchical.seeds,
        hierarchical.salmonella,
        nonlinear.sleep,
        nonlinear.stacks,
        nonlinear.dugongs,
        nonlinear.eyes,
        nonlinear.mice,
        held_out.peas,
        held_out.blood,
        held_out.leukaemia,
        held_out.eyes_apart,
        held_out.shrunk,
        held_out.funnel,
        held_out.correlated,
    )
}
# Two ways to write the same model.
TWINS = {"schools_apart": "schools"}


def answers(case: Case) -> dict[str, Any]:
    full = evidence(case, {})
    questions = {}
    for question, changes in case.questions.items():
        reduced = evidence(case, changes)
        questions[question] = {
            "delta_evidence": round(reduced.value - full.value, 6),
            "error": rounded_up(float(np.hypot(reduced.error, full.error))),
            "how": reduced.how,
        }
    return described(full) | {"questions": questions}


def described(full: Integral) -> dict[str, Any]:
    return {"log_evidence": round(full.value, 6), "error": rounded_up(full.error), "how": full.how}


def rounded_up(error: float) -> float:
    return float(np.ceil(max(error, 1e-6) * 1e6) / 1e6)


def main(names: list[str]) -> None:
    path = FOLDER / "truth.json"
    truth = json.loads(path.read_text()) if names and path.exists() else {}
    for name in names or CASES:
        truth[name] = answers(CASES[name]())
        print(name, json.dumps(truth[name], indent=1), flush=True)
    truth |= {twin: truth[name] for twin, name in TWINS.items() if name in truth}
    path.write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

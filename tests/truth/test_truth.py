# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A few of the published models, for every run of the tests, and that their truths are what they are said to be.

The whole table is in whole_truth.py.
"""

from __future__ import annotations

import pytest

from tests.truth.answers import STUDIES, TRUTH, answers, table
from tests.truth.compute import CASES, TWINS
from tests.truth.compute import answers as computed

# A regression by the curvature at its mode, and a hierarchy of few data by independent normals.
FEW = [("beetles", "AutoLaplaceApproximation"), ("schools_apart", "AutoNormal")]


@pytest.mark.parametrize(("name", "kind"), FEW)
@pytest.mark.filterwarnings("ignore::pyro_bmrs.ReductionWarning")
@pytest.mark.no_cover
def test_an_answer_is_right_or_flagged(name, kind):
    answered = list(answers(STUDIES[name], kind))
    wrong = [answer for answer in answered if answer.trusted and not answer.right]
    assert not wrong, table(wrong).to_string()
    assert any(answer.trusted for answer in answered)


def test_every_question_has_its_truth():
    assert set(STUDIES) == set(TRUTH) == set(CASES) | set(TWINS)
    for name, study in STUDIES.items():
        assert set(study.questions) <= set(TRUTH[name]["questions"])
        assert len(study.questions) >= 2


def test_truths_are_known_far_better_than_answers_are_asked_for():
    for study in TRUTH.values():
        assert all(truth["error"] < 0.02 for truth in study["questions"].values())


def test_the_stored_truth_is_what_the_script_finds():
    found = computed(CASES["pumps"]())
    assert found["log_evidence"] == pytest.approx(TRUTH["pumps"]["log_evidence"], abs=1e-5)
    for question, truth in found["questions"].items():
        assert truth["delta_evidence"] == pytest.approx(
            TRUTH["pumps"]["questions"][question]["delta_evidence"], abs=1e-5
        )

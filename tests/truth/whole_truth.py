# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The whole table of published models, kinds of fit and questions: ``make truth``, which takes some ten minutes.

The table is written to the file that the environment variable TRUTH_TABLE names.
"""

from __future__ import annotations

import os
import warnings
from itertools import product

import pytest

from pyro_bmrs import ReductionWarning
from tests.truth.answers import KINDS, STUDIES, Answer, answers, table


@pytest.fixture(scope="module")
def answered() -> list[Answer]:
    with warnings.catch_warnings():
        # A warning is one way to flag an answer, and the check another.
        warnings.simplefilter("ignore", ReductionWarning)
        found: list[Answer] = []
        for study, kind in product(STUDIES.values(), KINDS):
            found.extend(answers(study, kind))
            if path := os.environ.get("TRUTH_TABLE"):
                table(found).to_csv(path, index=False)
    return found


def test_nearly_all_fits_can_be_asked(answered):
    assert len({(answer.study, answer.kind) for answer in answered}) >= 3 * len(STUDIES) - 4


def test_no_answer_is_wrong_without_a_word(answered):
    wrong = [answer for answer in answered if answer.trusted and not answer.right]
    assert not wrong, table(wrong).to_string()


def test_few_right_answers_are_flagged(answered):
    right = [answer for answer in answered if answer.right]
    flagged = [answer for answer in right if not answer.trusted]
    assert len(flagged) <= 0.1 * len(right), table(flagged).to_string()


def test_intervals_cover_the_truth(answered):
    trusted = [answer for answer in answered if answer.trusted]
    missed = [answer for answer in trusted if not answer.covered]
    assert len(missed) <= 0.1 * len(trusted), table(missed).to_string()


def test_a_check_costs_little(answered):
    slow = [answer for answer in answered if not answer.quick]
    assert len(slow) <= 0.05 * len(answered), table(slow).to_string()

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import BMRS_U
from tests.pruning.criteria.guided import fitted


def test_the_paper_s_settings():
    paper = BMRS_U.paper(8)
    assert (paper.low, paper.prior_log_odds, paper.name) == (2.0**-23, 0.0, "BMRS_U-8")


def test_bmrs_u_has_a_ceiling():
    net, guide = fitted()
    with torch.no_grad():
        guide.noise_locs.fill_(-40.0)
        guide.noise_log_scales.fill_(0.0)
    score = BMRS_U(8).scores(net, guide)["0"]
    torch.testing.assert_close(score, torch.full_like(score, math.log(20 / (20 - 8 * math.log(2)))), rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{"p1": float("nan")}, {"p1": 0}, {"low": 0.0}, {"low": float("inf")}])
def test_settings_that_are_no_numbers(options):
    with pytest.raises(ReductionError, match="finite number"):
        BMRS_U(**options)

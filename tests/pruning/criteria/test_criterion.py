# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import BMRS_N, prune
from tests.pruning.criteria.guided import fitted


def test_odds_can_differ_between_sites():
    net, guide = fitted()
    scores = BMRS_N().scores(net, guide)
    margins = BMRS_N(prior_log_odds={"0": 0.0, "2": 3.0}).margins(scores)
    assert torch.equal(margins["0"], scores["0"]) and torch.equal(margins["2"], scores["2"] + 3)
    with pytest.raises(ReductionError, match="'2'"):
        prune(net, guide, BMRS_N(prior_log_odds={"0": 0.0}))

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import BMRS_N
from tests.pruning.criteria.guided import fitted


def test_the_paper_s_settings():
    net, guide = fitted()
    scores = BMRS_N().scores(net, guide)
    odds = BMRS_N.paper().margins(scores)["0"] - scores["0"]
    torch.testing.assert_close(odds, torch.full_like(odds, 0.5 * math.log(2 * math.pi)))


def test_a_narrow_reduced_prior_gives_the_savage_dickey_ratio():
    """The posterior's density of the logarithm at the low end over the prior's, 1 / 20."""
    net, guide = fitted()
    for name, score in BMRS_N(scale=1e-9).scores(net, guide).items():
        low = torch.tensor(-20.0).double().exp()
        log_density = (guide.noise_posterior(name).log_prob(low) - 20.0).detach()
        shown = log_density > -50
        torch.testing.assert_close(score[shown], (log_density + math.log(20.0))[shown], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": float("nan")}, {"prior_log_odds": {"0": float("inf")}}])
def test_settings_that_are_no_numbers(options):
    with pytest.raises(ReductionError, match="finite number"):
        BMRS_N(**options)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import (
    BMRS_N,
    SNR,
    AutoTruncatedLogNormal,
    Classification,
    PosteriorMean,
    WeightNorm,
    attach_noise,
    prune,
)
from tests.pruning.selection.guided import kept, mlp


class Residual(nn.Module):
    """Two layers whose channels a sum ties, and a branch that may go as a whole."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.bn(self.stem(x))
        x = x + self.bn2(self.conv(x))
        return self.head(x.mean((-1, -2)))


def test_collapsed_units_go_and_needed_ones_stay():
    for criterion in (BMRS_N(), SNR(), None):
        net, guide = mlp([-20.0, 0.0, -20.0, -0.1, 0.0, -20.0, -0.1])
        result = prune(net, guide, criterion)
        assert kept(guide) == {"0": [False, True, False, True], "2": [True, False, True]}
        assert (result.num_removed, result.num_kept, result.rescued) == (3, 4, ())
        assert result.table["kept"].tolist() == [False, True, False, True, True, False, True]
        again = prune(net, guide, criterion)
        assert (again.num_removed, again.num_kept) == (0, 4)


def test_a_site_that_would_vanish_keeps_its_best_unit():
    net, guide = mlp([-20.0, -21.0, -18.0, -22.0, 0.0, 0.0, 0.0])
    result = prune(net, guide, SNR())
    assert kept(guide)["0"].count(True) == 1
    best = max(range(4), key=lambda unit: float(result.scores["0"][unit]))
    assert kept(guide)["0"][best]
    assert result.rescued == (("0", best),)
    assert f"unit {best} rescued" in repr(result)


def test_the_result_names_the_temperature_of_the_fit():
    net, guide = mlp([-20.0, 0.0, -20.0, -0.1, 0.0, -20.0, -0.1])
    assert prune(net, guide).kl_weights == {}
    for weight, words in ((1.0, None), (5.0, "(KL weight 5)"), ("layer_mean", "(KL weight 12.5, 16.67)")):
        tempered = AutoTruncatedLogNormal(Classification(net, num_examples=100, kl_weight=weight))
        tempered.load_state_dict(guide.state_dict())
        shown = repr(prune(net, tempered))
        assert ("KL weight" not in shown) if words is None else (words in shown)


def test_a_fraction_goes_in_the_order_of_the_criterion():
    net, guide = mlp([-0.5, -0.1, -0.4, -0.2, -0.3, -0.05, -0.01])
    prune(net, guide, PosteriorMean(), fraction=3 / 7)
    assert kept(guide) == {"0": [False, True, False, True], "2": [False, True, True]}
    prune(net, guide, PosteriorMean(), fraction=1.0)
    assert [sum(units) for units in kept(guide).values()] == [1, 1]


def test_units_that_a_sum_ties_go_together():
    net = Residual().eval()
    guide = AutoTruncatedLogNormal(attach_noise(net))
    assert set(guide.noise) == {"stem", "conv"}
    with torch.no_grad():
        # Of the first channel both noises collapsed, of the second one alone, which is the weaker evidence.
        guide.noise_locs.copy_(torch.tensor([-20.0, -20.0, 0.0, 0.0, -20.0, 0.0, 0.0, 0.0]))
        guide.noise_log_scales.copy_(torch.where(guide.noise_locs < -5, 2.5, -3.0))
    result = prune(net, guide, BMRS_N(), example_inputs=torch.randn(1, 1, 6, 6))
    assert kept(guide) == {"stem": [False, True, True, True], "conv": [False, True, True, True]}
    assert result.num_removed == 2
    prune(net, guide, BMRS_N())
    assert kept(guide)["stem"] == [False, False, True, True]


def test_a_fraction_does_not_spare_units_for_being_tied():
    """The lone unit of the branch's inside is worth twice what each of the tied ones is."""
    net = Residual().eval()
    guide = AutoTruncatedLogNormal(attach_noise(net))
    with torch.no_grad():
        guide.noise_locs.copy_(torch.tensor([-1.5, -0.3, -0.3, -0.3, -1.5, -0.2, -0.2, -0.2]))
    prune(net, guide, PosteriorMean(), fraction=0.25, example_inputs=torch.randn(1, 1, 6, 6))
    assert kept(guide) == {"stem": [False, True, True, True], "conv": [False, True, True, True]}
    assert BMRS_N().adds and not any(criterion.adds for criterion in (PosteriorMean(), SNR(), WeightNorm()))


@pytest.mark.parametrize("odds", [float("nan"), float("inf"), -float("inf"), {"0": 1.0, "2": float("nan")}])
def test_odds_that_are_no_numbers(odds):
    with pytest.raises(ReductionError, match="prior_log_odds, in nats, is a finite number"):
        BMRS_N(prior_log_odds=odds)
    net, guide = mlp([-20.0, 0.0, -20.0, -0.1, 0.0, -20.0, -0.1])
    criterion = BMRS_N()
    object.__setattr__(criterion, "prior_log_odds", odds)
    with pytest.raises(ReductionError, match="NaN or infinite: its threshold, or its prior odds"):
        prune(net, guide, criterion)
    assert all(all(units) for units in kept(guide).values())


def test_a_residual_branch_may_go_as_a_whole():
    net = Residual()
    guide = AutoTruncatedLogNormal(attach_noise(net, kinds=["block"]))
    with torch.no_grad():
        guide.noise_locs.fill_(-20.0)
        guide.noise_log_scales.fill_(2.5)
    result = prune(net, guide, SNR())
    assert (result.num_kept, result.rescued) == (0, ())


def broken(guide):
    guide.noise_locs.data[3] = torch.nan
    return guide


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (lambda net, guide: (net, AutoTruncatedLogNormal(net)), {}, "not fitted"),
        (lambda net, guide: (copy.deepcopy(net), guide), {}, "another network"),
        (lambda net, guide: (nn.Linear(2, 2), guide), {}, "no noise"),
        (lambda net, guide: (net, broken(guide)), {}, "1 of the guide's 14"),
        (lambda net, guide: (net, nn.Linear(2, 2)), {}, "Linear"),
        (lambda net, guide: (net, guide), {"criterion": WeightNorm()}, "fraction="),
        (lambda net, guide: (net, guide), {"fraction": 1.5}, "between 0 and 1"),
        (lambda net, guide: (net, guide), {"fraction": float("nan")}, "between 0 and 1"),
    ],
)
def test_mistakes_change_nothing(change, options, match):
    net, guide = mlp([-20.0, 0.0, -20.0, -0.1, 0.0, -20.0, -0.1])
    with pytest.raises(ReductionError, match=match):
        prune(*change(net, guide), **options)
    assert all(all(units) for units in kept(guide).values())


def test_weights_that_are_not_finite():
    net, guide = mlp([-20.0, 0.0, -20.0, -0.1, 0.0, -20.0, -0.1])
    net[0].weight.data[1, 0] = torch.nan
    with pytest.raises(ReductionError, match="WeightNorm gives 1 of 4 units at site '0'"):
        prune(net, guide, WeightNorm(), fraction=0.5)

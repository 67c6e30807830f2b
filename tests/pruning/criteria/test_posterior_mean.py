# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import PosteriorMean, prune
from tests.pruning.criteria.guided import fitted


def test_it_is_that_of_draws():
    net, guide = fitted()
    guide.noise["2"].kept[0] = False
    for name, score in PosteriorMean().scores(net, guide).items():
        posterior, kept = guide.noise_posterior(name), guide.noise[name].kept
        draws = posterior.icdf(((torch.arange(100_000.0) + 0.5) / 100_000).double().unsqueeze(-1)).detach()
        torch.testing.assert_close(score[kept], draws.mean(0)[kept], rtol=1e-3, atol=0)
        assert (score[~kept] == 0).all()


def test_the_smallest_go_first_and_how_many_is_for_the_user_to_say():
    net, guide = fitted()
    with pytest.raises(ReductionError, match="fraction="):
        prune(net, guide, PosteriorMean())
    scores = torch.cat(list(PosteriorMean().scores(net, guide).values()))
    removed = torch.cat(list(prune(net, guide, PosteriorMean(), fraction=4 / 11).removed.values()))
    assert removed.sum() == 4 and scores[removed].max() < scores[~removed].min()


def test_it_decides_at_its_threshold():
    net, guide = fitted()
    means = PosteriorMean().scores(net, guide)
    threshold = float(torch.cat(list(means.values())).sort().values[3])
    result = prune(net, guide, PosteriorMean(threshold))
    assert result.num_removed == 4
    for name, removed in result.removed.items():
        assert torch.equal(removed, means[name] <= threshold)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), "0.1"])
def test_thresholds_that_are_no_numbers(threshold):
    with pytest.raises(ReductionError, match="finite number"):
        PosteriorMean(threshold)

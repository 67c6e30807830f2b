# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import Criterion, prune
from tests.pruning.criteria.guided import fitted


class OutgoingNorm(Criterion):
    """A criterion from outside the package: the norm of a unit's weights in the layer that comes next."""

    following = {"0": 2, "2": 4}

    def scores(self, net, guide):
        return {name: net[self.following[name]].weight.detach().norm(dim=0) for name in guide.noise}


def test_a_criterion_takes_one_method():
    net, guide = fitted()
    norms = torch.cat([net[2].weight.detach().norm(dim=0), net[4].weight.detach().norm(dim=0)])
    result = prune(net, guide, OutgoingNorm(), fraction=3 / 11)
    removed = torch.cat(list(result.removed.values()))
    assert set(removed.nonzero().flatten().tolist()) == set(norms.argsort()[:3].tolist())
    assert "OutgoingNorm: 3 units removed, 8 left" in repr(result)


class Wrong(Criterion):
    """Gives what it is told to."""

    def __init__(self, scores):
        self.given = scores

    def scores(self, net, guide):
        return self.given


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        ({"0": torch.zeros(6)}, "one for each unit"),
        ({"0": torch.zeros(6), "2": torch.zeros(())}, "one for each unit"),
        ({"0": torch.zeros(6), "2": torch.tensor([0.0, torch.nan, 0.0, 0.0, 0.0])}, "1 of 5 units at site '2'"),
    ],
)
def test_scores_that_are_not_one_number_for_each_unit_are_refused(scores, match):
    net, guide = fitted()
    with pytest.raises(ReductionError, match=match):
        prune(net, guide, Wrong(scores), fraction=0.5)
    assert all(noise.kept.all() for noise in guide.noise.values())

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Guides that are pickled say the same, have parameters of their own, and leave the original as it is."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger

from pyro_bmrs import ReductionError
from pyro_bmrs.posteriors.guides.pickles import bare_trace, portable, signature, with_models
from pyro_bmrs.posteriors.reading import bare_model, read_guide
from tests import programs


def hand_written(y):
    loc = pyro.param("loc", torch.zeros(3))
    return pyro.sample("weights", dist.Normal(loc, 0.1).to_event(1))


def run(guide):
    pyro.set_rng_seed(0)
    return pyro.poutine.trace(guide).get_trace(programs.Y)


KINDS = [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormalMessenger]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_guide_knows_its_model_and_the_original_still_does(kind):
    guide = kind(programs.model)
    guide(programs.Y)
    twin = with_models(*pickle.loads(pickle.dumps(portable(guide))))
    assert bare_model(twin.model) is programs.model
    assert guide.model is not None
    assert signature(twin) == signature(guide)
    for (name, value), (_, other) in zip(guide.named_parameters(), twin.named_parameters(), strict=True):
        assert value is not other
        torch.testing.assert_close(value, other, msg=name)


@pytest.mark.parametrize("take", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_guide_that_is_copied_is_as_it_is_now_and_stays_so(kind, take):
    guide = kind(programs.model)
    guide(programs.Y)
    fitted = read_guide(guide, programs.model, (programs.Y,))
    reduced = fitted.with_statements({}, programs.model)
    before = run(reduced)
    twin = take(reduced)
    assert twin.model is programs.model
    with torch.no_grad():
        for value in reduced.parameters():
            value.add_(1.0)
    after = run(twin)
    sites = [name for name in before.nodes if name in fitted.sites]
    assert sites
    for name in sites:
        torch.testing.assert_close(after.nodes[name]["value"], before.nodes[name]["value"])
    # And it goes on to another.
    torch.testing.assert_close(run(take(twin)).nodes[sites[0]]["value"], before.nodes[sites[0]]["value"])


def test_a_function_is_itself():
    assert with_models(*pickle.loads(pickle.dumps(portable(hand_written)))) is hand_written


def test_a_bare_trace_has_no_way_to_the_parameter_store():
    trace = run(hand_written)
    bare = pickle.loads(pickle.dumps(bare_trace(trace)))
    assert "loc" not in bare.nodes
    torch.testing.assert_close(bare.nodes["weights"]["value"], trace.nodes["weights"]["value"].detach())
    assert bare.nodes["weights"]["fn"].stddev.tolist() == pytest.approx([0.1] * 3)
    assert bare.nodes["_INPUT"]["args"][0].shape == programs.Y.shape


def test_guides_of_other_kinds_or_sizes_are_told_apart():
    guides = [AutoNormal(programs.model), AutoDiagonalNormal(programs.model), hand_written]
    for guide in guides[:2]:
        guide(programs.Y)
    assert len({signature(guide) for guide in guides}) == 3


network = torch.nn.Linear(1, 1)


def by_network(y):
    return pyro.sample("weights", dist.Normal(network(torch.ones(1)).expand(3), 0.1).to_event(1))


def test_a_function_that_runs_networks_says_that_it_cannot_be_pickled():
    fitted = read_guide(by_network, programs.model, (programs.Y,))
    fitted.keep()
    with pytest.raises(ReductionError, match="make it a module"):
        pickle.dumps(fitted.copy)

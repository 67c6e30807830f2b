# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a guide is made of, taken as it is."""

from __future__ import annotations

import copy
import gc

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from torch.distributions import constraints

from pyro_bmrs import reduce_model
from pyro_bmrs.posteriors.guides.copies import Loose, copy_guide
from tests.programs import one_site


def test_the_parameters_of_a_function_are_those_in_the_store():
    def guide():
        scale = pyro.param("scale", torch.tensor(0.2), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), scale))

    guide()
    loose = Loose.take(guide, (), {})
    assert {name: value.item() for name, (value, _) in loose.held.items()} == {
        "loc": pyro.param("loc").item(),
        "scale": pyro.param("scale").item(),
    }
    assert loose.held["scale"][1] is constraints.positive
    with torch.no_grad():
        pyro.param("loc").add_(1.0)
    assert loose.held["loc"][0].item() == torch.tensor(0.3).item()


def test_an_autoguide_has_all_its_parameters_for_itself():
    for kind in (AutoNormal, AutoMultivariateNormal, AutoNormalMessenger):
        guide = kind(one_site)
        guide()
        assert not Loose.take(guide, (), {}).held
        copy = copy_guide(guide)
        assert copy.model is guide.model
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.add_(1.0)
        pairs = zip(guide.parameters(), copy.parameters(), strict=True)
        assert not any(torch.equal(one, other) for one, other in pairs)


def function_guide():
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.2))


@pytest.mark.parametrize("make", [lambda: AutoNormal(one_site), lambda: function_guide])
def test_the_store_keeps_nothing_of_reduced_guides_that_are_gone(make):
    guide = make()
    guide()
    store = pyro.get_param_store()
    before = set(store.keys())
    for _ in range(3):
        reduction = reduce_model(guide, dist.Normal(0.0, 0.3), model=one_site, check=False)
        reduction.guide()
        assert set(store.keys()) > before
    twin = copy.deepcopy(reduction.guide)
    twin()
    del reduction
    gc.collect()
    assert {name.split(".")[0] for name in set(store.keys()) - before} == {twin._pyro_name}
    del twin
    gc.collect()
    assert set(store.keys()) == before

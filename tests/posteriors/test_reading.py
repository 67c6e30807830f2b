# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, AutoStructured

from pyro_bmrs import ReductionError
from pyro_bmrs.posteriors import read_guide

DATA = torch.tensor([0.5, 1.0])


def model(y) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_an_autoguide_remembers_its_arguments() -> None:
    guide = AutoNormal(model)
    guide(DATA)
    assert read_guide(guide).args[0] is DATA


def test_a_guide_may_remember_its_arguments_by_an_attribute() -> None:
    def guide(y) -> None:
        pyro.sample("mean", dist.Normal(0.5, 0.5))

    guide.default_arguments = ((), {"y": DATA})
    assert read_guide(guide, model).kwargs["y"] is DATA


def test_a_structured_guide_which_forgets_them_has_to_be_given_them() -> None:
    guide = AutoStructured(model)
    guide(DATA)
    with pytest.raises(ReductionError, match="cannot be called with the arguments given"):
        read_guide(guide)
    fitted = read_guide(guide, args=(DATA,))
    assert fitted.sites == {"mean"}

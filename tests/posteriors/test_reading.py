# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What stands for a posterior, and what does not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)

from pyro_bmrs import ReductionError, reduce_model
from tests.programs import NARROW, Y, model


@pytest.mark.parametrize(
    "guide_type", [AutoNormal, AutoMultivariateNormal, AutoNormalMessenger, AutoLaplaceApproximation]
)
def test_a_guide_not_fitted(guide_type):
    with pytest.raises(ReductionError, match="has not been fitted"):
        reduce_model(guide_type(model), {"bias": NARROW}, args=(Y,))


def test_a_list_of_guides_not_fitted():
    guide = AutoGuideList(model)
    guide.append(AutoNormal(model))
    with pytest.raises(ReductionError, match="has not been fitted"):
        reduce_model(guide, {"bias": NARROW}, args=(Y,))


def test_a_hand_written_guide_without_its_model():
    with pytest.raises(ReductionError, match="pass model="):
        reduce_model(lambda: None, NARROW)


def test_what_is_no_guide():
    with pytest.raises(ReductionError, match="guide is a str"):
        reduce_model("guide", NARROW)


def test_arguments_that_the_model_does_not_take():
    def needs_data(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoNormalMessenger(needs_data)
    guide(Y)
    with pytest.raises(ReductionError, match="args="):
        reduce_model(guide, NARROW)
    assert reduce_model(guide, NARROW, args=(Y,)).method == "exact"

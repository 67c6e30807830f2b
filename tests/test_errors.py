# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What an error says of a site."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.errors import check_number, name_of_unknown, naming
from tests.programs import NARROW


def test_an_unknown_site_names_the_nearest(guide):
    with pytest.raises(ReductionError, match="no latent site 'wieghts'.*did you mean 'weights'"):
        reduce_model(guide, {"wieghts": NARROW})
    with pytest.raises(ReductionError, match="no latent site 'zzz'"):
        reduce_model(guide, {"zzz": NARROW})


def test_an_observed_site_is_not_latent(guide):
    with pytest.raises(ReductionError, match="no latent site 'coin'"):
        reduce_model(guide, {"coin": dist.Bernoulli(0.1)})


def test_several_near_names_are_offered_and_none_that_is_far():
    message = str(name_of_unknown("weight", {"weights", "weight_0", "intercept"}, "the model"))
    assert message.startswith("the model has no latent site 'weight'")
    assert "['intercept', 'weight_0', 'weights']" in message
    hint = message.split("did you mean ")[1]
    assert "'weights'" in hint and "'weight_0'" in hint and "intercept" not in hint
    assert "did you mean" not in str(name_of_unknown("zzz", {"weights"}, "the model"))


def test_what_a_rule_says_gets_the_name_of_the_site():
    cause = ReductionError("the reduced prior is broader")
    with pytest.raises(ReductionError, match=r"^site 'w': the reduced prior is broader$") as caught:
        with naming("w"):
            raise cause
    assert caught.value.__cause__ is cause


def test_mistakes_of_another_kind_pass_as_they_are():
    with pytest.raises(ZeroDivisionError, match="^division by zero$"):
        with naming("w"):
            1 / 0  # noqa: B018


@pytest.mark.parametrize("number", [1, 1.5, torch.tensor(2.0), np.float32(3.0)])
def test_numbers(number):
    check_number(number, "a number", low=1)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.5, None, "2", torch.ones(2)])
def test_what_is_no_number(number):
    with pytest.raises(ReductionError, match="the share is a finite number of at least 1, not"):
        check_number(number, "the share", low=1)
    with pytest.raises(ReductionError, match="finite number above 2"):
        check_number(2, "the share", above=2)

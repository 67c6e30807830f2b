# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Which sites a run has, and what they were computed from."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionError, reduce_model
from tests.programs import NARROW, one_site


def test_a_function_guide_not_fitted():
    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(ReductionError, match=r"not been fitted: its parameters \['loc'\]"):
        reduce_model(guide, NARROW, model=one_site)
    assert "loc" not in pyro.get_param_store()

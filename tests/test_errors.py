# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What an error says of a site."""

from __future__ import annotations

import pyro.distributions as dist
import pytest

from pyro_bmrs import ReductionError, reduce_model
from tests.programs import NARROW


def test_an_unknown_site_names_the_nearest(guide):
    with pytest.raises(ReductionError, match="no latent site 'wieghts'.*did you mean 'weights'"):
        reduce_model(guide, {"wieghts": NARROW})
    with pytest.raises(ReductionError, match="no latent site 'zzz'"):
        reduce_model(guide, {"zzz": NARROW})


def test_an_observed_site_is_not_latent(guide):
    with pytest.raises(ReductionError, match="no latent site 'coin'"):
        reduce_model(guide, {"coin": dist.Bernoulli(0.1)})

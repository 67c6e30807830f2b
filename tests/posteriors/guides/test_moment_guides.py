# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A guide begun at weighted draws has their moments, in unconstrained coordinates."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError
from pyro_bmrs.posteriors.guides.moment_guides import guide_at_moments, place
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide


def model():
    pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("units", 3):
        pyro.sample("effect", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def draws(log_weights):
    effects = torch.randn(len(log_weights), 3, 2).cumsum(-1)
    return DrawsGuide(model, {"rate": (0.3 * torch.randn(len(log_weights))).exp(), "effect": effects}, log_weights)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_its_moments_are_those_of_the_weighted_draws(kind):
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    log_weights = torch.randn(200)
    given = draws(log_weights)
    weights = log_weights.softmax(0)
    guide = guide_at_moments(kind(model), model, given, (), {})
    flat = torch.cat([given.draws["rate"].log().unsqueeze(-1), given.draws["effect"].reshape(200, -1)], -1)
    mean = weights @ flat
    covariance = ((flat - mean) * weights.unsqueeze(-1)).mT @ (flat - mean)
    with torch.no_grad():
        if kind is AutoMultivariateNormal:
            assert torch.allclose(guide.get_posterior().mean, mean)
            assert torch.allclose(guide.get_posterior().covariance_matrix, covariance)
            return
        rate, effect = (read_guide(guide).factor_of[name].posterior(name) for name in ("rate", "effect"))
        assert torch.allclose(rate.base_dist.mean, mean[0])
        assert torch.allclose(effect.mean.reshape(-1), mean[1:])
        assert torch.allclose(effect.stddev.reshape(-1), covariance.diagonal()[1:].sqrt())


def test_two_of_them_share_no_parameters():
    given = draws(torch.zeros(50))
    one, other = (guide_at_moments(AutoNormal(model), model, given, (), {}) for _ in range(2))
    one(), other()
    with torch.no_grad():
        one.locs.effect.zero_()
    assert other.locs.effect.abs().sum() > 0
    assert pyro.param(f"{other._pyro_name}.locs.effect").abs().sum() > 0


def test_all_the_weight_on_one_draw_gives_no_spread():
    log_weights = torch.full((50,), -torch.inf)
    log_weights[3] = 0.0
    with pytest.raises(ReductionError, match="all the weight is on one"):
        guide_at_moments(AutoNormal(model), model, draws(log_weights), (), {})


def test_a_kind_of_ones_own_is_placed_once_it_is_registered():
    class Shifted(AutoDiagonalNormal):
        """Of a scale that is held, so that only its mean is to be placed."""

    given = draws(torch.zeros(50))
    with pytest.raises(ReductionError, match="a Shifted cannot be begun at weighted draws"):
        guide_at_moments(Shifted(model), model, given, (), {})

    @place.register
    def _(guide: Shifted, unconstrained, weights):
        guide.loc.copy_(weights @ torch.cat(list(unconstrained.values()), -1))

    guide = guide_at_moments(Shifted(model), model, given, (), {})
    torch.testing.assert_close(guide.loc[0], given.draws["rate"].log().mean())

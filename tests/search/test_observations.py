# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reductions as observations: their normal density is the change in log evidence."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError
from pyro_bmrs.posteriors.factors import SiteFactor
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.search.groups import read_groups
from pyro_bmrs.search.observations import is_joint, read_normal_space
from tests import conjugate
from tests.search.regression import every_model
from tests.search.spaces import REDUCED, normal_space, reduced_to

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("kind", REDUCED)
def test_the_density_of_the_observations_is_the_change_in_log_evidence(exact_guide, kind):
    guide, x, y = exact_guide()
    space = normal_space(guide, kind)
    full = conjugate.log_evidence(x, y, *conjugate.prior(4))
    for reduced in torch.tensor(every_model(4)):
        covariance, residual = space.covariance[reduced][:, reduced], space.residual[reduced]
        quadratic = residual @ torch.linalg.solve(covariance, residual)
        change = space.constants[reduced].sum() - 0.5 * (torch.logdet(covariance) + quadratic)
        exact = conjugate.log_evidence(x, y, *reduced_to(kind, reduced)) - full
        torch.testing.assert_close(change, exact, rtol=0, atol=1e-8)


def test_the_posterior_is_laid_out_as_the_guide_has_it(exact_guide):
    guide, *_ = exact_guide()
    space = normal_space(guide, "normal")
    posterior = guide.get_posterior()
    torch.testing.assert_close(space.loc, posterior.loc)
    torch.testing.assert_close(space.rows @ space.rows.mT, posterior.covariance_matrix)
    assert [(block.name, block.positions) for block in space.blocks] == [("first", slice(0, 2)), ("rest", slice(2, 4))]


def test_observations_of_a_group_lie_together(exact_guide):
    guide, *_ = exact_guide()
    groups = {"odd": {"first": 1, "rest": 1}, "even": {"first": 0}}
    space = normal_space(guide, "normal", groups)
    # The first element of the second site is in no group.
    assert space.at.tolist() == [1, 3, 0] and space.label.tolist() == [0, 0, 1]
    assert space.sizes.tolist() == [2, 1] and space.constants.shape == (2,)
    torch.testing.assert_close(space.constants, torch.stack([space.constant[:2].sum(), space.constant[2]]))


def test_a_point_is_an_observation_without_noise(exact_guide):
    space = normal_space(exact_guide()[0], "point")
    assert space.pinned.all() and (space.slope == 1).all()
    assert not normal_space(exact_guide()[0], "normal").pinned.any()


@pytest.mark.parametrize(
    ("kind", "joint"),
    [
        (AutoMultivariateNormal, True),
        (AutoLowRankMultivariateNormal, True),
        (AutoDiagonalNormal, False),
        (AutoNormal, False),
    ],
)
def test_factors_with_correlations_are_told_from_those_without(kind, joint):
    guide = kind(conjugate.model)
    guide(*conjugate.data())
    assert {is_joint(factor) for factor in read_guide(guide).factors} == {joint}


def test_a_site_may_be_jointly_normal_by_itself():
    normal = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert is_joint(SiteFactor("w", "w", normal)) and is_joint(SiteFactor("w", "w", dist.Independent(normal, 0)))
    assert not is_joint(SiteFactor("w", "w", dist.Normal(torch.zeros(2), 1.0).to_event(1)))


def test_a_reduced_prior_that_is_no_narrower_is_counted(exact_guide):
    guide, *_ = exact_guide()
    broad = {"first": dist.Normal(torch.zeros(2), torch.tensor([0.5, 1.0])).to_event(1)}
    fitted = read_guide(guide)
    with pytest.raises(ReductionError, match="'first'.*no narrower than the prior at 1 of 2"):
        read_normal_space(
            fitted.factors, {"first": fitted.prior("first")}, broad, read_groups("element", {"first": torch.Size([2])})
        )

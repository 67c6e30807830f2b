# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is reduced beside a point is judged as the exact posterior of the reduced model judges it."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import reduce_model, search_models
from pyro_bmrs.posteriors.reading import read_guide
from pyro_bmrs.posteriors.reduced_guide import ReducedGuide
from pyro_bmrs.refitting.unpinning import unpin, unpinned_guide
from pyro_bmrs.structure.mixtures import mix
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")

NORMAL = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0)
POINT = dist.Delta(torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("reduced", [[True, False], [False, True], [True, True]])
def test_a_second_reduction_of_a_joint_guide_beside_points_is_exact(exact_guide, reduced):
    guide, x, y = exact_guide()
    fitted = read_guide(guide)
    mixed = mix(NORMAL.to_event(1), POINT.to_event(1), torch.tensor(reduced))
    reduction = reduce_model(guide, {"first": mixed})
    opened = unpinned_guide(reduction.guide, fitted, conjugate.model)
    space = search_models(opened, {"rest": dist.Delta(torch.tensor(0.0))}, args=(x, y))

    def log_evidence(rest):
        loc, scale = conjugate.prior(4)
        loc[2:][rest], scale[2:][rest] = 0.0, 0.0
        scale[:2][torch.tensor(reduced)] = 0.0
        return conjugate.log_evidence(x, y, loc, scale)

    nothing = torch.tensor([False, False])
    for rest in ([True, False], [False, True], [True, True]):
        rest = torch.tensor(rest)
        alone = [row for row in range(4) if torch.equal(space.top(4).reduced[row], rest)]
        found = space.top(4).delta_evidence[alone[0]]
        assert float(found) == pytest.approx(float(log_evidence(rest) - log_evidence(nothing)), abs=1e-8)


def test_a_guide_reduced_three_times_is_one_guide_with_all_its_reductions(exact_guide):
    guide, x, y = exact_guide()
    once = reduce_model(guide, {"first": dist.Normal(0.0, 0.5)})
    twice = reduce_model(once.guide, {"rest": dist.Normal(0.0, 0.5)})
    thrice = reduce_model(twice.guide, {"first": dist.Normal(0.0, 0.1)})
    assert not isinstance(thrice.guide.fitted_guide, ReducedGuide)
    direct = reduce_model(guide, {"first": dist.Normal(0.0, 0.1), "rest": dist.Normal(0.0, 0.5)})
    total = once.delta_evidence + twice.delta_evidence + thrice.delta_evidence
    assert float(total.detach()) == pytest.approx(float(direct.delta_evidence.detach()), abs=1e-9)
    assert thrice.method == "exact"
    one, other = (read_guide(reduction.guide).factors[0].distribution for reduction in (thrice, direct))
    assert torch.allclose(one.mean, other.mean) and torch.allclose(one.covariance_matrix, other.covariance_matrix)


def test_distributions_without_points_stay_as_they_are():
    assert unpin(NORMAL, dist.Normal(5.0, 5.0)) is NORMAL
    assert unpin(POINT, NORMAL) is NORMAL


def test_a_mixture_with_points_gets_its_normals_back():
    mixed = dist.MaskedMixture(torch.tensor([True, False]), NORMAL, POINT).to_event(1)
    free = unpin(mixed, NORMAL.to_event(1))
    assert torch.equal(free.stddev, NORMAL.stddev) and free.event_shape == (2,)


def test_reduced_parameters_of_a_guide_by_hand_go_on_where_they_were_trained():
    def model():
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("other", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.3))
        pyro.sample("other", dist.Normal(pyro.param("second", torch.tensor(0.2)), 0.3))

    guide()
    once = reduce_model(guide, {"mean": dist.Normal(0.0, 0.5)}, model=model)
    once.guide()
    (name,) = [name for name in pyro.get_param_store() if name.endswith(".second")]
    with torch.no_grad():
        pyro.get_param_store()._params[name].fill_(0.9)
    twice = reduce_model(once.guide, {"mean": dist.Normal(0.0, 0.1)})
    drawn = pyro.poutine.trace(twice.guide).get_trace().nodes["other"]["fn"]
    assert float(drawn.loc.detach()) == pytest.approx(0.9)

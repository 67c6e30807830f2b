# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Joint normals confined to a box, against the normal probability of boxes that SciPy integrates."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy import stats

from pyro_bmrs import reduce_model
from pyro_bmrs.distributions import TruncatedNormal
from pyro_bmrs.evidence import reduce
from pyro_bmrs.evidence.rules.normal_on_box import reduce_on_box

COVARIANCE = torch.tensor([[0.2, 0.12, -0.05], [0.12, 0.15, 0.02], [-0.05, 0.02, 0.1]]).double()
PRIOR = dist.Normal(torch.zeros(3).double(), torch.tensor([1.0, 2.0, 1.0]).double()).to_event(1)


def truth(posterior, prior, low, high, loc=0.0, precision=0.0, log_normaliser=0.0):
    """By completing the square with NumPy, and the probability of the box by SciPy."""
    m, a = posterior.mean.numpy(), posterior.precision_matrix.numpy()
    b = np.diag(1 / prior.variance.numpy())
    c = np.diag(np.full(3, precision))
    mp, mr = prior.mean.numpy(), np.full(3, loc)
    s = a + c - b
    mean = np.linalg.solve(s, a @ m + c @ mr - b @ mp)
    constant = m @ a @ m + mr @ c @ mr - mp @ b @ mp - mean @ s @ mean
    log_det = np.linalg.slogdet(a)[1] - np.linalg.slogdet(b)[1] - np.linalg.slogdet(s)[1]
    inside = stats.multivariate_normal.cdf(
        np.full(3, high), mean, np.linalg.inv(s), lower_limit=np.full(3, low), abseps=1e-9, releps=1e-7, maxpts=10**6
    )
    whole = 0.5 * (log_det - constant) + 1.5 * np.log(2 * np.pi)
    return whole + np.log(inside) + 3 * log_normaliser


MASS = np.diff(stats.norm(0.2, 0.3).cdf([0, 2]))[0]
CASES = {
    "uniform": (dist.Uniform(0.0, 1.0), (0.0, 1.0, 0.0, 0.0, 0.0)),
    "half-normal": (
        dist.HalfNormal(1.0),
        (0.0, 40.0, 0.0, 1.0, np.log(2) - 0.5 * np.log(2 * np.pi)),
    ),
    "truncated normal": (
        TruncatedNormal(0.2, 0.3, 0.0, 2.0),
        (
            0.0,
            2.0,
            0.2,
            1 / 0.09,
            -0.5 * np.log(2 * np.pi * 0.09) - np.log(MASS),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loc", [[0.4, 0.3, 0.2], [-1.5, 0.3, 0.9]], ids=["inside", "in the tail"])
def test_it_is_the_probability_of_the_box(name, loc):
    element, case = CASES[name]
    posterior = dist.MultivariateNormal(torch.tensor(loc).double(), COVARIANCE)
    reduced_prior = element.expand([3]).to_event(1)
    pyro.set_rng_seed(0)
    reduced = reduce(posterior, PRIOR, reduced_prior)
    assert reduced.method == "importance" and reduced.pareto_k < 0.7
    expected = truth(posterior, PRIOR, *case)
    assert reduced.standard_error < 0.02
    assert abs(reduced.delta_evidence - expected) < 4 * reduced.standard_error + 1e-4
    draws = reduced.posterior.enumerate_support()
    assert element.support.check(draws).all()


def test_a_narrow_reduced_prior_is_the_point_it_is_about():
    posterior = dist.MultivariateNormal(torch.tensor([0.4, 0.3, 0.2]).double(), COVARIANCE)
    narrow = TruncatedNormal(torch.full((3,), 0.5).double(), 1e-7, 0.0, 1.0).to_event(1)
    point = torch.full((3,), 0.5).double()
    expected = posterior.log_prob(point) - PRIOR.log_prob(point)
    assert reduce(posterior, PRIOR, narrow).delta_evidence.item() == pytest.approx(expected.item(), abs=1e-5)


def test_gradients_are_those_of_the_probability():
    posterior = dist.MultivariateNormal(torch.tensor([0.4, 0.3, 0.2]).double(), COVARIANCE)
    high = torch.tensor(1.0).double().requires_grad_()
    pyro.set_rng_seed(0)
    reduced = reduce_on_box(posterior, PRIOR, dist.Uniform(torch.zeros(3).double(), high).to_event(1), 20_000)
    (gradient,) = torch.autograd.grad(reduced.delta_evidence, high)
    step, around = 1e-3, []
    for end in (1 - step, 1 + step):
        around.append(truth(posterior, PRIOR, 0.0, end) - 3 * np.log(end))
    assert gradient.item() == pytest.approx((around[1] - around[0]) / (2 * step), abs=0.03)


def test_what_is_no_box_is_left_to_others():
    posterior = dist.MultivariateNormal(torch.zeros(3).double(), COVARIANCE)
    assert reduce_on_box(posterior, PRIOR, dist.Dirichlet(torch.ones(3).double())) is NotImplemented
    wide = dist.MultivariateNormal(torch.zeros(3).double(), 9 * torch.eye(3).double())
    assert reduce_on_box(wide, PRIOR, dist.Uniform(torch.zeros(3).double(), 1.0).to_event(1)) is NotImplemented


@pytest.mark.usefixtures("double")
def test_sites_of_a_joint_guide_are_confined_each_by_its_own_prior():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("two", 2):
            pyro.sample("b", dist.Normal(0.0, torch.tensor([2.0, 1.0])))

    guide = AutoMultivariateNormal(model)
    guide()
    root = torch.linalg.cholesky(COVARIANCE)
    with torch.no_grad():
        guide.loc.copy_(torch.tensor([-1.5, 0.3, 0.9]))
        guide.scale = root.diagonal().clone()
        guide.scale_tril = root / root.diagonal().unsqueeze(-1)
    posterior = dist.MultivariateNormal(guide.loc.detach(), COVARIANCE)
    asked = {"a": dist.Uniform(0.0, 1.0), "b": TruncatedNormal(0.0, 1e6, 0.0, 1.0)}
    reduction = reduce_model(guide, asked)
    # So wide a normal is uniform on its interval.
    expected = truth(posterior, PRIOR, 0.0, 1.0)
    assert abs(reduction.delta_evidence - expected) < 4 * reduction.standard_error + 1e-4
    assert reduction.posterior["b"].sample().shape == (2,)
    assert all(0 <= value <= 1 for value in reduction.guide()["b"].tolist())
    again = reduce_model(reduction.guide, {"a": dist.Uniform(0.0, 0.5)}, model=reduction.model)
    whole = reduce_model(guide, asked | {"a": dist.Uniform(0.0, 0.5)})
    error = (again.standard_error**2 + reduction.standard_error**2 + whole.standard_error**2) ** 0.5
    assert abs(again.delta_evidence + reduction.delta_evidence - whole.delta_evidence) < 4 * error

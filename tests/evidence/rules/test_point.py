# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bmrs import ReductionError
from pyro_bmrs.evidence import log_evidence_change, reduce


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


POSTERIORS = {
    "Normal": (dist.Normal(double(1.0, -2.0, 0.3), 0.5), dist.Normal(double(0.0), 1.0), double(0.0, 1.0, -0.5)),
    "Gamma": (dist.Gamma(double(3.0, 2.0, 9.0), 2.0), dist.Gamma(double(1.0), 1.0), double(0.5, 1.0, 4.0)),
    "StudentT": (dist.StudentT(5.0, double(1.0, 0.0, 2.0), 0.5), dist.Cauchy(double(0.0), 1.0), double(0.0, 0.0, 0.0)),
    "Poisson": (dist.Poisson(double(3.0, 1.0, 2.0)), dist.Poisson(double(2.0)), double(0.0, 4.0, 2.0)),
    "LogNormal": (dist.LogNormal(double(0.0, 1.0, 2.0), 0.3), dist.HalfCauchy(double(1.0)), double(0.5, 1.0, 0.1)),
}


@pytest.mark.parametrize(("posterior", "prior", "point"), POSTERIORS.values(), ids=POSTERIORS)
def test_savage_dickey_ratio(posterior, prior, point: Tensor) -> None:
    ratio = posterior.log_prob(point) - prior.log_prob(point)
    elementwise = reduce(posterior, prior, dist.Delta(point))
    torch.testing.assert_close(elementwise.delta_evidence, ratio, rtol=0, atol=0)
    assert elementwise.method == "exact"
    assert (elementwise.posterior.v == point).all()
    for delta in (dist.Delta(point, event_dim=1), dist.Delta(point).to_event(1)):
        joint = reduce(posterior.to_event(1), prior.expand([3]).to_event(1), delta)
        torch.testing.assert_close(joint.delta_evidence, ratio.sum(), rtol=1e-15, atol=1e-15)
        assert joint.posterior.event_shape == (3,)
        assert (joint.posterior.sample() == point).all()


def test_a_joint_posterior_is_reduced_at_a_vector() -> None:
    posterior = dist.MultivariateNormal(double(1.0, 2.0), torch.eye(2).double())
    prior = dist.Normal(double(0.0, 0.0), 3.0).to_event(1)
    delta_evidence = log_evidence_change(posterior, prior, dist.Delta(double(0.0, 0.0), event_dim=1))
    expected = posterior.log_prob(double(0.0, 0.0)) - prior.log_prob(double(0.0, 0.0))
    torch.testing.assert_close(delta_evidence, expected, rtol=0, atol=0)


def test_one_point_for_a_batch_of_posteriors() -> None:
    reduced = reduce(dist.Normal(double(1.0, 2.0, 3.0), 1.0), dist.Normal(0.0, 4.0), dist.Delta(torch.tensor(0.0)))
    assert reduced.delta_evidence.shape == (3,)
    assert reduced.posterior.batch_shape == (3,)


def test_gradients_in_all_parameters_and_in_the_point() -> None:
    parameters = [x.requires_grad_() for x in (double(1.0, -2.0), double(0.5, 0.7), double(2.0, 1.0), double(0.3, 0.4))]

    def delta_evidence(loc: Tensor, scale: Tensor, prior_scale: Tensor, point: Tensor) -> Tensor:
        return log_evidence_change(dist.Normal(loc, scale), dist.Normal(0.0, prior_scale), dist.Delta(point))

    assert torch.autograd.gradcheck(delta_evidence, parameters)


def test_it_is_the_limit_of_ever_narrower_reduced_priors() -> None:
    posterior, prior = dist.Gamma(double(30.0), 10.0), dist.Gamma(double(2.0), 1.0)
    point = log_evidence_change(posterior, prior, dist.Delta(double(2.5)))
    narrow = [log_evidence_change(posterior, prior, dist.Gamma(double(2.5 * n), n)) for n in (1e2, 1e4, 1e6)]
    errors = [abs(float(n - point)) for n in narrow]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


@pytest.mark.parametrize(
    ("posterior", "prior", "role"),
    [
        (dist.Gamma(double(3.0, 2.0), 1.0), dist.Gamma(1.0, 1.0), "posterior"),
        (dist.Normal(double(3.0, 2.0), 1.0), dist.HalfNormal(1.0), "prior"),
    ],
)
def test_a_point_outside_the_support_is_refused(posterior, prior, role: str) -> None:
    with pytest.raises(ReductionError, match=f"outside the {role}'s support at 1 of 2 elements"):
        reduce(posterior, prior, dist.Delta(double(-1.0, 1.0)))


def test_a_point_with_a_density_of_its_own_is_refused() -> None:
    with pytest.raises(ReductionError, match="log_density"):
        reduce(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0), dist.Delta(torch.tensor(0.0), log_density=1.0))


def test_a_point_has_no_other_method() -> None:
    for method in ("quadrature", "importance"):
        with pytest.raises(ReductionError, match="exact rule only"):
            reduce(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0), dist.Delta(torch.tensor(0.0)), method=method)

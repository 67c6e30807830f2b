# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.evidence import log_evidence_change, reduce, reduced_posterior

NORMALS = dist.Normal(0.5, 0.1), dist.Normal(0.0, 1.0), dist.Normal(0.0, 0.5)
MIXED = dist.Normal(0.5, 0.1), dist.Cauchy(0.0, 1.0), dist.Normal(0.0, 0.5)
JOINT = dist.MultivariateNormal(torch.zeros(2), 0.1 * torch.eye(2))
JOINTLY = JOINT, dist.Laplace(torch.zeros(2), 1.0).to_event(1), dist.Laplace(torch.zeros(2), 0.5).to_event(1)


@pytest.mark.parametrize(
    ("triple", "method"),
    [
        (NORMALS, "exact"),
        (MIXED, "quadrature"),
        (JOINTLY, "importance"),
        ((dist.Poisson(2.0), dist.Poisson(3.0), dist.Geometric(0.5)), "importance"),
        ([d.expand([2]).to_event(1) for d in NORMALS], "exact"),
        ([d.expand([2]).to_event(1) for d in MIXED], "quadrature"),
    ],
)
def test_auto_takes_the_first_method_that_can_be_had(triple, method: str) -> None:
    assert reduce(*triple).method == method


def test_all_methods_agree() -> None:
    exact, quadrature, importance = (
        reduce(*NORMALS, method=method, num_samples=100_000) for method in ("exact", "quadrature", "importance")
    )
    torch.testing.assert_close(quadrature.delta_evidence, exact.delta_evidence, rtol=1e-4, atol=1e-5)
    error = (importance.delta_evidence - exact.delta_evidence).abs()
    assert error < 4 * importance.standard_error < 0.01
    for reduced in (quadrature, importance):
        torch.testing.assert_close(reduced.posterior.mean, exact.posterior.mean, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(reduced.posterior.variance, exact.posterior.variance, rtol=3e-2, atol=0)
    assert exact.standard_error is quadrature.standard_error is exact.pareto_k is None
    assert importance.pareto_k < 0.7


def test_the_short_forms_say_what_reduce_says() -> None:
    reduced = reduce(*NORMALS)
    assert log_evidence_change(*NORMALS) == reduced.delta_evidence
    assert reduced_posterior(*NORMALS).mean == reduced.posterior.mean


def test_the_change_has_the_broadcast_batch_shape() -> None:
    q = dist.Normal(torch.zeros(4, 1, 2), 0.1).to_event(1)
    p = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    r = dist.Normal(torch.zeros(2), 0.5).to_event(1)
    for method in ("exact", "quadrature", "importance"):
        reduced = reduce(q, p, r, method=method, num_samples=1000)
        assert reduced.delta_evidence.shape == (4, 3)
        assert reduced.posterior.batch_shape == (4, 3)
        assert reduced.posterior.event_shape == (2,)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ReductionError, match="'auto', 'exact', 'quadrature', 'importance', not 'laplace'"):
        reduce(*NORMALS, method="laplace")


def test_no_exact_rule_names_the_types_and_the_ways_out() -> None:
    with pytest.raises(ReductionError) as caught:
        reduce(*MIXED, method="exact")
    message = str(caught.value)
    for word in ("Normal as posterior", "Cauchy as prior", "Normal as reduced prior", "'quadrature'", "'importance'"):
        assert word in message
    assert "register_reduction" in message


def test_event_shapes_must_agree() -> None:
    q = dist.Normal(torch.zeros(3), 0.1).to_event(1)
    with pytest.raises(
        ReductionError, match=r"\(3,\) of the posterior, \(3,\) of the prior, \(\) of the reduced prior"
    ):
        reduce(q, q, dist.Normal(0.0, 0.1))
    with pytest.raises(ReductionError, match="Event shapes differ"):
        reduce(q, q, dist.Normal(torch.zeros(2), 0.1).to_event(1))


def test_batch_shapes_must_broadcast() -> None:
    with pytest.raises(ReductionError, match=r"\(3,\) of the posterior, \(2,\) of the prior, \(\) of the reduced"):
        reduce(dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.zeros(2), 1.0), dist.Normal(0.0, 0.1))


@pytest.mark.parametrize("role", range(3))
def test_only_distributions_are_taken(role: int) -> None:
    triple: list = list(NORMALS)
    triple[role] = 3.0
    with pytest.raises(ReductionError, match="must be a distribution, not float"):
        reduce(*triple)


@pytest.mark.parametrize("method", ["auto", "exact", "quadrature", "importance"])
def test_a_posterior_or_prior_without_density_is_refused(method: str) -> None:
    point = dist.Delta(torch.tensor(0.0))
    for posterior, prior in ((point, NORMALS[1]), (NORMALS[0], point)):
        with pytest.raises(ReductionError, match=r"is a point \(Delta\) and has no density.*AutoNormal"):
            reduce(posterior, prior, NORMALS[2], method=method)
    vectors = dist.Delta(torch.zeros(2, 3)).to_event(1)
    normals = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
    with pytest.raises(ReductionError, match="has no density"):
        reduce(vectors, normals, normals)


FAMILIES = {
    "Normal": lambda x: dist.Normal(x, 1.0, validate_args=False),
    "Normal's scale": lambda x: dist.Normal(0.0 * torch.ones(3), 1 + x, validate_args=False),
    "Gamma": lambda x: dist.Gamma(1 + x, 1.0, validate_args=False),
    "LogNormal": lambda x: dist.TransformedDistribution(
        dist.Normal(x, 1.0, validate_args=False), [torch.distributions.ExpTransform()]
    ),
    "StudentT": lambda x: dist.StudentT(3.0, x, 1.0, validate_args=False),
    "Independent": lambda x: dist.Independent(dist.Normal(x, 1.0, validate_args=False), 1, validate_args=False),
}
NAMES = {"Normal's scale": "scale", "Gamma": "concentration"}


@pytest.mark.parametrize(
    ("family", "role", "value"), list(itertools.product(FAMILIES, range(3), [torch.nan, torch.inf]))
)
def test_nan_and_infinite_parameters_are_told_with_role_name_and_count(family: str, role: int, value: float) -> None:
    values = [torch.zeros(3) for _ in range(3)]
    values[role][1] = value
    roles = ("posterior", "prior", "reduced prior")
    kind = "NaN" if value != value else "infinite"
    name = NAMES.get(family, "loc")
    with pytest.raises(ReductionError, match=f"The {roles[role]}'s {name} is {kind} at 1 of 3 elements"):
        reduce(*map(FAMILIES[family], values))


def test_discrete_and_continuous_do_not_mix() -> None:
    with pytest.raises(
        ReductionError, match=r"posterior \(Poisson\) is discrete.*reduced prior \(Gamma\) is continuous"
    ):
        reduce(dist.Poisson(1.0), dist.Poisson(1.0), dist.Gamma(1.0, 1.0))


def test_a_posterior_beyond_its_prior_is_told() -> None:
    coin = dist.Categorical(torch.tensor([0.5, 0.5]))
    heads = dist.Categorical(torch.tensor([1.0, 0.0]))
    with pytest.raises(ReductionError, match="mass where the prior has none"):
        reduce(coin, heads, heads)


def test_values_stay_on_the_parameters_device_and_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        triple = [dist.Normal(torch.zeros(2, dtype=dtype), torch.full((2,), s, dtype=dtype)) for s in (0.1, 1.0, 0.5)]
        for method in ("exact", "quadrature", "importance"):
            reduced = reduce(*triple, method=method, num_samples=100)
            assert reduced.delta_evidence.dtype == dtype
            assert reduced.posterior.sample().dtype == dtype


class TestMixturesByElement:
    """The first element keeps its prior, the second takes a Laplace, for which there is no closed form."""

    q = dist.Normal(torch.tensor([0.5, 0.3], dtype=torch.double), 0.1)
    p = dist.Normal(torch.zeros(2, dtype=torch.double), 1.0)
    laplace = dist.Laplace(torch.zeros(2, dtype=torch.double), 0.5)
    mask = torch.tensor([False, True])

    @property
    def r(self) -> dist.MaskedMixture:
        return dist.MaskedMixture(self.mask, self.p, self.laplace)

    def exact(self) -> torch.Tensor:
        x = torch.linspace(-1.0, 1.5, 200_001, dtype=torch.double)
        q, p, r = (type(d)(d.loc[1], d.scale[1]) for d in (self.q, self.p, self.laplace))
        integrand = (q.log_prob(x) + r.log_prob(x) - p.log_prob(x)).exp()
        return torch.stack([torch.zeros((), dtype=torch.double), torch.trapezoid(integrand, x).log()])

    def test_each_element_is_reduced_to_its_side(self) -> None:
        reduced = reduce(self.q, self.p, self.r)
        torch.testing.assert_close(reduced.delta_evidence, self.exact(), rtol=0, atol=1e-8)
        torch.testing.assert_close(reduced.posterior.mean[0], self.q.mean[0])
        assert reduced.method == "quadrature"

    def test_a_side_in_force_nowhere_says_nothing_of_the_method(self) -> None:
        off = dist.MaskedMixture(torch.zeros(2, dtype=torch.bool), self.p, self.laplace)
        assert reduce(self.q, self.p, off).method == "exact"

    def test_an_exact_method_is_insisted_on(self) -> None:
        with pytest.raises(ReductionError, match="There is no exact rule for .*Laplace as reduced prior"):
            reduce(self.q, self.p, self.r, method="exact")

    def test_importance_sampling_keeps_its_diagnostics(self) -> None:
        reduced = reduce(self.q, self.p, self.r, method="importance", num_samples=2000)
        assert reduced.method == "importance"
        assert 0 < reduced.standard_error[1] < 0.01
        assert (reduced.delta_evidence - self.exact()).abs()[1] < 4 * reduced.standard_error[1]
        assert (reduced.pareto_k < 0.7).all()
        assert ((reduced.effective_sample_size > 1000) & (reduced.effective_sample_size < 2000.1)).all()

    def test_beside_a_sampled_side_an_exact_one_has_no_error(self) -> None:
        # A Poisson posterior and a geometric reduced prior can only be sampled.
        q, p = dist.Poisson(torch.tensor([2.0, 2.0])), dist.Poisson(torch.tensor([3.0, 3.0]))
        r = dist.MaskedMixture(self.mask, p, dist.Geometric(torch.tensor([0.5, 0.5])))
        reduced = reduce(q, p, r, num_samples=1000)
        alone = reduce(q, p, p)
        assert alone.method == "exact"
        assert reduced.method == "importance"
        assert reduced.standard_error[0] == 0 < reduced.standard_error[1]
        assert reduced.pareto_k[0] == -torch.inf
        assert reduced.effective_sample_size[0] == torch.inf > 1000 > reduced.effective_sample_size[1]

    def test_it_is_the_same_beneath_a_bijection_and_in_events(self) -> None:
        exp = torch.distributions.ExpTransform()
        q, p, r = (dist.TransformedDistribution(d, [exp]) for d in (self.q, self.p, self.r))
        for method in ("auto", "quadrature"):
            reduced = reduce(q.to_event(1), p.to_event(1), r.to_event(1), method=method)
            torch.testing.assert_close(reduced.delta_evidence, self.exact().sum(), rtol=0, atol=1e-8)
            assert reduced.method == "quadrature"


def test_what_is_masked_out_is_exactly_nothing() -> None:
    mask = torch.tensor([True, False])
    q, p, r = (d.expand([2]) for d in NORMALS)
    reduced = reduce(q, p.mask(mask), r, method="importance", num_samples=1000)
    assert reduced.delta_evidence[1] == reduced.standard_error[1] == 0
    assert reduced.pareto_k[1] == -torch.inf
    whole = reduce(q.to_event(1), p.mask(mask).to_event(1), r.to_event(1), method="importance", num_samples=1000)
    exact = log_evidence_change(*NORMALS)
    assert (whole.delta_evidence - exact).abs() < 4 * whole.standard_error

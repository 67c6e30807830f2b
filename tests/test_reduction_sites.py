# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Every way in which a model can have sites and a guide can draw them."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch.distributions import constraints

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model
from pyro_bmrs.evidence import log_evidence_change

STANDARD = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
NARROW = dist.Normal(torch.zeros((), dtype=torch.float64), 0.2)


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def fit(model, guide, *args, steps=5, loss=Trace_ELBO):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss())
    for _ in range(steps):
        svi.step(*args)
    return guide


def goes_on(reduction, *args):
    """The reduced guide and model take further SVI steps together."""
    svi = SVI(reduction.model, reduction.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(*args)) for _ in range(3))


# --- modules ----------------------------------------------------------------------------------------------------------


class Regression(PyroModule):
    """Bayesian weights by PyroSample, one of them in a nested module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PyroModule[torch.nn.Linear](3, 2)
        self.inner.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        self.outer = PyroModule[torch.nn.Linear](2, 1)
        self.outer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        loc = self.outer(torch.tanh(self.inner(x))).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(loc, 0.5), obs=y)


@pytest.mark.parametrize("guide_type", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormalMessenger])
def test_pyro_sample_parameters_of_nested_modules(guide_type):
    model = Regression()
    x, y = torch.randn(20, 3), torch.randn(20)
    guide = fit(model, guide_type(model), x, y, steps=30)
    reduction = reduce_model(guide, {"inner.weight": NARROW, "outer.bias": NARROW}, args=(x, y))
    assert reduction.elementwise["inner.weight"].shape == (2, 3)
    assert reduction.elementwise["outer.bias"].shape == (1,)
    if guide_type is not AutoMultivariateNormal:
        total = sum(delta.sum() for delta in reduction.elementwise.values())
        torch.testing.assert_close(total, reduction.delta_evidence)
    goes_on(reduction, x, y)
    # The original model has kept its own priors.
    assert poutine.trace(model).get_trace(x).nodes["outer.bias"]["fn"].base_dist.scale.item() == 1.0


# --- plates -----------------------------------------------------------------------------------------------------------


def local_model(y, subsample_size=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("items", len(y), subsample_size=subsample_size) as index:
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean + offset, 0.5), obs=y[index])


@pytest.mark.parametrize("guide_type", [AutoNormal, AutoNormalMessenger])
def test_a_subsampled_plate_counts_whole(guide_type):
    y = torch.linspace(-1.0, 1.0, 12)
    guide = fit(local_model, guide_type(local_model), y, 4, steps=100)
    reduction = reduce_model(guide, {"offset": NARROW}, args=(y, 4))
    loc, scale = guide.locs.offset.detach(), guide.scales.offset.detach()
    expected = log_evidence_change(dist.Normal(loc, scale), STANDARD, NARROW)
    assert reduction.elementwise["offset"].shape == (12,)
    torch.testing.assert_close(reduction.elementwise["offset"].detach(), expected)
    torch.testing.assert_close(reduction.delta_evidence.detach(), expected.sum())
    goes_on(reduction, y, 4)


def test_a_local_posterior_known_on_a_subsample_is_scaled_up():
    y = torch.linspace(-1.0, 1.0, 12)

    def guide(y, subsample_size=None):
        pyro.sample("mean", dist.Normal(pyro.param("mean_loc", torch.tensor(0.1)), 0.1))
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("items", len(y), subsample_size=subsample_size) as index:
            pyro.sample("offset", dist.Normal(slope * y[index], 0.3))

    fit(local_model, guide, y, 4)
    reduction = reduce_model(guide, {"offset": NARROW}, model=local_model, args=(y, 4))
    assert reduction.elementwise["offset"].shape == (4,)
    torch.testing.assert_close(reduction.delta_evidence, 3 * reduction.elementwise["offset"].sum())
    whole = reduce_model(guide, {"offset": NARROW}, model=local_model, args=(y,))
    torch.testing.assert_close(whole.delta_evidence, whole.elementwise["offset"].sum())


def test_priors_that_differ_within_a_subsampled_plate_are_refused():
    scales = torch.linspace(0.5, 1.5, 12)

    def model(y, subsample_size=None):
        with pyro.plate("items", len(y), subsample_size=subsample_size) as index:
            offset = pyro.sample("offset", dist.Normal(0.0, scales[index]))
            pyro.sample("y", dist.Normal(offset, 0.5), obs=y[index])

    y = torch.linspace(-1.0, 1.0, 12)
    guide = fit(model, AutoNormal(model), y, 4)
    with pytest.raises(ReductionError, match="'offset' differs between the elements of a subsampled plate"):
        reduce_model(guide, {"offset": NARROW}, args=(y, 4))
    assert reduce_model(guide, {"offset": NARROW}, args=(y,)).elementwise["offset"].shape == (12,)


# --- dependent priors -------------------------------------------------------------------------------------------------


def hierarchical(y):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.2))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def test_a_prior_that_depends_on_another_site_goes_by_importance_sampling():
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=200)
    reduction = reduce_model(guide, {"theta": dist.Normal(0.0, 0.8)}, num_samples=4000)
    assert reduction.method == "importance"
    tau = dist.LogNormal(guide.locs.tau, guide.scales.tau).sample((200_000,)).unsqueeze(-1)
    theta = dist.Normal(guide.locs.theta, guide.scales.theta).sample((200_000,))
    log_ratio = (dist.Normal(0.0, 0.8).log_prob(theta) - dist.Normal(0.0, tau).log_prob(theta)).sum(-1)
    expected = log_ratio.logsumexp(0) - math.log(200_000)
    assert abs(reduction.delta_evidence - expected) < 5 * reduction.standard_error
    assert Predictive(reduction.model, guide=reduction.guide, num_samples=3)(y)["y"].shape == (3, 3)


def test_a_reduced_upper_level_is_exact():
    # p(theta | tau) stands in both models and cancels.
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=50)
    reduced_prior = dist.LogNormal(-1.0, 0.1)
    reduction = reduce_model(guide, {"tau": reduced_prior})
    posterior = dist.LogNormal(guide.locs.tau, guide.scales.tau)
    expected = log_evidence_change(posterior, dist.LogNormal(0.0, 0.2), reduced_prior)
    assert reduction.method == "exact"
    torch.testing.assert_close(reduction.delta_evidence, expected)


def test_a_reduced_prior_program_with_dependent_sites():
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=200)

    def reduced_prior():
        tau = pyro.sample("tau", dist.LogNormal(-0.1, 0.15))
        pyro.sample("theta", dist.Normal(0.0, 0.9 * tau))

    reduction = reduce_model(guide, reduced_prior, num_samples=2000)
    assert reduction.method == "importance"
    trace = poutine.trace(poutine.condition(reduction.model, {"tau": torch.tensor(2.0)})).get_trace(y)
    assert trace.nodes["theta"]["fn"].scale[0].item() == pytest.approx(1.8)


def test_a_reduced_prior_program_is_a_mapping_by_another_name():
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=50)

    def reduced_prior():
        pyro.sample("tau", dist.LogNormal(-1.0, 0.1))

    by_program = reduce_model(guide, reduced_prior)
    by_mapping = reduce_model(guide, {"tau": dist.LogNormal(-1.0, 0.1)})
    assert by_program.method == "exact"
    torch.testing.assert_close(by_program.delta_evidence, by_mapping.delta_evidence)


def test_a_hierarchical_guide_is_drawn():
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoHierarchicalNormalMessenger(hierarchical), y, steps=50)
    reduction = reduce_model(guide, {"theta": dist.Normal(0.0, 0.9)}, args=(y,), num_samples=500)
    assert reduction.method == "importance"


# --- hand-written guides ----------------------------------------------------------------------------------------------


def two_sites(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a, b), obs=y)


def function_guide(y):
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.2), constraint=constraints.positive)
    pyro.sample("a", dist.Normal(loc, scale))
    pyro.sample("b", dist.Gamma(pyro.param("shape", torch.tensor(8.0), constraint=constraints.positive), 8.0))


class ModuleGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.3))
        self.scale = PyroParam(torch.tensor(0.2), constraint=constraints.positive)

    def forward(self, y):
        pyro.sample("a", dist.Normal(self.loc, self.scale))
        pyro.sample("b", dist.Gamma(torch.tensor(8.0), 8.0))


@pytest.mark.parametrize("make", [lambda: function_guide, ModuleGuide])
def test_hand_written_guides(make):
    y, guide = torch.tensor([0.1, 0.4, -0.2]), make()
    fit(two_sites, guide, y)
    reduction = reduce_model(guide, {"a": NARROW, "b": dist.Gamma(9.0, 9.0)}, model=two_sites, args=(y,))
    assert reduction.method == "exact"
    trace = poutine.trace(guide).get_trace(y)
    expected = log_evidence_change(trace.nodes["a"]["fn"], STANDARD, NARROW)
    expected = expected + log_evidence_change(trace.nodes["b"]["fn"], dist.Gamma(2.0, 2.0), dist.Gamma(9.0, 9.0))
    torch.testing.assert_close(reduction.delta_evidence, expected)
    store = pyro.get_param_store()
    before = {name: store[name].detach().clone() for name in store.keys()}
    goes_on(reduction, y)
    for name, value in before.items():
        assert torch.equal(store[name], value), f"more SVI changed the fitted guide's {name}"


def test_a_guide_site_that_depends_on_another_is_drawn():
    def guide(y):
        a = pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.2))
        pyro.sample("b", dist.Gamma(8.0 + a**2, 8.0))

    y = torch.tensor([0.1, 0.4, -0.2])
    fit(two_sites, guide, y)
    downstream = reduce_model(guide, {"b": dist.Gamma(3.0, 3.0)}, model=two_sites, args=(y,), num_samples=500)
    assert downstream.method == "importance"
    upstream = reduce_model(guide, {"a": NARROW}, model=two_sites, args=(y,))
    assert upstream.method == "exact"
    # The other site follows the reduced one in the reduced guide.
    trace = poutine.trace(poutine.condition(upstream.guide, {"a": torch.tensor(3.0)})).get_trace(y)
    assert trace.nodes["b"]["fn"].concentration.item() == 17.0


def test_an_auxiliary_variable_in_the_guide_is_drawn():
    def guide(y):
        u = pyro.sample("u", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.2), infer={"is_auxiliary": True})
        pyro.sample("a", dist.Delta(2 * u, log_density=torch.tensor(-math.log(2))))
        pyro.sample("b", dist.Gamma(8.0, 8.0))

    y = torch.tensor([0.1, 0.4, -0.2])
    fit(two_sites, guide, y)
    reduction = reduce_model(guide, {"a": dist.Normal(0.0, 0.8)}, model=two_sites, args=(y,), num_samples=4000)
    loc = pyro.param("loc").item()
    expected = log_evidence_change(dist.Normal(2 * loc, 0.4), STANDARD, dist.Normal(0.0, 0.8))
    assert abs(reduction.delta_evidence - expected) < 5 * reduction.standard_error


# --- lists of guides, discrete sites ----------------------------------------------------------------------------------


@config_enumerate
def mixture(y):
    locs = pyro.sample("locs", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(y)):
        component = pyro.sample("component", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("y", dist.Normal(locs[component], scale), obs=y)


def mixture_data():
    return torch.cat([torch.randn(20) * 0.5 - 2.0, torch.randn(30) * 0.5 + 2.0])


def test_enumerated_discrete_sites_are_left_alone():
    y = mixture_data()
    guide = AutoNormal(poutine.block(mixture, hide=["component"]))
    fit(mixture, guide, y, steps=100, loss=TraceEnum_ELBO)
    reduction = reduce_model(guide, {"locs": dist.Normal(0.0, 3.0)}, model=mixture, args=(y,))
    expected = log_evidence_change(
        dist.Normal(guide.locs.locs, guide.scales.locs), dist.Normal(0.0, 5.0), dist.Normal(0.0, 3.0)
    )
    torch.testing.assert_close(reduction.delta_evidence, expected.sum())
    svi = SVI(reduction.model, reduction.guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO())
    assert math.isfinite(svi.step(y))
    with pytest.raises(ReductionError, match="no latent site 'component'"):
        reduce_model(guide, {"component": dist.Categorical(torch.ones(2) / 2)}, model=mixture, args=(y,))


def test_a_list_of_guides():
    y = mixture_data()
    guide = AutoGuideList(mixture)
    guide.append(AutoMultivariateNormal(poutine.block(mixture, expose=["locs"])))
    guide.append(AutoNormal(poutine.block(mixture, expose=["scale"])))
    guide.append(AutoDiscreteParallel(poutine.block(mixture, expose=["component"])))
    fit(mixture, guide, y, steps=50, loss=TraceEnum_ELBO)
    reduction = reduce_model(
        guide,
        {
            "locs": dist.Normal(0.0, 3.0),
            "scale": dist.LogNormal(0.0, 0.3),
            "component": dist.Categorical(torch.ones(2) / 2),
        },
    )
    assert reduction.method == "exact"
    assert reduction.elementwise["component"].shape == (50,)
    reduction = reduce_model(guide, {"locs": dist.Normal(0.0, 3.0), "scale": dist.LogNormal(0.0, 0.3)})
    assert set(reduction.posterior) == {"locs", "scale", "component"}
    svi = SVI(reduction.model, reduction.guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO())
    assert math.isfinite(svi.step(y))


def test_a_point_estimate_beside_a_density():
    guide = AutoGuideList(two_sites)
    guide.append(AutoNormal(poutine.block(two_sites, expose=["a"])))
    guide.append(AutoDelta(poutine.block(two_sites, expose=["b"])))
    fit(two_sites, guide, torch.tensor([0.1, 0.4, -0.2]))
    assert reduce_model(guide, {"a": NARROW}).method == "exact"
    with pytest.raises(ReductionError, match="no density"):
        reduce_model(guide, {"b": dist.Gamma(3.0, 3.0)})


# --- importance sampling that fails -----------------------------------------------------------------------------------


def test_draws_that_cannot_support_a_reduction_warn():
    y = torch.tensor([5.0, -6.0, 7.0])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=200)
    with pytest.warns(ReductionWarning, match="not to be trusted"):
        reduction = reduce_model(guide, {"theta": dist.Normal(0.0, 0.05)}, num_samples=500)
    assert reduction.pareto_k > 0.7
    assert "not to be trusted" in repr(reduction)

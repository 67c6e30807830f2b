# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Every way in which a guide can draw its sites."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch.distributions import constraints

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.evidence import log_evidence_change
from tests.programs import NARROW, STANDARD, fit, goes_on, one_site, two_sites

pytestmark = pytest.mark.usefixtures("double")


def test_a_guide_with_no_density():
    guide = AutoDelta(one_site)
    guide()
    with pytest.raises(ReductionError, match="'z'.*no density.*AutoNormal"):
        reduce_model(guide, NARROW)


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

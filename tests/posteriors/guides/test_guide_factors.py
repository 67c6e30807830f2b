# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Every way in which a guide can draw its sites."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_coupling, iterated
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, autoguide, config_enumerate
from pyro.infer.autoguide import (
    AutoContinuous,
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
from torch.distributions.transforms import ExpTransform

from pyro_bmrs import ReductionError, reduce_model, refit, search_models
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.posteriors import PackedFactor, SiteFactor, packed_statement, read_factors
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
    reduction = reduce_model(guide, {"a": dist.Normal(0.0, 0.8)}, model=two_sites, args=(y,), num_samples=1500)
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


# Types that the package does not know: one registration, or none, and all else goes by the factors.

DATA = torch.tensor([0.9, -0.2, 0.1, 0.6], dtype=torch.double)


def observed_once() -> None:
    """One observation of each value, so that the posterior is normal with one scale: sqrt(1 / 2)."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    pyro.sample("y", dist.Normal(weights, 1.0).to_event(1), obs=DATA[:3])
    pyro.sample("z", dist.Normal(rate.log(), 1.0), obs=DATA[3])


def log_evidence(weights_scale: float, rate_scale: float = 1.0) -> torch.Tensor:
    weights = dist.Normal(0.0, math.hypot(1.0, weights_scale)).log_prob(DATA[:3]).sum()
    return weights + dist.Normal(0.0, math.hypot(1.0, rate_scale)).log_prob(DATA[3])


class TiedNormal(AutoContinuous):
    """A packed vector, all of whose elements have the same scale: known by its normal posterior, without more ado."""

    def _setup_prototype(self, *args, **kwargs) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.loc = torch.nn.Parameter(self._init_loc())
        self.scale = PyroParam(torch.tensor(0.1), constraints.positive)

    def get_posterior(self, *args, **kwargs) -> dist.Distribution:
        return dist.Normal(self.loc, self.scale.expand(self.loc.shape)).to_event(1)


class TiedModule(PyroModule):
    """The same by hand. In a run of it, the sites are seen to be set by another; their densities are not seen."""

    def __init__(self) -> None:
        super().__init__(name="tied")
        self.loc = torch.nn.Parameter(torch.zeros(4))
        self.scale = PyroParam(torch.tensor(0.1), constraints.positive)

    def forward(self) -> None:
        normal = dist.Normal(self.loc, self.scale.expand((4,))).to_event(1)
        vector = pyro.sample(packed_statement(self), normal, infer={"is_auxiliary": True})
        pyro.sample("weights", dist.Delta(vector[:3], event_dim=1))
        pyro.sample("rate", dist.Delta(vector[3].exp(), log_density=-vector[3]))


@read_factors.register
def _(guide: TiedModule, run):
    weights = dist.Normal(guide.loc[:3], guide.scale.expand((3,))).to_event(1)
    rate = dist.Normal(guide.loc[3], guide.scale)
    parts = (SiteFactor("weights", "weights", weights), SiteFactor("rate", "rate", rate, ExpTransform()))
    return [PackedFactor(packed_statement(guide), parts)]


@pytest.fixture(params=[lambda: TiedNormal(observed_once), TiedModule], ids=["autoguide", "module"])
def guide(request):
    fitted = request.param()
    fitted()
    with torch.no_grad():
        fitted.loc.copy_(DATA / 2)
    fitted.scale = torch.tensor(math.sqrt(0.5))
    return fitted


def test_it_is_reduced_exactly(guide) -> None:
    reduction = reduce_model(guide, {"weights": dist.Normal(0.0, 0.5)}, model=observed_once)
    assert reduction.method == "exact"
    torch.testing.assert_close(reduction.delta_evidence, log_evidence(0.5) - log_evidence(1.0))
    torch.testing.assert_close(reduction.posterior["weights"].mean, DATA[:3] / 5)


def test_its_reduced_guide_is_reduced_again(guide) -> None:
    first = reduce_model(guide, {"weights": dist.Normal(0.0, 0.5)}, model=observed_once)
    stated = {"weights": dist.Normal(0.0, 0.25), "rate": dist.LogNormal(0.0, 0.5)}
    second = reduce_model(first.guide, stated)
    assert second.method == "exact"
    torch.testing.assert_close(second.delta_evidence, log_evidence(0.25, 0.5) - log_evidence(0.5))
    torch.testing.assert_close(second.posterior["rate"].base_dist.mean, DATA[3] / 5)
    third = reduce_model(second.guide, {"weights": dist.Delta(torch.zeros(3), event_dim=1)})
    torch.testing.assert_close(third.delta_evidence, log_evidence(0.0, 0.5) - log_evidence(0.25, 0.5))


def test_its_reduced_guide_draws_the_reduced_posterior(guide) -> None:
    reduction = reduce_model(guide, {"weights": dist.Delta(torch.zeros(3), event_dim=1)}, model=observed_once)
    with poutine.trace() as captured:
        reduction.guide()
    assert (captured.trace.nodes["weights"]["value"] == 0).all()
    draws = reduction.to_arviz(500).posterior["rate"].values
    standard_error = math.sqrt(0.5 / 500)
    assert abs(torch.as_tensor(draws).log().mean() - DATA[3] / 2) < 4 * standard_error


def test_more_svi_leaves_the_fitted_guide_as_it_is(guide) -> None:
    reduction = reduce_model(guide, {"weights": dist.Normal(0.0, 0.5)}, model=observed_once)
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    own = [parameter.detach().clone() for parameter in reduction.guide.parameters()]
    svi = SVI(reduction.model, reduction.guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
    svi.step()
    assert all(torch.equal(one, other) for one, other in zip(guide.parameters(), before))
    assert not all(torch.equal(one, other) for one, other in zip(reduction.guide.parameters(), own))


def test_its_models_are_searched(guide) -> None:
    space = search_models(guide, {"weights": dist.Delta(torch.zeros(3), event_dim=1)}, model=observed_once)
    assert space.strategy == "factorised"
    nothing_left = space.top(8).reduced.all(-1)
    change = log_evidence(0.0) - log_evidence(1.0)
    torch.testing.assert_close(space.top(8).delta_evidence[nothing_left].squeeze(), change)


def test_beside_others_in_a_list_it_is_told_apart_from_them() -> None:
    parts = AutoGuideList(observed_once)
    parts.append(TiedNormal(poutine.block(observed_once, hide=["rate"])))
    parts.append(TiedNormal(poutine.block(observed_once, hide=["weights"])))
    parts()
    with torch.no_grad():
        parts[0].loc.copy_(DATA[:3] / 2)
        parts[1].loc.copy_(DATA[3:] / 2)
    for part in parts:
        part.scale = torch.tensor(math.sqrt(0.5))
    first = reduce_model(parts, {"weights": dist.Normal(0.0, 0.5)})
    second = reduce_model(first.guide, {"rate": dist.LogNormal(0.0, 0.5)})
    torch.testing.assert_close(first.delta_evidence + second.delta_evidence, log_evidence(0.5, 0.5) - log_evidence(1.0))


def test_a_point_estimate_whose_prior_depends_on_others_has_no_density_either():
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        pyro.sample("z", dist.Normal(0.0, scale))

    guide = AutoDelta(model)
    guide()
    with pytest.raises(ReductionError, match="'z' is a point .* no density"):
        reduce_model(guide, {"z": dist.Normal(0.0, 0.5)})


def test_a_site_that_depends_on_an_auxiliary_variable_is_drawn():
    def guide(y):
        u = pyro.sample("u", dist.Normal(0.3, 0.2), infer={"is_auxiliary": True})
        pyro.sample("a", dist.Normal(u, 0.15))
        pyro.sample("b", dist.Gamma(8.0, 8.0))

    y = torch.tensor([0.1, 0.4, -0.2])
    reduction = reduce_model(guide, {"a": dist.Normal(0.0, 0.8)}, model=two_sites, args=(y,), num_samples=1500)
    # The variable integrated out, the site is normal with the variance of both.
    expected = log_evidence_change(dist.Normal(0.3, 0.25), STANDARD, dist.Normal(0.0, 0.8))
    assert abs(reduction.delta_evidence - expected) < 5 * reduction.standard_error
    assert reduce_model(guide, {"b": dist.Gamma(3.0, 3.0)}, model=two_sites, args=(y,)).method == "exact"


# --- all autoguides there are -----------------------------------------------------------------------------------------

ABSTRACT = {"AutoCallable", "AutoContinuous", "AutoGuide", "AutoMessenger"}
# Of a point there is no evidence, and the others have tests of their own.
OTHER = {"AutoDelta", "AutoDiscreteParallel", "AutoGuideList"}
FLOW = {
    "AutoNormalizingFlow": lambda model: autoguide.AutoNormalizingFlow(model, partial(iterated, 1, affine_coupling))
}
AUTOGUIDES = {
    name: kind
    for name, kind in vars(autoguide).items()
    if isinstance(kind, type) and name in set(autoguide.__all__) - ABSTRACT - OTHER
} | FLOW
MIXED = {"AutoIAFNormal", "AutoNormalizingFlow", "AutoHierarchicalNormalMessenger", "AutoRegressiveMessenger"}


def three_sites(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(z, s), obs=y)


@pytest.mark.filterwarnings(
    "ignore:the refit had not converged",
    "ignore:the fitted guide had not converged",
    "ignore:The Laplace approximation was made away",
)
@pytest.mark.parametrize("name", AUTOGUIDES)
@pytest.mark.no_cover
def test_every_autoguide_is_reduced_and_goes_on(name):
    y = torch.tensor([0.3, 1.0, -0.2])
    pyro.set_rng_seed(0)
    guide = fit(three_sites, AUTOGUIDES[name](three_sites), y)
    asked = {"a": dist.Normal(0.0, 0.5)}
    reduction = reduce_model(guide, asked, args=(y,), num_samples=300)
    assert name in MIXED or reduction.method == "exact"
    drawn = reduce_model(guide, asked, args=(y,), num_samples=300, method="importance")
    error = math.hypot(drawn.standard_error, reduction.standard_error or 0.0)
    assert abs(reduction.delta_evidence - drawn.delta_evidence) < 5 * error + 1e-6
    values = Predictive(reduction.model, guide=reduction.guide, num_samples=3)(y)
    assert values["z"].shape == (3, 3)
    more = {"s": dist.LogNormal(0.0, 0.4)}
    again = reduce_model(reduction.guide, more, model=reduction.model, args=(y,), num_samples=300)
    assert again.delta_evidence.isfinite()
    assert len(reduction.summary()) == 1
    start = None
    if reduction.method == "importance" and name in MIXED:
        start = fit(reduction.model, AUTOGUIDES[name](reduction.model), y)
    check = refit(three_sites, guide, reduction, start=start, max_steps=1, window=1, num_particles=2)
    assert math.isfinite(check.delta_elbo)


def test_that_all_autoguides_are_asked():
    exported = {name for name in autoguide.__all__ if isinstance(getattr(autoguide, name), type)}
    assert exported == ABSTRACT | OTHER | AUTOGUIDES.keys()

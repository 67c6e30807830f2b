# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Guides of types that the package does not know: one registration, or none, and all else goes by the factors."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoGuideList
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform

from pyro_bmrs import reduce_model, search_models
from pyro_bmrs.posteriors import PackedFactor, SiteFactor, packed_statement, read_factors

DATA = torch.tensor([0.9, -0.2, 0.1, 0.6])


def model() -> None:
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


@pytest.fixture(params=[lambda: TiedNormal(model), TiedModule], ids=["autoguide", "module"])
def guide(request):
    fitted = request.param()
    fitted()
    with torch.no_grad():
        fitted.loc.copy_(DATA / 2)
    fitted.scale = torch.tensor(math.sqrt(0.5))
    return fitted


def test_it_is_reduced_exactly(guide) -> None:
    reduction = reduce_model(guide, {"weights": dist.Normal(0.0, 0.5)}, model=model)
    assert reduction.method == "exact"
    torch.testing.assert_close(reduction.delta_evidence, log_evidence(0.5) - log_evidence(1.0))
    torch.testing.assert_close(reduction.posterior["weights"].mean, DATA[:3] / 5)


def test_its_reduced_guide_is_reduced_again(guide) -> None:
    first = reduce_model(guide, {"weights": dist.Normal(0.0, 0.5)}, model=model)
    stated = {"weights": dist.Normal(0.0, 0.25), "rate": dist.LogNormal(0.0, 0.5)}
    second = reduce_model(first.guide, stated)
    assert second.method == "exact"
    torch.testing.assert_close(second.delta_evidence, log_evidence(0.25, 0.5) - log_evidence(0.5))
    torch.testing.assert_close(second.posterior["rate"].base_dist.mean, DATA[3] / 5)
    third = reduce_model(second.guide, {"weights": dist.Delta(torch.zeros(3), event_dim=1)})
    torch.testing.assert_close(third.delta_evidence, log_evidence(0.0, 0.5) - log_evidence(0.25, 0.5))


def test_its_reduced_guide_draws_the_reduced_posterior(guide) -> None:
    reduction = reduce_model(guide, {"weights": dist.Delta(torch.zeros(3), event_dim=1)}, model=model)
    with pyro.poutine.trace() as captured:
        reduction.guide()
    assert (captured.trace.nodes["weights"]["value"] == 0).all()
    draws = reduction.to_arviz(500).posterior["rate"].values
    standard_error = math.sqrt(0.5 / 500)
    assert abs(torch.as_tensor(draws).log().mean() - DATA[3] / 2) < 4 * standard_error


def test_more_svi_leaves_the_fitted_guide_as_it_is(guide) -> None:
    reduction = reduce_model(guide, {"weights": dist.Normal(0.0, 0.5)}, model=model)
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    own = [parameter.detach().clone() for parameter in reduction.guide.parameters()]
    svi = SVI(reduction.model, reduction.guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
    svi.step()
    assert all(torch.equal(one, other) for one, other in zip(guide.parameters(), before))
    assert not all(torch.equal(one, other) for one, other in zip(reduction.guide.parameters(), own))


def test_its_models_are_searched(guide) -> None:
    space = search_models(guide, {"weights": dist.Delta(torch.zeros(3), event_dim=1)}, model=model)
    assert space.strategy == "factorised"
    nothing_left = space.top(8).reduced.all(-1)
    change = log_evidence(0.0) - log_evidence(1.0)
    torch.testing.assert_close(space.top(8).delta_evidence[nothing_left].squeeze().float(), change)


def test_beside_others_in_a_list_it_is_told_apart_from_them() -> None:
    parts = AutoGuideList(model)
    parts.append(TiedNormal(pyro.poutine.block(model, hide=["rate"])))
    parts.append(TiedNormal(pyro.poutine.block(model, hide=["weights"])))
    parts()
    with torch.no_grad():
        parts[0].loc.copy_(DATA[:3] / 2)
        parts[1].loc.copy_(DATA[3:] / 2)
    for part in parts:
        part.scale = torch.tensor(math.sqrt(0.5))
    first = reduce_model(parts, {"weights": dist.Normal(0.0, 0.5)})
    second = reduce_model(first.guide, {"rate": dist.LogNormal(0.0, 0.5)})
    torch.testing.assert_close(first.delta_evidence + second.delta_evidence, log_evidence(0.5, 0.5) - log_evidence(1.0))

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A fitted guide, read: plates that are subsampled, and sites that it does not draw."""

from __future__ import annotations

import copy
import math
import threading

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.nn import PyroModule, PyroParam

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.posteriors.reading import read_guide
from tests.programs import NARROW, STANDARD, Y, fit, goes_on, model, one_site

pytestmark = pytest.mark.usefixtures("double")


def test_a_prior_that_depends_on_a_site_summed_out():
    def mixture():
        which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(which, 1.0))

    guide = AutoNormal(pyro.poutine.block(mixture, hide=["which"]))
    guide()
    with pytest.raises(ReductionError, match=r"'z' depends on \['which'\]"):
        reduce_model(guide, {"z": NARROW}, model=mixture)


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


def funnel(y):
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.2))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@pytest.mark.parametrize("reads_values", [False, True])
def test_draws_have_their_own_priors_at_once_and_one_by_one(reads_values):
    runs = []

    def model(y):
        runs.append(None)
        funnel(y)

    def guide(y):
        tau = pyro.sample("tau", dist.LogNormal(0.3, 0.1))
        spread = float(tau) if reads_values else tau
        with pyro.plate("groups", len(y)):
            pyro.sample("theta", dist.Normal(y / 2, spread))

    fitted = read_guide(guide, model, (torch.linspace(-2.0, 2.0, 4),), {})
    assert fitted.sites == {"tau", "theta"}
    pyro.set_rng_seed(0)
    draws = fitted.draw(["tau", "theta"], 500)
    assert len(runs) < 10 or reads_values
    tau, theta = draws.values["tau"], draws.values["theta"]
    assert tau.shape == (500,) and theta.shape == (500, 4) and len(tau.unique()) == 500
    torch.testing.assert_close(draws.priors["tau"].log_prob, dist.LogNormal(0.0, 0.2).log_prob(tau))
    torch.testing.assert_close(draws.priors["theta"].log_prob, dist.Normal(0.0, tau[:, None]).log_prob(theta))
    assert abs(tau.log().mean() - 0.3) < 0.02 and abs(tau.log().std() - 0.1) < 0.01
    standard = (theta - torch.linspace(-1.0, 1.0, 4)) / tau[:, None]
    assert abs(standard.mean()) < 0.1 and abs(standard.std() - 1) < 0.07
    pyro.set_rng_seed(0)
    assert torch.equal(fitted.draw(["tau"], 500).values["theta"], theta)


@pytest.mark.parametrize("guide_type", [AutoNormal, AutoMultivariateNormal, AutoIAFNormal, AutoNormalMessenger])
def test_a_guide_that_was_drawn_from_can_be_copied_and_trained(guide_type):
    y = torch.linspace(-2.0, 2.0, 4)
    guide = fit(funnel, guide_type(funnel), y)
    assert len(read_guide(guide, funnel, (y,), {}).draw((), 100).values["tau"].unique()) == 100
    copy.deepcopy(guide)
    fit(funnel, guide, y)


KINDS = [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormalMessenger]


@torch.no_grad()
def train_on(guide) -> None:
    for parameter in guide.parameters():
        parameter.add_(1.0)


@pytest.mark.parametrize("guide_type", KINDS)
@pytest.mark.parametrize("method", ["auto", "importance"])
def test_a_reduction_stays_as_it_is_when_the_guide_is_trained_on(guide_type, method):
    guide = guide_type(model)
    guide(Y)
    asked = {"weights": NARROW, "bias": NARROW}
    pyro.set_rng_seed(0)
    early = reduce_model(guide, asked, args=(Y,), method=method, num_samples=50)
    pyro.set_rng_seed(0)
    late = reduce_model(guide, asked, args=(Y,), method=method, num_samples=50)
    pyro.set_rng_seed(1)
    expected = early.summary(), early.guide(Y)
    train_on(guide)
    pyro.set_rng_seed(1)
    pd.testing.assert_frame_equal(late.summary(), expected[0])
    drawn = late.guide(Y)
    for name in ("weights", "bias", "scale"):  # the last is not reduced
        torch.testing.assert_close(drawn[name], expected[1][name])


def test_the_parameters_of_a_function_are_kept_too():
    def guide(y):
        pyro.sample("mean", dist.Normal(pyro.param("mean_loc", torch.tensor(0.1)), 0.1))
        pyro.sample("offset", dist.Normal(pyro.param("offset_loc", torch.zeros(3)), 0.3).to_event(1))

    def both(y):
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("offset", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    fit(both, guide, Y, steps=1)
    reduction = reduce_model(guide, {"mean": NARROW}, model=both, args=(Y,))
    before = reduction.elementwise["mean"].detach().clone()
    again = reduce_model(guide, {"mean": NARROW}, model=both, args=(Y,))
    offset = pyro.param("offset_loc").detach().clone()
    with torch.no_grad():
        pyro.param("mean_loc").add_(5.0)
        pyro.param("offset_loc").add_(5.0)
    torch.testing.assert_close(again.elementwise["mean"].detach(), before)
    nodes = pyro.poutine.trace(again.guide).get_trace(Y).nodes
    torch.testing.assert_close(nodes["offset"]["fn"].mean.detach(), offset)


def test_a_reduced_prior_is_taken_as_it_is_stated():
    guide = AutoNormal(one_site)
    guide()
    scale = torch.tensor(0.3)
    reduction = reduce_model(guide, dist.Normal(0.0, scale))
    expected = reduction.delta_evidence.detach().clone()
    scale.mul_(10.0)
    torch.testing.assert_close(reduction.elementwise["z"].detach(), expected)
    assert pyro.poutine.trace(reduction.model).get_trace().nodes["z"]["fn"].scale == pytest.approx(0.3)


def test_a_flow_that_remembers_its_last_run_is_copied():
    guide = AutoIAFNormal(model)
    guide(Y)
    reduction = reduce_model(guide, {"weights": dist.Normal(0.0, 0.9)}, args=(Y,), num_samples=50)
    assert reduction.method == "importance"
    assert reduction.fitted.unreduced_guide(Y)["weights"].shape == (3,)


def test_a_guide_that_remembers_its_last_run_is_copied():
    class Remembers(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroParam(torch.tensor(0.3))

        def forward(self):
            self.last = 2 * self.loc
            return pyro.sample("z", dist.Normal(self.loc, 0.1))

    guide = Remembers()
    reduction = reduce_model(guide, NARROW, model=one_site)
    assert math.isfinite(reduction.guide().detach())
    guide.lock = threading.Lock()
    with pytest.raises(ReductionError, match="cannot be copied"):
        reduce_model(guide, NARROW, model=one_site)

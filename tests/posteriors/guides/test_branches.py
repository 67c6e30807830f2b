# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Guides and models that branch on discrete sites."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.posteriors import read_guide
from pyro_bmrs.posteriors.guides.branches import MOST_BRANCHES, read_branches

pytestmark = pytest.mark.usefixtures("double")

SCALES = (3.0, 0.1, 1.0)


def model():
    """A site whose scale another, in a plate, and a third decide."""
    with pyro.plate("pair", 2):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor([0.5, 0.3])))
    which = pyro.sample("which", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
    scale = SCALES[int(which)] if k.sum() < 2 else 0.5
    pyro.sample("z", dist.Normal(0.0, scale))


def guide():
    which = pyro.sample("which", dist.Categorical(torch.tensor([0.6, 0.3, 0.1])))
    with pyro.plate("pair", 2):
        pyro.sample("k", dist.Bernoulli(0.4 + 0.1 * which.item()))
    pyro.sample("z", dist.Normal(0.1 * float(which), 0.05))


def expected(log_density, reduced_k=None):
    """The mean of r/p over the guide, by a sum over the twelve branches and an integral within each."""
    total = 0.0
    for which, probability in enumerate((0.6, 0.3, 0.1)):
        on = 0.4 + 0.1 * which
        for k in ((0, 0), (0, 1), (1, 0), (1, 1)):
            scale = SCALES[which] if sum(k) < 2 else 0.5
            q = stats.norm(0.1 * which, 0.05)

            def weighted(z, q=q, scale=scale, k=k, which=which):
                return q.pdf(z) * math.exp(log_density(z, which, k) - stats.norm.logpdf(z, 0, scale))

            inside, _ = integrate.quad(weighted, q.mean() - 0.6, q.mean() + 0.6, epsabs=1e-13, points=[q.mean()])
            ratio = 1.0
            for value, prior in zip(k, (0.5, 0.3)):
                ratio *= on if value else 1 - on
                if reduced_k is not None:
                    ratio *= reduced_k / prior if value else (1 - reduced_k) / (1 - prior)
            total += probability * ratio * inside
    return math.log(total)


def test_branches_are_as_probable_as_the_guide_has_them():
    branches = read_branches(read_guide(guide, model), ["z"], {"z": frozenset()})
    assert len(branches) == 12
    assert sum(branch.log_prob.exp() for branch in branches).item() == pytest.approx(1.0)
    (one,) = (b for b in branches if b.values["which"] == 2 and b.values["k"].tolist() == [1.0, 0.0])
    assert one.log_prob.exp().item() == pytest.approx(0.1 * 0.6 * 0.4)
    assert one.fitted.sites == {"z"} and one.fitted.prior("z").scale == 1.0


def test_the_change_is_the_sum_over_the_branches():
    reduction = reduce_model(guide, {"z": dist.Normal(0.0, 0.08)}, model=model)
    truth = expected(lambda z, *_: stats.norm.logpdf(z, 0, 0.08))
    assert reduction.method == "exact"
    assert reduction.delta_evidence.item() == pytest.approx(truth, abs=1e-9)
    assert reduction.elementwise["z"].item() == pytest.approx(truth, abs=1e-9)


def test_a_reduced_prior_may_depend_on_the_branch_and_the_branch_be_reduced_too():
    def reduced_prior():
        with pyro.plate("pair", 2):
            k = pyro.sample("k", dist.Bernoulli(0.1))
        pyro.sample("z", dist.Normal(0.0, 0.05 + 0.02 * k.sum()))

    reduction = reduce_model(guide, reduced_prior, model=model)
    truth = expected(lambda z, which, k: stats.norm.logpdf(z, 0, 0.05 + 0.02 * sum(k)), reduced_k=0.1)
    assert reduction.method == "exact"
    assert reduction.delta_evidence.item() == pytest.approx(truth, abs=1e-9)
    assert reduction.elementwise["k"].shape == (2,)


def test_the_reduced_guide_has_the_branches_of_the_reduced_posterior():
    first = reduce_model(guide, {"z": dist.Normal(0.0, 0.2)}, model=model)
    again = reduce_model(first.guide, {"z": dist.Normal(0.0, 0.08)}, model=first.model)
    at_once = reduce_model(guide, {"z": dist.Normal(0.0, 0.08)}, model=model)
    assert again.method == "exact"
    torch.testing.assert_close(again.delta_evidence + first.delta_evidence, at_once.delta_evidence)
    pyro.set_rng_seed(0)
    traces = [pyro.poutine.trace(at_once.guide).get_trace() for _ in range(300)]
    draws = torch.stack([trace.nodes["z"]["value"].detach() for trace in traces])
    assert abs(draws.mean() - at_once.posterior["z"].mean) < 4 * draws.std() / 300**0.5
    assert list(at_once.summary().index) == ["z"]
    loss = pyro.infer.SVI(at_once.model, at_once.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    assert all(math.isfinite(loss.step()) for _ in range(3))


def test_what_depends_on_a_continuum_is_drawn():
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.5))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 0.1))
        pyro.sample("z", dist.Normal(0.0, tau if k else 1.0))

    def guide():
        pyro.sample("tau", dist.LogNormal(0.0, 0.05))
        pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("z", dist.Normal(0.0, 0.1))

    fitted = read_guide(guide, model)
    assert read_branches(fitted, ["z"], {"z": frozenset()}) is None
    assert reduce_model(guide, {"z": dist.Normal(0.0, 0.9)}, model=model, num_samples=50).method == "importance"


def test_too_many_branches_are_drawn():
    size = MOST_BRANCHES.bit_length()

    def both(z):
        with pyro.plate("many", size):
            k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("z", dist.Normal(0.0, z + float(k.sum())))

    def model():
        both(1.0)

    def guide():
        both(0.5)

    assert read_branches(read_guide(guide, model), ["z"], {"z": frozenset()}) is None


def test_a_site_of_some_branches_is_refused_whichever_a_run_takes():
    def model():
        k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
        if k < 2:
            pyro.sample("z", dist.Normal(0.0, 1.0 + float(k)))

    def guide():
        if pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.4, 0.1]))) < 2:
            pyro.sample("z", dist.Normal(0.0, 0.1))

    for seed in range(3):
        pyro.set_rng_seed(seed)
        with pytest.raises(ReductionError, match="'z' in some runs and lacks it|no latent site 'z'"):
            reduce_model(guide, {"z": dist.Normal(0.0, 0.3)}, model=model)

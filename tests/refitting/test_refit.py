# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Refitting: right where the answer is known exactly, and telling where reduction misleads."""

from __future__ import annotations

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from torch.distributions import constraints, kl_divergence

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model
from pyro_bmrs.refitting.checkpoints import Checkpoint
from pyro_bmrs.refitting.refit import refit
from pyro_bmrs.refitting.training import Training
from tests import conjugate
from tests.exact_guides import exact_guide, put_posterior

pytestmark = pytest.mark.usefixtures("double")

SMALL = {"num_particles": 100}

# Where a few steps are enough for what a test looks at.
few_steps = pytest.mark.filterwarnings(
    "ignore:the refit had not converged", "ignore:the fitted guide had not converged"
)


def parameters(guide):
    return {name: value.detach().clone() for name, value in guide.named_parameters()}


# --- where the answer is known ----------------------------------------------------------------------------------------


def test_the_change_in_elbo_of_a_joint_guide_is_that_of_the_exact_log_evidence():
    guide, x, y = exact_guide()
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 0.1)})
    check = refit(conjugate.model, guide, reduction, **SMALL)
    loc, scale = conjugate.prior(4)
    before = conjugate.log_evidence(x, y, loc, scale)
    loc[2:], scale[2:] = 0.0, 0.1
    truth = float(conjugate.log_evidence(x, y, loc, scale) - before)
    assert check.delta_evidence == pytest.approx(truth, abs=1e-9)
    # An exact guide's ELBO is the evidence at every draw.
    assert check.initial_delta_elbo == pytest.approx(truth, abs=1e-8)
    assert check.initial_standard_error < 1e-8
    assert abs(check.delta_elbo - truth) <= 3 * check.standard_error + 1e-8
    assert check.discrepancy == check.delta_elbo - check.delta_evidence
    assert max(check.divergence.values()) < 0.05
    assert check.converged


@pytest.mark.no_cover
def test_a_guide_begun_far_off_finds_the_exact_evidence_and_posterior():
    guide, x, y = exact_guide()
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 0.1)})
    start = AutoMultivariateNormal(reduction.model, init_scale=0.3)
    start(x, y)
    check = refit(conjugate.model, guide, reduction, start=start)
    assert check.guide is start
    assert check.initial_delta_elbo < check.delta_evidence - 1
    assert check.delta_elbo == pytest.approx(check.delta_evidence, abs=3 * check.standard_error + 0.05)
    scale = conjugate.prior(4)[1]
    scale[2:] = 0.1
    posterior = conjugate.exact_posterior(x, y, torch.zeros(4), scale)
    assert kl_divergence(start.get_posterior(), posterior) < 0.1


@few_steps
def test_the_divergence_is_that_of_the_posteriors():
    guide, *args = exact_guide(AutoNormal)
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 0.1)})
    check = refit(conjugate.model, guide, reduction, max_steps=50, **SMALL)
    refitted = reduce_model(check.guide, {"first": dist.Normal(0.0, 1.0)}, model=check.model).posterior
    for name in ("first", "rest"):
        expected = kl_divergence(refitted[name], reduction.posterior[name]).sum()
        assert check.divergence[name] == pytest.approx(float(expected.detach()), rel=1e-9)
        assert check.divergence_error[name] == 0.0


# --- where reduction misleads -----------------------------------------------------------------------------------------


def correlated():
    """Two covariates nearly alike: either does the work of both, which a mean-field guide cannot know."""
    x = torch.randn(60, 2)
    x[:, 1] = x[:, 0] + 0.2 * x[:, 1]
    y = x.sum(-1) + 0.5 * torch.randn(60)

    def model(x, y):
        weights = [pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("first", "rest")]
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ torch.stack(weights), 0.5), obs=y)

    posterior = torch.distributions.MultivariateNormal(
        torch.linalg.solve(x.T @ x / 0.25 + torch.eye(2), x.T @ y / 0.25),
        precision_matrix=x.T @ x / 0.25 + torch.eye(2),
    )
    return model, x, y, posterior


@pytest.mark.no_cover
def test_the_check_shows_that_mean_field_misleads_where_covariates_are_correlated():
    model, x, y, posterior = correlated()
    guide = put_posterior(AutoNormal(model), posterior, x, y)
    without = {"rest": dist.Delta(torch.tensor(0.0))}
    check = refit(model, guide, reduce_model(guide, without), **SMALL)
    # Mean field thinks that the first covariate cannot take over from the second.
    assert check.delta_evidence < -50
    assert check.discrepancy > 50
    assert check.divergence["first"] > 10

    joint = put_posterior(AutoMultivariateNormal(model), posterior, x, y)
    fair = refit(model, joint, reduce_model(joint, without), **SMALL)
    assert abs(fair.discrepancy) < 0.1
    assert sum(fair.divergence.values()) < 0.01
    # The one left over is a single normal, which mean field can be: the same ELBO of the reduced model is the evidence.
    assert check.delta_elbo > fair.delta_elbo
    assert "ΔELBO" in repr(check) and "'first'" in repr(check)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.no_cover
def test_a_reduced_posterior_a_thousand_times_narrower_stays_where_it_is(kind):
    guide, *args = exact_guide(kind)
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 1e-3)})
    check = refit(conjugate.model, guide, reduction, **SMALL)
    assert check.delta_elbo + check.fit_gain >= check.initial_delta_elbo
    assert check.divergence["rest"] < 0.1
    assert check.num_steps < 2000


@pytest.mark.no_cover
def test_a_narrow_posterior_is_found_again_from_five_standard_deviations_away():
    guide, *args = exact_guide(AutoNormal)
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 1e-5)})
    with torch.no_grad():
        reduction.guide.statements[0].loc += 5e-5
    check = refit(conjugate.model, guide, reduction, start=reduction.guide, **SMALL)
    assert check.initial_delta_elbo < check.delta_evidence - 20
    assert check.delta_elbo > check.delta_evidence - 0.5


# --- every kind of reduction ------------------------------------------------------------------------------------------


def hierarchy(y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
    with pyro.plate("groups", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(effect, 0.3), obs=y)


def fit(model, guide, *args, steps=400, loss=None):
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.1 ** (1 / steps)}), loss or Trace_ELBO())
    for _ in range(steps):
        svi.step(*args)
    return guide


@few_steps
@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_a_reduction_by_draws_goes_on_from_the_moments_of_its_draws(kind):
    y = torch.tensor([0.9, -1.1, 0.4, -0.2])
    guide = fit(hierarchy, kind(hierarchy), y, steps=150)
    # The prior of the effects depends on the scale.
    reduction = reduce_model(guide, lambda: pyro.sample("effect", dist.Normal(torch.zeros(4), 0.8)), num_samples=500)
    assert reduction.method == "importance"
    check = refit(hierarchy, guide, reduction, max_steps=50, **SMALL)
    assert type(check.guide) is kind
    assert check.divergence.keys() == {"scale", "effect"}
    assert check.delta_elbo + check.fit_gain >= check.initial_delta_elbo
    # The weighted draws' mean and spread of each effect are what it began with.
    posterior = dist.Normal(y / 0.09 / (1 / 0.64 + 1 / 0.09), (1 / 0.64 + 1 / 0.09) ** -0.5)
    draws = reduction.posterior["effect"]
    assert torch.allclose(draws.mean, posterior.mean, atol=0.15)
    effect = reduce_model(check.guide, {"scale": dist.LogNormal(0.0, 0.1)}, model=check.model, args=(y,)).posterior
    assert torch.allclose(effect["effect"].mean, posterior.mean, atol=0.1)


@few_steps
def test_a_reduction_by_draws_from_a_guide_that_moments_do_not_determine_needs_a_start():
    y = torch.tensor([0.9, -1.1])
    guide = fit(hierarchy, AutoIAFNormal(hierarchy), y, steps=5)
    reduction = reduce_model(guide, {"scale": dist.LogNormal(0.0, 0.05)}, num_samples=50)
    with pytest.raises(ReductionError, match="start=, a guide of your own"):
        refit(hierarchy, guide, reduction)
    start = fit(reduction.model, AutoIAFNormal(reduction.model), y, steps=5)
    check = refit(hierarchy, guide, reduction, start=start, max_steps=20, learning_rates=(0.001,), **SMALL)
    assert check.guide is start and check.divergence == {}
    assert len(check.summary()) == 0


def test_too_few_weighted_draws_for_a_covariance_say_so():
    y = torch.tensor([0.9, -1.1, 0.4, -0.2])
    guide = fit(hierarchy, AutoMultivariateNormal(hierarchy), y, steps=5)
    with pytest.warns(ReductionWarning):
        reduction = reduce_model(
            guide, {"effect": dist.Normal(torch.zeros(4), 0.7)}, num_samples=3, method="importance"
        )
    with pytest.raises(ReductionError, match="num_samples="):
        refit(hierarchy, guide, reduction)


@few_steps
@pytest.mark.parametrize(
    "kind", [AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoLaplaceApproximation]
)
@pytest.mark.parametrize("point", [True, False])
@pytest.mark.filterwarnings("ignore:The Laplace approximation was made away")  # none of these guides is fitted
def test_every_guide_of_a_known_density_can_be_refitted_where_some_elements_are_reduced(kind, point):
    x, y = conjugate.data()
    guide = fit(conjugate.model, kind(conjugate.model), x, y, steps=20)
    rest = dist.MaskedMixture(
        torch.tensor([False, True]),
        dist.Normal(torch.full((2,), 0.2), 2.0),
        dist.Delta(torch.zeros(2)) if point else dist.Normal(torch.zeros(2), 0.1),
    )
    reduction = reduce_model(guide, {"rest": rest}, args=(x, y))
    check = refit(conjugate.model, guide, reduction, max_steps=20, learning_rates=(0.1,), num_particles=20)
    assert math.isfinite(check.delta_elbo)
    assert check.delta_elbo + check.fit_gain >= check.initial_delta_elbo
    drawn = [poutine.trace(check.guide).get_trace(x, y).nodes["rest"]["value"] for _ in range(3)]
    assert all(point == bool(values[1] == 0) and values[0] != 0 for values in drawn)


@few_steps
@pytest.mark.no_cover
def test_sites_that_are_summed_out_need_their_elbo():
    y = torch.cat([torch.randn(20) - 2, torch.randn(20) + 2])

    def mixture(y):
        centres = pyro.sample("centres", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("data", len(y)):
            side = pyro.sample("side", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(torch.where(side > 0, centres[1], centres[0]), 1.0), obs=y)

    model = config_enumerate(mixture)
    guide = AutoNormal(
        pyro.poutine.block(model, hide=["side"]),
        init_loc_fn=pyro.infer.autoguide.init_to_value(values={"centres": torch.tensor([-2.0, 2.0])}),
    )
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    fit(model, guide, y, steps=150, loss=loss)
    reduction = reduce_model(guide, {"centres": dist.Normal(0.0, 2.0)}, model=model)
    check = refit(model, guide, reduction, loss=loss, max_steps=100, num_particles=50)
    assert abs(check.discrepancy) < 0.5


@few_steps
def test_parameters_of_the_model_stay_as_they_were_fitted():
    def model(y):
        noise = pyro.param("noise", torch.tensor(0.5), constraint=constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)

    y = torch.tensor([2.3, 1.2, 0.4, 1.1])
    guide = fit(model, AutoNormal(model), y, steps=100)
    before = pyro.param("noise").detach().clone()
    check = refit(model, guide, reduce_model(guide, dist.Normal(0.0, 0.1)), max_steps=50, **SMALL)
    assert check.divergence["mean"] > 0
    assert torch.equal(pyro.param("noise"), before)


def test_a_guide_written_by_hand():
    y = torch.tensor([0.9, -1.1, 0.4, -0.2])

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.3))
        pyro.sample("mean", dist.Normal(loc, pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)))

    fit(model, guide, y, steps=200)
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    reduction = reduce_model(guide, dist.Normal(0.0, 0.2), model=model, args=(y,))
    check = refit(model, guide, reduction, **SMALL)
    assert abs(check.discrepancy) < 0.05
    assert all(torch.equal(pyro.param(name), value) for name, value in before.items())


# --- what is left alone -----------------------------------------------------------------------------------------------


@few_steps
def test_the_fitted_guide_the_reduction_and_the_random_numbers_are_left_alone():
    guide, x, y = exact_guide(AutoNormal)
    reduction = reduce_model(guide, {"rest": dist.Delta(torch.zeros(2))})
    reduced = parameters(reduction.guide)
    fitted, store = parameters(guide), {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    refit(conjugate.model, guide, reduction, max_steps=30, learning_rates=(0.1,), num_particles=10)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
    for now, then in ((parameters(guide), fitted), (parameters(reduction.guide), reduced)):
        assert now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in then)
    assert all(torch.equal(pyro.param(name), value) for name, value in store.items())


@few_steps
@pytest.mark.no_cover
def test_one_seed_gives_one_answer_and_another_seed_another():
    guide, x, y = exact_guide(AutoNormal)
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 0.1)})
    options = {"max_steps": 30, "learning_rates": (0.1,), "num_particles": 10}
    checks = []
    for seed in (3, 3, 2**32 + 5):
        torch.rand(7)  # whatever the global generator has been at
        checks.append(refit(conjugate.model, guide, reduction, seed=seed, **options))
    one, again, other = checks
    assert (one.delta_elbo, one.divergence, one.num_steps) == (again.delta_elbo, again.divergence, again.num_steps)
    assert one.delta_elbo != other.delta_elbo


@few_steps
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.no_cover
def test_it_stays_in_the_dtype_of_the_guide(dtype):
    torch.set_default_dtype(dtype)
    y = torch.tensor([0.3, -0.2, 0.4, 0.1])

    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean.sum(-1), 1.0), obs=y)

    guide = fit(model, AutoMultivariateNormal(model), y, steps=200)
    check = refit(model, guide, reduce_model(guide, dist.Normal(0.0, 1e-3)), num_particles=50, max_steps=200)
    assert all(value.dtype == dtype for value in check.guide.parameters())
    assert abs(check.discrepancy) < 0.5


@few_steps
def test_progress_is_shown_where_asked(capsys):
    guide, x, y = exact_guide(AutoNormal)
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 0.1)})
    options = {"max_steps": 10, "window": 10, "learning_rates": (0.1,), "num_particles": 2}
    refit(conjugate.model, guide, reduction, **options)
    assert capsys.readouterr().err == ""
    refit(conjugate.model, guide, reduction, progress=True, **options)
    assert "refitting" in capsys.readouterr().err


@few_steps
def test_the_summary_has_a_row_for_each_site():
    guide, x, y = exact_guide(AutoNormal)
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 0.1)})
    check = refit(conjugate.model, guide, reduction, max_steps=10, learning_rates=(0.1,), num_particles=2)
    table = check.summary()
    assert list(table.index) == ["first", "rest"]
    assert table["divergence"].to_dict() == check.divergence


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_a_refit_that_is_not_done_warns():
    model, x, y, posterior = correlated()
    guide = put_posterior(AutoNormal(model), posterior, x, y)
    reduction = reduce_model(guide, {"rest": dist.Delta(torch.tensor(0.0))})
    with pytest.warns(ReductionWarning, match="not converged after 20 steps"):
        check = refit(model, guide, reduction, window=10, max_steps=20, num_particles=10)
    assert not check.converged and check.num_steps == 20
    assert "not converged" in repr(check)


@pytest.fixture(scope="module")
def reduced():
    torch.set_default_dtype(torch.float64)
    guide, *_ = exact_guide(AutoNormal)
    return guide, reduce_model(guide, {"rest": dist.Normal(0.0, 0.1)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rates": (-0.1,)}, "learning_rates must be positive"),
        ({"learning_rates": (math.nan,)}, "learning_rates must be positive"),
        ({"learning_rates": (math.inf,)}, "learning_rates must be positive"),
        ({"learning_rates": ()}, "at least one"),
        ({"learning_rates": 0.1}, "learning_rates must be positive"),
        ({"window": 0}, "window must be an integer, at least 1"),
        ({"max_steps": 1.5}, "max_steps must be an integer"),
        ({"num_particles": 1}, "num_particles must be an integer, at least 2"),
        ({"seed": -1}, "seed must be an integer, at least 0"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"tolerance": math.nan}, "tolerance must be"),
        ({"loss": "elbo"}, "loss must be an ELBO"),
    ],
)
def test_settings_that_are_none(reduced, options, message):
    with pytest.raises(ReductionError, match=message):
        refit(conjugate.model, *reduced, **options)


def test_another_guide_or_model_than_the_reductions(reduced):
    guide, reduction = reduced
    other, *_ = exact_guide(AutoNormal)
    with pytest.raises(ReductionError, match="another guide"):
        refit(conjugate.model, other, reduction)
    with pytest.raises(ReductionError, match="latent sites"):
        refit(lambda x, y: pyro.sample("other", dist.Normal(0.0, 1.0)), guide, reduction)
    with pytest.raises(ReductionError, match="pass what reduce_model returns"):
        refit(conjugate.model, guide, {"rest": dist.Normal(0.0, 0.1)})


def test_draws_of_mcmc_have_no_elbo_to_compare_with():
    def model():
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    mcmc = MCMC(NUTS(model), num_samples=600, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    reduction = reduce_model(mcmc, dist.Normal(0.0, 0.9))
    with pytest.raises(ReductionError, match="reduction of draws"):
        refit(model, mcmc, reduction)


def test_an_elbo_that_is_not_finite_says_so():
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("half", torch.where(mean > 0, 0.0, -math.inf))

    guide = AutoNormal(model)
    guide()
    reduction = reduce_model(guide, dist.Normal(0.0, 0.5))
    with pytest.raises(ReductionError, match="ELBO is NaN or infinite at"):
        refit(model, guide, reduction)


@few_steps
def test_gradients_are_switched_on_where_the_caller_has_none(exact_guide):
    guide, x, y = exact_guide(AutoNormal)
    settings = {"max_steps": 20, "window": 10, "num_particles": 10}
    prior = {"rest": dist.Delta(torch.tensor(0.0))}
    expected = refit(conjugate.model, guide, reduce_model(guide, prior), **settings)
    with torch.no_grad():
        found = refit(conjugate.model, guide, reduce_model(guide, prior), **settings)
        assert not torch.is_grad_enabled()
    assert found.delta_elbo == expected.delta_elbo != found.initial_delta_elbo


class Amortised(torch.nn.Module):
    """A model and its guide as methods of one module."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Linear(1, 1)

    def model(self, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(self, y):
        encoder = pyro.module("encoder", self.loc)
        pyro.sample("mean", dist.Normal(encoder(y.mean().reshape(1)).squeeze(), 0.4))


@few_steps
def test_a_guide_that_is_a_method():
    both, y = Amortised(), torch.tensor([0.3, -0.2, 0.4])
    both.guide(y)
    reduction = reduce_model(both.guide, {"mean": dist.Normal(0.0, 0.5)}, model=both.model, args=(y,))
    result = refit(both.model, both.guide, reduction, max_steps=1, num_particles=10)
    assert math.isfinite(result.delta_elbo)
    with pytest.raises(ReductionError, match="another guide"):
        refit(both.model, Amortised().guide, reduction)


# --- after importance sampling inside one factor ----------------------------------------------------------------------


def shares(counts):
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    pyro.sample("counts", dist.Multinomial(20, share), obs=counts)


@few_steps
@pytest.mark.parametrize("guide_type", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_weighted_draws_of_a_factor_are_refitted_from_their_moments(guide_type):
    counts = torch.tensor([12.0, 5.0, 3.0])
    guide = guide_type(shares, init_loc_fn=init_to_value(values={"share": (counts + 1) / 23}), init_scale=0.3)
    guide(counts)
    pyro.set_rng_seed(0)
    reduction = reduce_model(guide, {"share": dist.Dirichlet(torch.full((3,), 2.0))})
    assert reduction.method == "importance"
    result = refit(shares, guide, reduction, max_steps=1, num_particles=200)
    assert type(result.guide) is guide_type
    # Two normals in unconstrained coordinates, each near its posterior.
    assert result.initial_delta_elbo == pytest.approx(reduction.delta_evidence.item(), abs=0.4)
    assert reduction.guide(counts)["share"].sum().item() == pytest.approx(1.0)
    again = reduce_model(reduction.guide, {"share": dist.Dirichlet(torch.full((3,), 2.5))}, num_samples=200)
    assert again.method == "importance"


@few_steps
def test_a_site_with_an_improper_prior_beside_the_reduced_one():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        log_scale = pyro.sample("log_scale", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, log_scale.exp()), obs=y)

    y = torch.tensor([0.3, -0.2, 0.4])
    guide = AutoNormal(
        model, init_loc_fn=init_to_value(values={"loc": torch.tensor(0.2), "log_scale": torch.zeros(())})
    )
    guide(y)
    result = refit(model, guide, reduce_model(guide, {"loc": dist.Normal(0.0, 0.5)}), max_steps=1, num_particles=10)
    assert math.isfinite(result.delta_elbo)


def test_an_elbo_that_does_not_sum_over_what_the_guide_leaves_out_is_refused():
    @config_enumerate
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.4))
            pyro.sample("y", dist.Normal(mean * k, 0.5), obs=y)

    y = torch.tensor([1.0, 1.2])
    guide = fit(model, AutoNormal(pyro.poutine.block(model, hide=["k"])), y, steps=2, loss=TraceEnum_ELBO())
    reduction = reduce_model(guide, {"mean": dist.Normal(0.0, 1.0)}, model=model, args=(y,))
    with pytest.raises(ReductionError, match=r"\['k'\] to be summed out, and Trace_ELBO draws them.*TraceEnum_ELBO"):
        refit(model, guide, reduction)


# --- interrupted ------------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """As a keyboard does it."""


WINDOWS = {"window": 10, "max_steps": 40, "num_particles": 10, "tolerance": 0.0}


@few_steps
def test_an_interrupted_refit_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    guide, _, _ = exact_guide(AutoNormal)
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 0.1)})
    whole = refit(conjugate.model, guide, reduction, **WINDOWS)
    path, advance, windows = tmp_path / "refit.pt", Training.advance, []

    def interrupted(self):
        if len(windows) == 2:
            raise Interrupted
        windows.append(self.num_steps)
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", interrupted)
        with pytest.raises(Interrupted):
            refit(conjugate.model, guide, reduction, checkpoint=path, **WINDOWS)
    assert windows == [0, 10]
    kept = path.read_bytes()
    with pytest.raises(ReductionError, match="another task: its settings differ"):
        refit(conjugate.model, guide, reduction, checkpoint=path, **WINDOWS | {"seed": 1})
    with pytest.raises(ReductionError, match="no checkpoint of an iterated reduction"):
        Checkpoint(path).read({})
    assert path.read_bytes() == kept
    again = refit(conjugate.model, guide, reduction, checkpoint=path, **WINDOWS)
    assert (again.delta_elbo, again.num_steps, again.divergence) == (
        whole.delta_elbo,
        whole.num_steps,
        whole.divergence,
    )
    for name, value in parameters(whole.guide).items():
        assert torch.equal(parameters(again.guide)[name], value)


# --- what the fit itself had left undone ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the refit had not converged")
def test_a_null_reduction_changes_nothing_also_where_the_fit_had_not_converged():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + b, 0.3).expand([4]).to_event(1), obs=y)

    guide = fit(model, AutoNormal(model), torch.tensor([1.0, 1.2, 0.9, 1.1]), steps=3)
    reduction = reduce_model(guide, {"a": dist.Normal(0.0, 1.0)}, check=False)
    assert reduction.delta_evidence.item() == pytest.approx(0.0, abs=1e-9)
    with pytest.warns(ReductionWarning, match="the fitted guide had not converged: more steps raise its own ELBO by"):
        check = refit(model, guide, reduction, max_steps=40, window=20, num_particles=30)
    assert check.fit_gain > 1 and "the fitted guide had not converged" in repr(check)
    assert check.initial_delta_elbo == pytest.approx(0.0, abs=1e-9)
    assert check.delta_elbo == pytest.approx(0.0, abs=0.1)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import math
import pickle

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from torch import Tensor

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model, refit
from pyro_bmrs.arviz_adapter import to_arviz
from tests import conjugate
from tests.programs import NARROW, fit

pytestmark = pytest.mark.usefixtures("double")

MEAN_FIELD = [AutoNormal, AutoDiagonalNormal, AutoNormalMessenger]
JOINT = [AutoMultivariateNormal, AutoLowRankMultivariateNormal]


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [("first",), ("rest",), ("first", "rest")])
@pytest.mark.parametrize("scale", [0.5, 0.01])
def test_conjugate_regression_is_the_difference_of_exact_evidences(exact_guide, sites, scale):
    guide, x, y = exact_guide()
    loc, prior_scale = conjugate.prior(4)
    reduced_loc, reduced_scale = loc.clone(), prior_scale.clone()
    for name, columns in {"first": slice(0, 2), "rest": slice(2, 4)}.items():
        if name in sites:
            reduced_loc[columns], reduced_scale[columns] = 0.1, scale
    reduction = reduce_model(guide, {name: dist.Normal(0.1, scale) for name in sites})
    expected = conjugate.log_evidence(x, y, reduced_loc, reduced_scale) - conjugate.log_evidence(x, y, loc, prior_scale)
    assert reduction.method == "exact"
    assert reduction.delta_evidence.item() == pytest.approx(expected.item(), abs=1e-8)

    posterior = conjugate.exact_posterior(x, y, reduced_loc, reduced_scale)
    means = torch.cat([reduction.posterior["first"].mean, reduction.posterior["rest"].mean])
    deviations = torch.cat([reduction.posterior["first"].stddev, reduction.posterior["rest"].stddev])
    torch.testing.assert_close(means, posterior.mean, atol=1e-9, rtol=1e-8)
    torch.testing.assert_close(deviations, posterior.stddev, atol=1e-9, rtol=1e-8)


def test_a_point_is_the_evidence_without_the_covariate(exact_guide):
    guide, x, y = exact_guide()
    loc, scale = conjugate.prior(4)
    reduction = reduce_model(guide, {"rest": dist.Delta(torch.zeros(2))})
    expected = conjugate.log_evidence(x[:, :2], y, loc[:2], scale[:2]) - conjugate.log_evidence(x, y, loc, scale)
    assert reduction.delta_evidence.item() == pytest.approx(expected.item(), abs=1e-8)
    posterior = conjugate.exact_posterior(x[:, :2], y, loc[:2], scale[:2])
    torch.testing.assert_close(reduction.posterior["first"].mean, posterior.mean)
    torch.testing.assert_close(reduction.posterior["first"].stddev, posterior.stddev)
    assert (reduction.posterior["rest"].mean == 0).all()


def test_a_point_and_a_normal_together(exact_guide):
    guide, x, y = exact_guide()
    loc, scale = conjugate.prior(4)
    reduction = reduce_model(guide, {"rest": dist.Delta(torch.tensor(0.0)), "first": dist.Normal(0.0, 0.3)})
    reduced_scale = torch.full((2,), 0.3)
    expected = conjugate.log_evidence(x[:, :2], y, loc[:2], reduced_scale) - conjugate.log_evidence(x, y, loc, scale)
    assert reduction.delta_evidence.item() == pytest.approx(expected.item(), abs=1e-8)
    posterior = conjugate.exact_posterior(x[:, :2], y, loc[:2], reduced_scale)
    torch.testing.assert_close(reduction.posterior["first"].mean, posterior.mean)


# --- every kind of guide ----------------------------------------------------------------------------------------------


def positive_model(x: Tensor, y: Tensor | None = None) -> None:
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(x.new_tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x[:, :3] * weights).sum(-1), scale), obs=y)


REDUCED_PRIORS = {
    "normal": {"weights": lambda: dist.Normal(0.0, 0.3)},
    "truncated": {"weights": lambda: dist.Uniform(-0.5, 1.5)},
    "positive": {"scale": lambda: dist.LogNormal(-0.3, 0.2)},
    "point": {"scale": lambda: dist.Delta(torch.tensor(0.8))},
    "other family": {"scale": lambda: dist.Gamma(6.0, 6.0)},
    "both": {"scale": lambda: dist.LogNormal(-0.3, 0.2), "weights": lambda: dist.Normal(0.0, 0.3)},
    "point of one": {"scale": lambda: dist.LogNormal(-0.3, 0.2), "weights": lambda: dist.Delta(torch.zeros(3))},
}


PRIORS = {"weights": lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1), "scale": lambda: dist.LogNormal(0.0, 1.0)}


@torch.no_grad()
def monte_carlo(guide, reduced_priors, x, y, num_samples=100_000) -> tuple[float, float]:
    """log E_q[r/p] by plain averaging over the guide's draws, and its standard error."""
    with pyro.plate("draws", num_samples, dim=-2):
        values = guide(x, y)
    log_ratio = torch.zeros(num_samples)
    for name, reduced_prior in reduced_priors.items():
        value = values[name].squeeze(1)
        r = reduced_prior()
        with pyro.validation_enabled(False):
            inside = r.support.check(value).reshape(num_samples, -1).all(-1)
            log_r = r.log_prob(value).reshape(num_samples, -1).sum(-1)
        log_r = torch.where(inside, log_r, -torch.inf)
        log_ratio += log_r - PRIORS[name]().log_prob(value)
    ratio = log_ratio.exp()
    return ratio.mean().log().item(), (ratio.std() / math.sqrt(num_samples) / ratio.mean()).item()


def savage_dickey(guide, reduced_priors, x, y) -> float:
    """Density ratio at a point of the scale, from the guide's own normal in log space."""
    point = reduced_priors["scale"]().v
    if isinstance(guide, AutoNormal):
        loc, scale = guide.locs.scale, guide.scales.scale
    elif isinstance(guide, AutoNormalMessenger):
        loc, scale = guide.locs.scale, guide.scales.scale
    else:
        loc, scale = guide.get_posterior().mean[-1], guide.get_posterior().stddev[-1]
    return (dist.LogNormal(loc, scale).log_prob(point) - dist.LogNormal(0.0, 1.0).log_prob(point)).item()


@pytest.fixture(scope="module")
def fitted_positive_guide():
    """Fits a guide once for all tests: it, the density that it stands for, and the data."""
    fits = {}

    def fitted(guide_type):
        if guide_type not in fits:
            x, y = conjugate.data()
            guide = fit(positive_model, guide_type(positive_model), x, y, steps=400)
            density = guide.laplace_approximation(x, y) if guide_type is AutoLaplaceApproximation else guide
            fits[guide_type] = guide, density, x, y
        # Whichever test is the first.
        pyro.set_rng_seed(0)
        return fits[guide_type]

    return fitted


@pytest.mark.parametrize("guide_type", [*MEAN_FIELD, *JOINT, AutoLaplaceApproximation])
def test_every_autoguide_agrees_with_plain_monte_carlo_and_goes_on(fitted_positive_guide, guide_type):
    guide, density, x, y = fitted_positive_guide(guide_type)
    for label, reduced_priors in REDUCED_PRIORS.items():
        stated = {name: make() for name, make in reduced_priors.items()}
        reduction = reduce_model(guide, stated, args=(x, y))
        assert reduction.delta_evidence.shape == ()
        if label == "point":
            assert reduction.delta_evidence.item() == pytest.approx(
                savage_dickey(density, reduced_priors, x, y), abs=1e-9
            )
        elif "point" not in label:
            expected, error = monte_carlo(density, reduced_priors, x, y)
            # Where the reduction is an estimate too, the two errors are independent.
            spread = math.hypot(error, 0.0 if reduction.standard_error is None else reduction.standard_error.item())
            assert abs(reduction.delta_evidence.item() - expected) < 5 * spread + 1e-6, label
        check_goes_on(reduction, density, x, y)


def check_goes_on(reduction, fitted, x, y):
    """The reduced guide and model run in Predictive and SVI, and leave the fitted guide's parameters alone."""
    draws = Predictive(reduction.model, guide=reduction.guide, num_samples=5)(x)
    assert draws["y"].shape == (5, len(x))
    before = {name: value.detach().clone() for name, value in fitted.named_parameters()}
    svi = SVI(reduction.model, reduction.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(x, y)) for _ in range(3))
    for name, value in fitted.named_parameters():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("guide_type", [*MEAN_FIELD, AutoMultivariateNormal])
def test_predictive_draws_have_the_moments_of_the_reduced_posterior(fitted_positive_guide, guide_type):
    guide, _, x, y = fitted_positive_guide(guide_type)
    reduction = reduce_model(guide, {"weights": dist.Normal(0.0, 0.3)}, args=(x, y))
    draws = Predictive(reduction.model, guide=reduction.guide, num_samples=400, return_sites=("weights",))(x)["weights"]
    posterior = reduction.posterior["weights"]
    error = posterior.stddev / math.sqrt(400)
    assert ((draws.reshape(400, 3).mean(0) - posterior.mean).abs() < 3 * error).all()


def test_more_svi_improves_the_reduced_elbo(fitted_positive_guide):
    guide, _, x, y = fitted_positive_guide(AutoNormal)
    reduction = reduce_model(guide, {"weights": dist.Normal(0.0, 0.05)}, args=(x, y))

    def elbo() -> float:
        return -Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1).loss(
            reduction.model, reduction.guide, x, y
        )

    before = elbo()
    svi = SVI(reduction.model, reduction.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(500):
        svi.step(x, y)
    assert elbo() > before


def test_a_flow_is_reduced_by_importance_sampling():
    x, y = conjugate.data()
    guide = fit(conjugate.model, AutoIAFNormal(conjugate.model, hidden_dim=[8]), x, y, steps=20)
    reduction = reduce_model(guide, {"first": dist.Normal(0.2, 0.9)}, args=(x, y), num_samples=2000)
    assert reduction.method == "importance"
    assert reduction.standard_error > 0 and reduction.pareto_k is not None
    draws = Predictive(reduction.model, guide=reduction.guide, num_samples=4)(x)
    assert draws["y"].shape == (4, len(x))


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide_type", [AutoNormal, AutoMultivariateNormal])
def test_the_evidence_backpropagates_to_the_reduced_priors_parameters(fitted_positive_guide, guide_type):
    guide, _, x, y = fitted_positive_guide(guide_type)

    def delta(loc: Tensor, log_scale: Tensor) -> Tensor:
        return reduce_model(guide, {"weights": dist.Normal(loc, log_scale.exp())}).delta_evidence

    arguments = torch.tensor(0.1, requires_grad=True), torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    assert torch.autograd.gradcheck(delta, arguments)
    reduce_model(guide, {"weights": dist.Normal(0.0, 0.1)}).delta_evidence.backward()
    assert all(parameter.grad is not None for name, parameter in guide.named_parameters() if "scale_tril" not in name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("guide_type", [AutoNormal, AutoMultivariateNormal])
def test_values_on_cuda_stay_there(guide_type):
    x, y = (value.cuda() for value in conjugate.data())
    guide = fit(conjugate.model, guide_type(conjugate.model), x, y)
    reduction = reduce_model(guide, {"rest": dist.Normal(0.0, 0.5)})
    assert reduction.delta_evidence.is_cuda
    assert reduction.elementwise["rest"].is_cuda
    assert reduction.posterior["first"].mean.is_cuda
    assert reduction.guide(x, y)["rest"].is_cuda


def test_an_unknown_method(guide):
    with pytest.raises(ReductionError, match="method"):
        reduce_model(guide, {"bias": NARROW}, method="guess")


def test_an_exact_result_where_none_can_be_had():
    def hierarchical():
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        pyro.sample("z", dist.Normal(0.0, tau))

    guide = AutoNormal(hierarchical)
    guide()
    with pytest.raises(ReductionError, match="depends on other sites"):
        reduce_model(guide, {"z": NARROW}, method="exact")


@pytest.mark.parametrize("num_samples", [0, -1, 1.5])
def test_a_number_of_draws_that_is_none(guide, num_samples):
    with pytest.raises(ReductionError, match="num_samples"):
        reduce_model(guide, {"bias": NARROW}, method="importance", num_samples=num_samples)


def test_a_copy_has_a_guide_of_its_own_and_leaves_the_fitted_guide_as_it_is():
    def one_site():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoNormal(one_site)
    guide()
    reduction = reduce_model(guide, dist.Normal(0.0, 0.2))
    twin = copy.deepcopy(reduction)
    assert guide.model is not None
    assert twin.guide is not reduction.guide
    torch.testing.assert_close(twin.elementwise, reduction.elementwise)


def by_program(x, y=None):
    pyro.sample("first", dist.Normal(x.new_zeros(2), 0.5).to_event(1))


COPIED = {
    "point": {"first": dist.Delta(torch.zeros(2, dtype=torch.float64), event_dim=1)},
    "program": by_program,
}
WAYS = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "question"), [(AutoNormal, "program"), (AutoMultivariateNormal, "point")])
def test_a_copy_answers_all_that_the_original_does(exact_guide, kind, question, way):
    guide, x, y = exact_guide(kind)
    reduction = reduce_model(guide, COPIED[question], args=(x, y))
    twin = WAYS[way](reduction)
    assert guide.model is not None
    assert (repr(twin), twin.reduced_sites) == (repr(reduction), reduction.reduced_sites)
    torch.testing.assert_close(twin.elementwise, reduction.elementwise)
    pd.testing.assert_frame_equal(twin.summary(), reduction.summary())
    for name, posterior in reduction.posterior.items():
        torch.testing.assert_close(twin.posterior[name].mean, posterior.mean)
    before = [value.detach().clone() for value in guide.parameters()]
    pyro.set_rng_seed(0)
    expected = reduction.guide(x, y)
    pyro.set_rng_seed(0)
    torch.testing.assert_close(twin.guide(x, y), expected)
    assert twin.guide is not reduction.guide
    settings = {"max_steps": 2, "window": 2, "num_particles": 3}
    with pytest.warns(ReductionWarning, match="not converged"):
        elbos = [refit(conjugate.model, guide, one, **settings).delta_elbo for one in (twin, reduction)]
    assert elbos[0] == pytest.approx(elbos[1])
    assert dict(twin.to_arviz(5).posterior.sizes)["draw"] == 5
    for value, was in zip(guide.parameters(), before):
        assert torch.equal(value, was)


def test_a_posterior_that_is_known_numerically_is_pickled_too(exact_guide):
    guide, x, y = exact_guide(AutoNormal)
    reduction = reduce_model(guide, {"rest": dist.Laplace(x.new_zeros(2), 0.3)}, args=(x, y))
    assert reduction.method == "quadrature"
    twin = WAYS["pickle"](reduction)
    pd.testing.assert_frame_equal(twin.summary(), reduction.summary())
    assert twin.guide is not reduction.guide


def test_what_has_been_checked_stays_checked(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    reduction = reduce_model(guide, COPIED["point"], args=(x, y))
    check = reduction.check(num_draws=300)
    for take in WAYS.values():
        assert take(check).delta_evidence == check.delta_evidence
        twin = take(reduction)
        assert twin.checked.words() == check.words()
        assert twin.checked.full.draws(3)["first"].shape == (3, 2)


@pytest.mark.parametrize("way", WAYS)
def test_reductions_of_draws_are_copied_too(way):
    x, y = conjugate.data()
    drawn = conjugate.exact_posterior(x, y, *conjugate.prior(4)).sample((4, 100))
    data = to_arviz({"posterior": {"first": drawn[..., :2].numpy(), "rest": drawn[..., 2:].numpy()}})
    wide = {"rest": dist.Normal(x.new_tensor(0.0), 1.0)}
    for question, method in ((wide, "importance"), (COPIED["point"], "integration")):
        reduction = reduce_model(data, question, model=conjugate.model, args=(x, y))
        assert reduction.method == method
        summary = reduction.summary()
        twin = WAYS[way](reduction)
        assert torch.equal(twin.delta_evidence, reduction.delta_evidence)
        pd.testing.assert_frame_equal(twin.summary(), summary)
        assert twin.guide.resample(2)["first"].shape == (2, 2)


def test_a_reduction_out_of_a_pickle_knows_another_guide(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    twin = pickle.loads(pickle.dumps(reduce_model(guide, COPIED["point"], args=(x, y))))
    other = exact_guide(AutoNormal)[0]
    with pytest.raises(ReductionError, match="another guide"):
        refit(conjugate.model, other, twin)

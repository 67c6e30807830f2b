# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import constraints

from pyro_bmrs import ReductionError, ReductionWarning, optimize_reduced_prior
from pyro_bmrs.arviz_adapter import to_arviz
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")

POSITIVE = {"scale": constraints.positive}


def maximum(log_evidence, start: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method on the exact log evidence, and the standard errors from its second derivative."""
    at = start
    for _ in range(100):
        hessian = torch.autograd.functional.hessian(log_evidence, at)
        step = torch.linalg.solve(hessian, torch.autograd.functional.jacobian(log_evidence, at))
        at = at - step / max(1.0, step.abs().max().item() / 0.2)
    assert step.abs().max() < 1e-12
    return at, torch.linalg.inv(-hessian).diagonal().sqrt()


# --- linear regression ------------------------------------------------------------------------------------------------


def regression_evidence(x: Tensor, y: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Exact log evidence with the prior of the first two coefficients as stated."""
    full_loc, full_scale = conjugate.prior(4)
    scales = torch.cat([scale.expand(2), full_scale[2:]])
    return conjugate.log_evidence(x, y, torch.cat([loc.expand(2), full_loc[2:]]), scales)


def test_the_scale_of_a_regression_is_where_the_exact_evidence_is_largest(exact_guide):
    guide, x, y = exact_guide()
    zero = torch.tensor(0.0)
    best, error = maximum(lambda scale: regression_evidence(x, y, zero, scale), torch.tensor([0.8]))
    result = optimize_reduced_prior(
        guide, lambda scale: {"first": dist.Normal(0.0, scale)}, {"scale": 0.3}, constraints=POSITIVE
    )
    assert result.converged
    assert result.hyperparameters["scale"].item() == pytest.approx(best.item(), abs=1e-6)
    assert result.standard_errors["scale"].item() == pytest.approx(error.item(), rel=1e-6)
    full = conjugate.log_evidence(x, y, *conjugate.prior(4))
    change = regression_evidence(x, y, zero, best) - full
    assert result.reduction.delta_evidence.item() == pytest.approx(change.item(), abs=1e-8)
    assert result.reduction.method == "exact"


def test_location_and_scale_together(exact_guide):
    guide, x, y = exact_guide()

    def evidence(both: Tensor) -> Tensor:
        return regression_evidence(x, y, both[0], both[1])

    best, error = maximum(evidence, torch.tensor([0.3, 0.8]))
    result = optimize_reduced_prior(
        guide,
        lambda loc, scale: {"first": dist.Normal(loc, scale)},
        {"loc": torch.tensor(0.0), "scale": torch.tensor(1.0)},
        constraints=POSITIVE,
    )
    assert result.converged
    found = torch.stack([result.hyperparameters["loc"], result.hyperparameters["scale"]])
    torch.testing.assert_close(found, best, atol=1e-6, rtol=0.0)
    errors = torch.stack([result.standard_errors["loc"], result.standard_errors["scale"]])
    torch.testing.assert_close(errors, error, rtol=1e-6, atol=0.0)
    covariance = torch.linalg.inv(-torch.autograd.functional.hessian(evidence, best))
    torch.testing.assert_close(result.covariance, covariance, rtol=1e-5, atol=1e-8)


# --- normal means -----------------------------------------------------------------------------------------------------

Y = torch.tensor([-1.9, 0.4, 1.2, -0.7, 2.3, 0.1], dtype=torch.float64)
NOISE = torch.tensor([0.5, 0.8, 0.6, 1.0, 0.7, 0.4], dtype=torch.float64)
PRIOR_SCALE = 3.0


def means(y: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(y.new_zeros(len(y)), PRIOR_SCALE).to_event(1))
    pyro.sample("y", dist.Normal(theta, NOISE[: len(y)]).to_event(1), obs=y)


def exact_means(y: Tensor) -> AutoNormal:
    guide = AutoNormal(means)
    guide(y)
    variance = 1 / (1 / PRIOR_SCALE**2 + 1 / NOISE[: len(y)] ** 2)
    with torch.no_grad():
        guide.locs.theta.copy_(variance * y / NOISE[: len(y)] ** 2)
    guide.scales.theta = variance.sqrt()
    return guide


def means_evidence(scale: Tensor) -> Tensor:
    return dist.Normal(0.0, (NOISE**2 + scale**2).sqrt()).log_prob(Y).sum()


@pytest.mark.parametrize("start", [0.05, 1.0, 10.0])
def test_normal_means_from_wherever_it_begins(start):
    best, error = maximum(means_evidence, torch.tensor([1.2]))
    result = optimize_reduced_prior(
        exact_means(Y), lambda scale: dist.Normal(0.0, scale), {"scale": start}, constraints=POSITIVE
    )
    assert result.hyperparameters["scale"].item() == pytest.approx(best.item(), abs=1e-6)
    assert result.standard_errors["scale"].item() == pytest.approx(error.item(), rel=1e-6)
    assert repr(result) == (
        f"OptimizedPrior(scale = {best.item():.3g} ± {error.item():.2g}): "
        f"ΔF = {result.reduction.delta_evidence.item():.2f} nats, converged"
    )


def test_a_scale_for_each_mean():
    # Each by itself: the evidence of y ~ N(0, noise² + scale²) is largest where scale² = y² - noise².
    far = Y[[0, 2, 4]]
    noise = NOISE[:3]
    result = optimize_reduced_prior(
        exact_means(far), lambda scale: dist.Normal(0.0, scale), {"scale": torch.ones(3)}, constraints=POSITIVE
    )
    torch.testing.assert_close(result.hyperparameters["scale"], (far**2 - noise**2).sqrt(), atol=1e-6, rtol=0.0)
    assert result.standard_errors["scale"].shape == (3,)
    assert "3 values" in repr(result)


def test_a_scale_that_goes_to_zero_is_no_maximum():
    # All observations lie within their noise, so that the evidence rises down to no scale at all.
    with pytest.warns(ReductionWarning, match="no maximum"):
        result = optimize_reduced_prior(
            exact_means(0.1 * Y), lambda scale: dist.Normal(0.0, scale), {"scale": 1.0}, constraints=POSITIVE
        )
    assert not result.converged
    assert result.hyperparameters["scale"] < 0.05
    assert "not converged" in repr(result)


def test_too_few_steps_are_said_to_be_too_few():
    with pytest.warns(ReductionWarning, match="max_steps"):
        result = optimize_reduced_prior(
            exact_means(Y), lambda scale: dist.Normal(0.0, scale), {"scale": 1e4}, constraints=POSITIVE, max_steps=1
        )
    assert not result.converged


def test_the_optimum_in_single_precision():
    best, _ = maximum(means_evidence, torch.tensor([1.2]))
    with pyro.validation_enabled():
        torch.set_default_dtype(torch.float32)
        y = Y.float()

        def model(y: Tensor) -> None:
            pyro.sample("theta", dist.Normal(torch.zeros(len(y)), PRIOR_SCALE).to_event(1))

        guide = AutoNormal(model)
        guide(y)
        variance = (1 / (1 / PRIOR_SCALE**2 + 1 / NOISE**2)).float()
        with torch.no_grad():
            guide.locs.theta.copy_(variance * y / NOISE.float() ** 2)
        guide.scales.theta = variance.sqrt()
        result = optimize_reduced_prior(
            guide, lambda scale: dist.Normal(0.0, scale), {"scale": 1.0}, constraints=POSITIVE
        )
    assert result.converged
    assert result.hyperparameters["scale"].dtype == torch.float32
    assert result.hyperparameters["scale"].item() == pytest.approx(best.item(), abs=1e-3)


def test_constraints_bound_the_search():
    result = optimize_reduced_prior(
        exact_means(Y),
        lambda scale: dist.Normal(0.0, scale),
        {"scale": 1.0},
        constraints={"scale": constraints.interval(0.5, 3.0)},
    )
    best, _ = maximum(means_evidence, torch.tensor([1.2]))
    assert result.hyperparameters["scale"].item() == pytest.approx(best.item(), abs=1e-6)


# --- other methods ----------------------------------------------------------------------------------------------------


def test_a_family_without_a_closed_form():
    # Half-normal priors of a scale whose posterior is log-normal: by quadrature, whose maximum a fine grid confirms.
    def model():
        pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))

    guide = AutoNormal(model, init_scale=0.4)
    guide()
    result = optimize_reduced_prior(
        guide, lambda width: dist.HalfNormal(width), {"width": 1.0}, constraints={"width": constraints.positive}
    )
    assert result.converged and result.reduction.method == "quadrature"
    x = torch.linspace(1e-4, 30.0, 200_001)
    q = dist.LogNormal(guide.locs.scale.detach(), guide.scales.scale.detach()).log_prob(x)
    p = dist.HalfCauchy(1.0).log_prob(x)

    def change(width: Tensor) -> Tensor:
        return (q - p + dist.HalfNormal(width).log_prob(x)).logsumexp(0) + math.log(x[1] - x[0])

    best, error = maximum(change, torch.tensor([1.0]))
    assert result.hyperparameters["width"].item() == pytest.approx(best.item(), abs=1e-4)
    assert result.standard_errors["width"].item() == pytest.approx(error.item(), rel=1e-3)


def test_draws_from_the_posterior_find_the_same_optimum(exact_guide):
    guide, x, y = exact_guide()
    posterior = conjugate.exact_posterior(x, y, *conjugate.prior(4))
    draws = posterior.sample((4, 1000)).numpy()
    data = to_arviz({"posterior": {"first": draws[..., :2], "rest": draws[..., 2:]}})

    def family(scale: Tensor) -> dict[str, dist.Distribution]:
        return {"first": dist.Normal(0.0, scale)}

    exact = optimize_reduced_prior(guide, family, {"scale": 0.3}, constraints=POSITIVE)
    drawn = optimize_reduced_prior(
        data, family, {"scale": 0.8}, constraints=POSITIVE, model=conjugate.model, args=(x, y)
    )
    assert drawn.converged and drawn.reduction.method == "importance"
    distance = drawn.hyperparameters["scale"] - exact.hyperparameters["scale"]
    assert abs(distance) < 0.1 * exact.standard_errors["scale"]
    assert drawn.standard_errors["scale"].item() == pytest.approx(exact.standard_errors["scale"].item(), rel=0.1)


def test_a_guide_that_is_sampled_is_drawn_from_once():
    def hierarchical(y):
        tau = pyro.sample("tau", dist.LogNormal(torch.tensor(0.0), 0.2))
        theta = pyro.sample("theta", dist.Normal(torch.zeros(3), tau).to_event(1))
        pyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=y)

    y = torch.tensor([-0.9, 0.5, 1.1])
    guide = AutoNormal(hierarchical, init_scale=0.15)
    guide(y)
    with torch.no_grad():
        guide.locs.theta.copy_(0.8 * y)
    result = optimize_reduced_prior(
        guide,
        lambda scale: {"theta": dist.Normal(0.0, scale)},
        {"scale": 1.0},
        constraints=POSITIVE,
        num_samples=500,
    )
    assert result.converged and result.reduction.method == "importance"
    # At a maximum over fixed draws, E_s[sum of theta²] = 3 scale².
    theta = result.reduction.posterior["theta"]
    second_moment = (theta.mean**2 + theta.variance).sum().item()
    assert second_moment == pytest.approx(3 * result.hyperparameters["scale"].item() ** 2, rel=1e-4)


# --- bad input --------------------------------------------------------------------------------------------------------


def scaled(scale: Tensor) -> dist.Distribution:
    return dist.Normal(0.0, scale)


@pytest.mark.parametrize(
    "init, constraint, message",
    [
        ({}, {}, "init names no hyperparameter"),
        ({"scale": -1.0}, POSITIVE, "init of 'scale' is not finite, or not inside"),
        ({"scale": math.nan}, POSITIVE, "init of 'scale'"),
        ({"scale": 0.0}, POSITIVE, "init of 'scale'"),
        ({"scale": 1.0}, {"sacle": constraints.positive}, "constraints names 'sacle'"),
    ],
)
def test_hyperparameters_that_are_none(init, constraint, message):
    with pytest.raises(ReductionError, match=message):
        optimize_reduced_prior(exact_means(Y), scaled, init, constraints=constraint)


def test_a_hyperparameter_that_does_nothing():
    with pytest.raises(ReductionError, match="does not depend on the hyperparameter 'other'"):
        optimize_reduced_prior(
            exact_means(Y), lambda scale, other: scaled(scale), {"scale": 1.0, "other": 1.0}, constraints=POSITIVE
        )
    with pytest.raises(ReductionError, match="does not depend on the hyperparameter 'scale'"):
        optimize_reduced_prior(exact_means(Y), lambda scale: dist.Normal(0.0, 1.0), {"scale": 1.0})


def test_a_reduced_prior_that_is_none_names_the_hyperparameters():
    def model():
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))

    guide = AutoNormal(model, init_scale=2.0)
    guide()
    with pytest.raises(ReductionError, match=r"at scale = 10: .*broader.*constraints="):
        optimize_reduced_prior(guide, scaled, {"scale": 10.0}, constraints=POSITIVE)


def test_gradients_are_switched_on_where_the_caller_has_none(exact_guide):
    guide, _, _ = exact_guide()
    asked = (guide, lambda scale: {"first": dist.Normal(0.0, scale)}, {"scale": 0.3})
    expected = optimize_reduced_prior(*asked, constraints=POSITIVE)
    with torch.no_grad():
        found = optimize_reduced_prior(*asked, constraints=POSITIVE)
    assert found.converged
    assert found.hyperparameters == expected.hyperparameters

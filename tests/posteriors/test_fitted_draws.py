# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reductions of draws that are there already: of an MCMC run and of ArviZ data."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model
from pyro_bmrs.arviz_adapter import relative_efficiency, to_arviz
from tests import conjugate

pytestmark = pytest.mark.usefixtures("double")

NOISE = np.random.default_rng(0).standard_normal((4, 1000))
REDUCED = {"first": dist.Normal(0.3, 0.6), "rest": dist.Normal(0.0, 0.5)}


def exact_change(x: Tensor, y: Tensor, sites=("first", "rest")) -> float:
    loc, scale = conjugate.prior(4)
    reduced_loc, reduced_scale = loc.clone(), scale.clone()
    for site, columns in {"first": slice(0, 2), "rest": slice(2, 4)}.items():
        if site in sites:
            reduced_loc[columns], reduced_scale[columns] = REDUCED[site].loc, REDUCED[site].scale
    change = conjugate.log_evidence(x, y, reduced_loc, reduced_scale) - conjugate.log_evidence(x, y, loc, scale)
    return change.item()


def sites_of(draws: Tensor) -> dict[str, np.ndarray]:
    return {"first": draws[..., :2].numpy(), "rest": draws[..., 2:].numpy()}


def exact_draws(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Independent draws from the exact posterior of the conjugate regression."""
    x, y = conjugate.data()
    return conjugate.exact_posterior(x, y, *conjugate.prior(4)).sample(shape), x, y


def data_tree(draws: dict[str, np.ndarray]) -> xarray.DataTree:
    """What ArviZ 1.x holds draws in."""
    variables = {
        name: (("chain", "draw", *(f"{name}_dim_{d}" for d in range(values.ndim - 2))), values)
        for name, values in draws.items()
    }
    return xarray.DataTree.from_dict({"posterior": xarray.Dataset(variables)})


def of_this_version(draws: dict[str, np.ndarray]):
    """What the ArviZ that is installed holds draws in: InferenceData, or DataTree as well."""
    return to_arviz({"posterior": draws})


# --- the exact answer -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled():
    """NUTS on the conjugate regression."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(1)
    x, y = conjugate.data()
    mcmc = MCMC(NUTS(conjugate.model, max_tree_depth=4), num_samples=400, warmup_steps=100, disable_progbar=True)
    mcmc.run(x, y)
    return mcmc, x, y


@pytest.mark.parametrize("sites", [("first",), ("rest",), ("first", "rest")])
@pytest.mark.no_cover
def test_an_mcmc_run_agrees_with_the_exact_evidence(sampled, sites):
    mcmc, x, y = sampled
    reduction = reduce_model(mcmc, {site: REDUCED[site] for site in sites})
    assert reduction.method == "importance"
    assert reduction.pareto_k < 0.7
    assert 0 < reduction.standard_error < 0.2
    assert abs(reduction.delta_evidence.item() - exact_change(x, y, sites)) < 3 * reduction.standard_error


def test_the_weighted_draws_have_the_moments_of_the_exact_reduced_posterior(sampled):
    mcmc, x, y = sampled
    reduction = reduce_model(mcmc, REDUCED)
    loc = torch.tensor([0.3, 0.3, 0.0, 0.0])
    exact = conjugate.exact_posterior(x, y, loc, torch.tensor([0.6, 0.6, 0.5, 0.5]))
    error = exact.stddev / reduction.effective_sample_size.sqrt()
    mean = torch.cat([reduction.posterior["first"].mean, reduction.posterior["rest"].mean])
    assert ((mean - exact.mean).abs() < 4 * error).all()


@pytest.mark.parametrize("package", [of_this_version, data_tree])
def test_an_arviz_posterior_agrees_with_the_exact_evidence(package):
    draws, x, y = exact_draws(4, 500)
    reduction = reduce_model(package(sites_of(draws)), REDUCED, model=conjugate.model, args=(x, y))
    assert abs(reduction.delta_evidence.item() - exact_change(x, y)) < 3 * reduction.standard_error
    assert reduction.elementwise["first"].shape == (2,)


def test_an_mcmc_run_taken_through_arviz_is_the_same(sampled):
    mcmc, x, y = sampled
    direct = reduce_model(mcmc, REDUCED)
    through = reduce_model(
        of_this_version({name: values.numpy() for name, values in mcmc.get_samples(group_by_chain=True).items()}),
        REDUCED,
        model=conjugate.model,
        args=(x, y),
    )
    torch.testing.assert_close(through.delta_evidence, direct.delta_evidence)
    torch.testing.assert_close(through.standard_error, direct.standard_error)


def test_draws_take_the_dtype_of_the_model():
    draws, x, y = exact_draws(2, 200)
    single = of_this_version({name: values.astype(np.float32) for name, values in sites_of(draws).items()})
    reduction = reduce_model(single, REDUCED, model=conjugate.model, args=(x, y))
    assert reduction.delta_evidence.dtype == torch.float64


# --- autocorrelation --------------------------------------------------------------------------------------------------


def autoregressive_draws(num_chains: int, num_draws: int, correlation: float) -> np.ndarray:
    """Chains whose stationary distribution is the standard normal."""
    noise = np.random.default_rng(0).standard_normal((num_chains, num_draws))
    chains = np.empty_like(noise)
    chains[:, 0] = noise[:, 0]
    for t in range(1, num_draws):
        chains[:, t] = correlation * chains[:, t - 1] + np.sqrt(1 - correlation**2) * noise[:, t]
    return chains


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_relative_efficiency_of_an_autoregression(correlation):
    # The integrated autocorrelation time of x_t = c x_(t-1) + noise is (1 + c) / (1 - c).
    found = relative_efficiency(autoregressive_draws(4, 20_000, correlation))
    assert found == pytest.approx((1 - correlation) / (1 + correlation), rel=0.15)


def test_relative_efficiency_of_constant_chains_is_one():
    assert relative_efficiency(np.ones((2, 50, 3))) == pytest.approx(np.ones(3))


def one_site():
    pyro.sample("z", dist.Normal(torch.tensor(0.0), 2.0))


def test_the_standard_error_covers_the_spread_between_chains():
    # Reduce each of many chains by itself: the estimates spread as the standard errors say, which independent draws'
    # standard errors would understate fourfold.
    reduced, correlation = dist.Normal(0.0, 1.5), 0.9
    chains = autoregressive_draws(60, 4000, correlation)
    singles = [
        reduce_model(of_this_version({"z": chain[None]}), reduced, model=one_site, num_samples=1) for chain in chains
    ]
    estimates = torch.stack([single.delta_evidence for single in singles])
    claimed = torch.stack([single.standard_error for single in singles]).square().mean().sqrt()
    assert estimates.std() == pytest.approx(claimed.item(), rel=0.35)
    independent = reduce_model(
        of_this_version({"z": np.random.default_rng(1).standard_normal((1, 4000))}), reduced, model=one_site
    )
    assert claimed > 2.5 * independent.standard_error
    assert singles[0].effective_sample_size < 0.3 * independent.effective_sample_size


# --- priors that depend on other sites --------------------------------------------------------------------------------


def hierarchical(y):
    tau = pyro.sample("tau", dist.LogNormal(torch.tensor(0.0), 0.5))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def test_a_prior_that_depends_on_another_site_is_evaluated_draw_by_draw():
    y = torch.tensor([0.3, -0.2, 0.5])
    tau = dist.LogNormal(0.0, 0.1).sample((2, 100))
    theta = dist.Normal(0.0, 0.3).sample((2, 100, 3))
    reduced = dist.Normal(0.0, 0.6)
    data = of_this_version({"tau": tau.numpy(), "theta": theta.numpy()})
    reduction = reduce_model(data, {"theta": reduced}, model=hierarchical, args=(y,))
    log_ratios = reduced.log_prob(theta) - dist.Normal(0.0, tau.unsqueeze(-1)).log_prob(theta)
    ratios = log_ratios.sum(-1).exp().flatten()
    # Pareto smoothing moves the largest ratios, by less than the standard error.
    assert abs(reduction.delta_evidence - ratios.mean().log()) < reduction.standard_error

    def program():
        scale = pyro.sample("tau", dist.LogNormal(torch.tensor(0.0), 0.4))
        pyro.sample("theta", dist.Normal(0.0, 0.9 * scale))

    both = reduce_model(data, program, model=hierarchical, args=(y,))
    log_ratios = dist.Normal(0.0, 0.9 * tau.unsqueeze(-1)).log_prob(theta).sum(-1)
    log_ratios -= dist.Normal(0.0, tau.unsqueeze(-1)).log_prob(theta).sum(-1)
    log_ratios += dist.LogNormal(0.0, 0.4).log_prob(tau) - dist.LogNormal(0.0, 0.5).log_prob(tau)
    assert abs(both.delta_evidence - log_ratios.exp().mean().log()) < both.standard_error


def test_draws_outside_a_narrower_support_weigh_nothing():
    draws = np.random.default_rng(0).standard_normal((2, 1000))
    reduction = reduce_model(of_this_version({"z": draws}), dist.Uniform(-1.0, 1.0), model=one_site)
    inside = np.abs(draws) < 1
    ratios = np.where(inside, 0.5 / np.exp(dist.Normal(0.0, 2.0).log_prob(torch.tensor(draws)).numpy()), 0.0)
    assert reduction.delta_evidence.item() == pytest.approx(np.log(ratios.mean()), abs=0.02)
    assert reduction.posterior["z"].sample((100,)).abs().max() <= 1


def test_a_discrete_site_may_be_reduced_to_a_point():
    def coin():
        pyro.sample("coin", dist.Bernoulli(0.5))

    draws = np.tile([0.0, 1.0, 1.0, 1.0], 20)[None]
    reduction = reduce_model(of_this_version({"coin": draws}), dist.Delta(torch.tensor(1.0)), model=coin)
    assert reduction.delta_evidence.item() == pytest.approx(np.log(1.5))


# --- going on ---------------------------------------------------------------------------------------------------------


def test_the_weighted_draws_go_on_to_predictive_to_arviz_and_to_a_second_reduction(sampled):
    mcmc, x, y = sampled
    reduction = reduce_model(mcmc, REDUCED)
    predicted = Predictive(reduction.model, guide=reduction.guide, num_samples=400)(x)["y"]
    exact = torch.cat([reduction.posterior["first"].mean, reduction.posterior["rest"].mean])
    assert (predicted.mean(0) - x @ exact).abs().max() < 5 * conjugate.NOISE * 2 / np.sqrt(400)

    data = reduction.to_arviz(num_samples=2000)
    assert data.posterior["first"].shape == (1, 2000, 2)
    posterior = reduction.posterior["first"]
    error = posterior.stddev.numpy() / np.sqrt(2000)
    assert (np.abs(data.posterior["first"].values[0].mean(0) - posterior.mean.numpy()) < 5 * error).all()
    for name in ("delta_evidence", "standard_error", "pareto_k", "effective_sample_size"):
        assert data["evidence"].attrs[name] == pytest.approx(float(getattr(reduction, name)))

    assert (data["evidence"]["first"].values == reduction.elementwise["first"].numpy()).all()

    second = reduce_model(reduction.guide, {"first": dist.Normal(0.3, 0.5)}, num_samples=500)
    assert second.method == "importance"
    summary = reduction.summary()
    assert list(summary.index) == ["first[0]", "first[1]", "rest[0]", "rest[1]"]
    assert summary.notna().all(axis=None)


def test_the_reduction_says_how_it_was_come_by(sampled):
    mcmc, _, _ = sampled
    reduction = reduce_model(mcmc, {"first": REDUCED["first"]})
    for word in ("importance", "standard error", "Pareto k", "effective sample size"):
        assert word in repr(reduction)
    assert 0 < reduction.effective_sample_size <= 400 * np.log10(400)


def test_a_reduction_far_from_the_draws_warns_and_says_so(sampled):
    mcmc, _, _ = sampled
    with pytest.warns(ReductionWarning, match="not to be trusted"):
        reduction = reduce_model(mcmc, {"first": dist.Normal(0.0, 0.01)}, method="importance")
    assert reduction.pareto_k > 0.7
    assert "not to be trusted" in repr(reduction)


def test_the_evidence_backpropagates_to_the_reduced_prior():
    draws, x, y = exact_draws(2, 300)
    data = of_this_version(sites_of(draws))

    def change(loc: Tensor) -> Tensor:
        return reduce_model(data, {"first": dist.Normal(loc, 0.6)}, model=conjugate.model, args=(x, y)).delta_evidence

    loc = torch.tensor([0.3, 0.1], requires_grad=True)
    (gradient,) = torch.autograd.grad(change(loc), loc)
    # d log E_q[r/p] / d loc = E_s[(x - loc) / 0.6^2]
    expected = []
    with torch.no_grad():
        reduction = reduce_model(data, {"first": dist.Normal(loc, 0.6)}, model=conjugate.model, args=(x, y))
        expected = (reduction.posterior["first"].mean - loc) / 0.36
    torch.testing.assert_close(gradient, expected)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_an_mcmc_that_has_not_run():
    mcmc = MCMC(NUTS(conjugate.model), num_samples=10, disable_progbar=True)
    with pytest.raises(ReductionError, match="no samples: call its run"):
        reduce_model(mcmc, REDUCED)


def test_an_arviz_posterior_without_its_model():
    draws, _, _ = exact_draws(1, 10)
    with pytest.raises(ReductionError, match="pass model="):
        reduce_model(of_this_version(sites_of(draws)), REDUCED)


def test_an_arviz_posterior_without_the_models_arguments():
    draws, _, _ = exact_draws(1, 10)
    with pytest.raises(ReductionError, match="args="):
        reduce_model(of_this_version(sites_of(draws)), REDUCED, model=conjugate.model)


@pytest.mark.parametrize("lacking", ["chain", "draw"])
def test_draws_without_a_dimension_of_chains_or_of_draws(lacking):
    draws, x, y = exact_draws(5, 10)
    tree = data_tree(sites_of(draws))
    posterior = tree["posterior"].to_dataset().isel({lacking: 0})
    with pytest.raises(ReductionError, match=rf"lacks \['{lacking}'\].*expand_dims"):
        reduce_model(xarray.DataTree.from_dict({"posterior": posterior}), REDUCED, model=conjugate.model, args=(x, y))


@pytest.mark.parametrize("singleton", [False, True])
def test_a_mapping_of_draws_is_what_one_chain_is(singleton):
    draws, x, y = exact_draws(1, 2000)
    chain = {name: torch.as_tensor(values[0]) for name, values in sites_of(draws).items()}
    # Predictive leaves a dimension for each plate of the model around every site.
    given = {name: values.unsqueeze(1) if singleton else values.numpy() for name, values in chain.items()}
    reduction = reduce_model(given, REDUCED, model=conjugate.model, args=(x, y))
    same = reduce_model(of_this_version(sites_of(draws)), REDUCED, model=conjugate.model, args=(x, y))
    torch.testing.assert_close(reduction.delta_evidence, same.delta_evidence)
    assert reduction.standard_error == same.standard_error
    assert reduction.delta_evidence.item() == pytest.approx(exact_change(x, y), abs=4 * reduction.standard_error.item())


def test_draws_out_of_predictive():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal((x * w).sum(-1), 1.0), obs=y)

    x, y = torch.randn(5, 2), torch.randn(5)
    guide = AutoNormal(model, init_scale=0.3)
    guide(x, y)
    predicted = Predictive(model, guide=guide, num_samples=1000)(x)
    assert predicted["w"].shape == (1000, 1, 2)  # of the plate, which is not around it
    reduced = {"w": dist.Normal(0.3, 0.6)}
    reduction = reduce_model(predicted, reduced, model=model, args=(x, y))
    exact = reduce_model(guide, reduced, args=(x, y)).delta_evidence.item()
    assert reduction.delta_evidence.item() == pytest.approx(exact, abs=4 * reduction.standard_error.item())
    assert set(reduction.to_arviz(10).posterior.data_vars) == {"w"}


def test_a_mapping_of_draws_by_chain_is_told_what_to_become():
    draws, x, y = exact_draws(5, 10)
    with pytest.raises(ReductionError, match=r"by chain\? Make ArviZ data of them: arviz.from_dict"):
        reduce_model(sites_of(draws), REDUCED, model=conjugate.model, args=(x, y))


def test_draws_of_another_shape_than_the_models_site():
    draws, x, y = exact_draws(2, 10)
    sites = sites_of(draws) | {"rest": np.zeros((2, 10, 3))}
    with pytest.raises(ReductionError, match=r"'rest' has shape \(3,\), but the model's site has \(2,\)"):
        reduce_model(of_this_version(sites), REDUCED, model=conjugate.model, args=(x, y))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_draws_that_are_not_finite_are_counted_and_placed(bad):
    draws, x, y = exact_draws(2, 10)
    sites = {name: values.copy() for name, values in sites_of(draws).items()}
    sites["rest"][1, 7, 1] = sites["rest"][1, 9, 0] = bad
    with pytest.raises(ReductionError, match=r"2 of 40 .*'rest' are NaN or infinite.*chain 1, draw 7, element \[1\]"):
        reduce_model(of_this_version(sites), REDUCED, model=conjugate.model, args=(x, y))


def test_a_misspelt_site_is_not_left_alone():
    draws, x, y = exact_draws(2, 10)
    sites = {"frist": sites_of(draws)["first"], "rest": sites_of(draws)["rest"]}
    with pytest.raises(ReductionError, match="the model has no latent site 'frist'.*did you mean 'first'"):
        reduce_model(of_this_version(sites), REDUCED, model=conjugate.model, args=(x, y))


def test_draws_of_another_model():
    draws, x, y = exact_draws(2, 10)
    with pytest.raises(ReductionError, match="the model has no latent site 'z'"):
        reduce_model(of_this_version({"z": NOISE[:, :10]}), REDUCED, model=conjugate.model, args=(x, y))


def test_variables_that_the_model_does_not_have_are_left_alone():
    draws, x, y = exact_draws(2, 500)
    sites = sites_of(draws)
    beside = {"sum": sites["first"].sum(-1), "undefined": np.full((2, 500), np.nan), "names": np.full((2, 500), "a")}
    reduction = reduce_model(of_this_version(sites | beside), REDUCED, model=conjugate.model, args=(x, y))
    alone = reduce_model(of_this_version(sites), REDUCED, model=conjugate.model, args=(x, y))
    assert reduction.delta_evidence == alone.delta_evidence
    assert set(reduction.posterior) == set(alone.posterior) == {"first", "rest"}
    reduced = reduction.to_arviz(50).posterior
    np.testing.assert_allclose(reduced["sum"], reduced["first"].sum("first_dim_0"))  # the same draws of both


def test_draws_of_a_deterministic_site_are_let_be():
    def model():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 2.0))
        pyro.deterministic("square", z**2)

    draws = np.random.default_rng(0).standard_normal((2, 100))
    reduction = reduce_model(of_this_version({"z": draws, "square": draws**2}), dist.Normal(0.0, 1.5), model=model)
    assert set(reduction.posterior) == {"z"}


def test_a_reduced_prior_of_a_site_that_was_not_drawn():
    draws, x, y = exact_draws(2, 10)
    with pytest.raises(ReductionError, match="the set of draws has no latent site 'rest'"):
        reduce_model(of_this_version({"first": sites_of(draws)["first"]}), REDUCED, model=conjugate.model, args=(x, y))


def test_a_prior_that_depends_on_a_site_that_was_not_drawn():
    data = of_this_version({"theta": np.zeros((1, 10, 3))})
    with pytest.raises(ReductionError, match=r"depends on \['tau'\]"):
        reduce_model(data, {"theta": dist.Normal(0.0, 1.0)}, model=hierarchical, args=(torch.zeros(3),))


def test_a_point_where_there_are_only_draws(sampled):
    mcmc, _, _ = sampled
    point = {"first": dist.Delta(torch.zeros(2))}
    with pytest.raises(ReductionError, match="'first' is a point, which no draw hits"):
        reduce_model(mcmc, point, method="importance")
    assert reduce_model(mcmc, point).method == "integration"


@pytest.mark.parametrize("method", ["exact", "quadrature"])
def test_methods_that_draws_do_not_allow(sampled, method):
    mcmc, _, _ = sampled
    with pytest.raises(ReductionError, match="cannot be had"):
        reduce_model(mcmc, REDUCED, method=method)


def test_draws_outside_the_priors_support():
    def model():
        pyro.sample("z", dist.HalfNormal(torch.tensor(1.0)))

    with pytest.raises(ReductionError, match="the prior has no density"):
        reduce_model(of_this_version({"z": -np.abs(NOISE)}), dist.HalfNormal(0.5), model=model)


def test_too_few_draws_in_a_chain():
    draws, x, y = exact_draws(40, 3)
    with pytest.raises(ReductionError, match="3 draws in a chain are too few"):
        reduce_model(data_tree(sites_of(draws)), REDUCED, model=conjugate.model, args=(x, y))


def test_no_draws_at_all():
    with pytest.raises(ReductionError, match="no variables"):
        reduce_model(data_tree({}), REDUCED, model=one_site)


def test_a_subsampled_plate_of_which_draws_show_a_part():
    def model(y, size=None):
        with pyro.plate("items", len(y), subsample_size=size) as index:
            offset = pyro.sample("offset", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(offset, 1.0), obs=y[index])

    with pytest.raises(ReductionError, match="'offset' is in a subsampled plate"):
        reduce_model(
            of_this_version({"offset": np.zeros((1, 10, 4))}),
            dist.Normal(0.0, 0.5),
            model=model,
            args=(torch.zeros(12), 4),
        )


ONE_STUCK = np.concatenate([NOISE[:3], np.full((1, 1000), 0.3)])


@pytest.mark.parametrize(
    ("draws", "words", "worth"),
    [
        (np.full((4, 1000), 0.3), "are all alike", 0),
        (np.full((1, 1000), 0.3), "are all alike", 0),
        (np.repeat(np.array([[0.3], [-0.2], [0.1], [0.6]]), 1000, 1), "do not agree: R-hat is inf", 4),
        (0.1 * ONE_STUCK + 0.2, "do not agree", 4),
        (0.1 * NOISE + np.arange(4)[:, None], "do not agree", 10),
        (0.1 * NOISE[:1] + np.linspace(0.0, 1.0, 1000), "do not agree", 10),
        (0.2 * np.repeat(NOISE[:, ::50], 50, 1), "are worth [6-9][0-9] independent ones", 100),
        (0.2 * NOISE[:, :20], "are worth [5-9][0-9] independent ones", 100),
    ],
)
def test_chains_that_have_not_mixed_are_named_and_not_counted(draws, words, worth):
    with pytest.warns(ReductionWarning, match=f"site 'z'.*{words}.*Sample again") as caught:
        reduction = reduce_model(
            to_arviz({"posterior": {"z": draws}}), {"z": dist.Normal(0.0, 0.9)}, model=one_site, method="importance"
        )
    assert len([warning for warning in caught if "Sample again" in str(warning.message)]) == 1
    assert reduction.effective_sample_size <= worth
    if worth == 0:
        assert reduction.standard_error == torch.inf


def test_an_element_that_is_known_for_certain_is_no_stuck_chain():
    def model():
        pyro.sample("label", dist.Bernoulli(0.5))
        pyro.sample("factor", dist.LKJCholesky(2, 1.0))

    correlation = 0.3 * np.tanh(NOISE)
    factor = np.zeros((4, 1000, 2, 2))
    factor[..., 0, 0], factor[..., 1, 0], factor[..., 1, 1] = 1.0, correlation, np.sqrt(1 - correlation**2)
    posterior = to_arviz({"posterior": {"label": np.ones((4, 1000)), "factor": factor}})
    with warnings.catch_warnings():
        warnings.simplefilter("error", ReductionWarning)
        reduction = reduce_model(posterior, {"factor": dist.LKJCholesky(2, 1.2)}, model=model, method="importance")
    assert reduction.effective_sample_size > 1000

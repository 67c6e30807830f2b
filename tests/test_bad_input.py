# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a user will get wrong, and what the error says of it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)

from pyro_bmrs import ReductionError, reduce_model

NARROW = dist.Normal(0.0, 0.2)


def model(y=None):
    pyro.sample("weights", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("bias", dist.Normal(0.0, 1.0))
    pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("coins", 2):
        pyro.sample("coin", dist.Bernoulli(0.5), infer={"enumerate": "parallel"}, obs=y)


def one_site():
    pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


Y = torch.ones(2)


@pytest.fixture(params=[AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def guide(request):
    guide = request.param(model)
    guide(Y)
    return guide


def test_an_unknown_site_names_the_nearest(guide):
    with pytest.raises(ReductionError, match="no latent site 'wieghts'.*did you mean 'weights'"):
        reduce_model(guide, {"wieghts": NARROW})
    with pytest.raises(ReductionError, match="no latent site 'zzz'"):
        reduce_model(guide, {"zzz": NARROW})


def test_an_observed_site_is_not_latent(guide):
    with pytest.raises(ReductionError, match="no latent site 'coin'"):
        reduce_model(guide, {"coin": dist.Bernoulli(0.1)})


@pytest.mark.parametrize(
    "reduced_prior",
    [
        dist.Normal(torch.zeros(2), 0.1),
        dist.Normal(torch.zeros(4, 3), 0.1),
        dist.Normal(torch.zeros(2), 0.1).to_event(1),
    ],
)
def test_shapes_that_do_not_broadcast(guide, reduced_prior):
    with pytest.raises(ReductionError, match="reduced prior of site 'weights' has .* does not broadcast"):
        reduce_model(guide, {"weights": reduced_prior})


def test_more_event_dimensions_than_the_prior(guide):
    with pytest.raises(ReductionError, match="'bias'.*does not broadcast"):
        reduce_model(guide, {"bias": dist.Normal(torch.zeros(1), 0.1).to_event(1)})


def test_a_single_prior_for_several_sites(guide):
    with pytest.raises(ReductionError, match="one latent site.*mapping"):
        reduce_model(guide, NARROW)


def test_a_single_prior_for_the_only_site():
    guide = AutoNormal(one_site)
    guide()
    assert reduce_model(guide, NARROW).reduced_sites == ("z",)


@pytest.mark.parametrize("reduced_prior", [{}, {"bias": 0.0}, 3.0, None, "bias"])
def test_what_is_no_reduced_prior(guide, reduced_prior):
    with pytest.raises(ReductionError, match="reduced.prior"):
        reduce_model(guide, reduced_prior)


def test_a_program_without_sites(guide):
    with pytest.raises(ReductionError, match="no latent sample site"):
        reduce_model(guide, lambda: None)


def test_a_program_with_an_unknown_site(guide):
    with pytest.raises(ReductionError, match="no latent site 'biass'.*'bias'"):
        reduce_model(guide, lambda: pyro.sample("biass", NARROW))


def test_a_reduced_prior_that_leaves_the_priors_support(guide):
    with pytest.raises(ReductionError, match="'scale'"):
        reduce_model(guide, {"scale": dist.Normal(0.0, 1.0)})


def test_a_reduced_prior_broader_than_the_prior():
    guide = AutoNormal(one_site, init_scale=2.0)
    guide()
    with pytest.raises(ReductionError, match="'z'.*broader"):
        reduce_model(guide, dist.Normal(0.0, 10.0))


def test_a_discrete_reduced_prior_of_a_continuous_site(guide):
    with pytest.raises(ReductionError, match="'bias'"):
        reduce_model(guide, {"bias": dist.Poisson(1.0)})


def test_a_continuous_reduced_prior_of_a_discrete_site():
    def coin():
        pyro.sample("coin", dist.Bernoulli(0.5))

    def coin_guide():
        pyro.sample("coin", dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))

    SVI(coin, coin_guide, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO()).step()
    with pytest.raises(ReductionError, match="'coin'"):
        reduce_model(coin_guide, dist.Beta(1.0, 1.0), model=coin)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_guide_that_diverged(bad):
    guide = AutoNormal(model)
    guide(Y)
    with torch.no_grad():
        guide.locs.weights[1] = bad
    with pytest.raises(ReductionError, match=r"'weights'.*1 of 3"):
        with pyro.validation_enabled(False):
            reduce_model(guide, {"weights": NARROW})


@pytest.mark.parametrize(
    "guide_type", [AutoNormal, AutoMultivariateNormal, AutoNormalMessenger, AutoLaplaceApproximation]
)
def test_a_guide_not_fitted(guide_type):
    with pytest.raises(ReductionError, match="has not been fitted"):
        reduce_model(guide_type(model), {"bias": NARROW}, args=(Y,))


def test_a_list_of_guides_not_fitted():
    guide = AutoGuideList(model)
    guide.append(AutoNormal(model))
    with pytest.raises(ReductionError, match="has not been fitted"):
        reduce_model(guide, {"bias": NARROW}, args=(Y,))


def test_a_function_guide_not_fitted():
    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(ReductionError, match=r"not been fitted: its parameters \['loc'\]"):
        reduce_model(guide, NARROW, model=one_site)
    assert "loc" not in pyro.get_param_store()


def test_a_hand_written_guide_without_its_model():
    with pytest.raises(ReductionError, match="pass model="):
        reduce_model(lambda: None, NARROW)


def test_what_is_no_guide():
    with pytest.raises(ReductionError, match="guide is a str"):
        reduce_model("guide", NARROW)


def test_a_guide_with_no_density():
    guide = AutoDelta(one_site)
    guide()
    with pytest.raises(ReductionError, match="'z'.*no density.*AutoNormal"):
        reduce_model(guide, NARROW)


def test_arguments_that_the_model_does_not_take():
    def needs_data(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoNormalMessenger(needs_data)
    guide(Y)
    with pytest.raises(ReductionError, match="args="):
        reduce_model(guide, NARROW)
    assert reduce_model(guide, NARROW, args=(Y,)).method == "exact"


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


def test_a_prior_that_depends_on_a_site_summed_out():
    def mixture():
        which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(which, 1.0))

    guide = AutoNormal(pyro.poutine.block(mixture, hide=["which"]))
    guide()
    with pytest.raises(ReductionError, match=r"'z' depends on \['which'\]"):
        reduce_model(guide, {"z": NARROW}, model=mixture)


def test_a_point_where_only_draws_are_to_be_had():
    def hierarchical():
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        pyro.sample("z", dist.Normal(0.0, tau))

    guide = AutoNormal(hierarchical)
    guide()
    with pytest.raises(ReductionError, match="'z'.*point.*narrow"):
        reduce_model(guide, {"z": dist.Delta(torch.tensor(0.0))})


def test_a_point_outside_the_support(guide):
    with pytest.raises(ReductionError, match="'scale'.*outside"):
        reduce_model(guide, {"scale": dist.Delta(torch.tensor(-1.0))})


def test_a_second_reduction_of_a_point(guide):
    reduction = reduce_model(guide, {"bias": dist.Delta(torch.tensor(0.0))})
    with pytest.raises(ReductionError):
        reduce_model(reduction.guide, {"bias": NARROW})


@pytest.mark.parametrize("num_samples", [0, -1, 1.5])
def test_a_number_of_draws_that_is_none(guide, num_samples):
    with pytest.raises(ReductionError, match="num_samples"):
        reduce_model(guide, {"bias": NARROW}, method="importance", num_samples=num_samples)

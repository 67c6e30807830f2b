# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Reduced priors as users state them, and what is said of those that do not fit."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoNormal,
)

from pyro_bmrs import ReductionError, reduce_model
from pyro_bmrs.integration.log_joint import LogJoint
from pyro_bmrs.reduction.priors import match_prior, read_reduced_priors, reduced_model
from tests.programs import NARROW, fit, hierarchical, one_site

pytestmark = pytest.mark.usefixtures("double")


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


def test_a_reduced_prior_program_with_dependent_sites():
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=200)

    def reduced_prior():
        tau = pyro.sample("tau", dist.LogNormal(-0.1, 0.15))
        pyro.sample("theta", dist.Normal(0.0, 0.9 * tau))

    reduction = reduce_model(guide, reduced_prior, num_samples=200)
    assert reduction.method == "importance"
    trace = poutine.trace(poutine.condition(reduction.model, {"tau": torch.tensor(2.0)})).get_trace(y)
    assert trace.nodes["theta"]["fn"].scale[0].item() == pytest.approx(1.8)


def test_a_reduced_prior_program_is_a_mapping_by_another_name():
    y = torch.tensor([0.3, -0.2, 0.5])
    guide = fit(hierarchical, AutoNormal(hierarchical), y, steps=50)

    def reduced_prior():
        pyro.sample("tau", dist.LogNormal(-1.0, 0.1))

    by_program = reduce_model(guide, reduced_prior)
    by_mapping = reduce_model(guide, {"tau": dist.LogNormal(-1.0, 0.1)})
    assert by_program.method == "exact"
    torch.testing.assert_close(by_program.delta_evidence, by_mapping.delta_evidence)


def test_a_reduced_prior_in_another_dtype_is_taken_at_its_value(exact_guide):
    guide, _, _ = exact_guide()
    single = reduce_model(guide, {"rest": dist.Normal(0.0, torch.tensor(0.5, dtype=torch.float32))})
    double = reduce_model(guide, {"rest": dist.Normal(0.0, 0.5)})
    assert single.delta_evidence.dtype == torch.float64
    torch.testing.assert_close(single.delta_evidence, double.delta_evidence)
    point = reduce_model(guide, {"rest": dist.Delta(torch.zeros(2, dtype=torch.float32))})
    assert point.posterior["first"].mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("prior", "reduced_prior"),
    [
        (dist.Normal(0.0, 1.0), dist.Bernoulli(0.5)),
        (dist.Beta(2.0, 2.0), dist.Bernoulli(0.5)),
        (dist.Gamma(2.0, 2.0).expand([3]).to_event(1), dist.Poisson(2.0)),
        (dist.Poisson(2.0), dist.Gamma(2.0, 2.0)),
        (dist.Bernoulli(0.5), dist.Normal(0.0, 1.0)),
    ],
)
def test_a_reduced_prior_is_discrete_where_the_site_is(prior, reduced_prior):
    with pytest.raises(ReductionError, match="neither has mass where the other has"):
        match_prior("z", reduced_prior, prior)
    match_prior("z", dist.Delta(torch.tensor(1.0)), prior)


def test_a_masked_prior_masks_the_reduced_one():
    mask = torch.tensor([True, False, True])
    prior = dist.Normal(torch.zeros(3), 1.0).mask(mask).to_event(1)
    value = torch.tensor([0.3, 0.4, 0.5])
    matched = match_prior("z", dist.Laplace(0.0, 1.0), prior)
    torch.testing.assert_close(matched.log_prob(value), dist.Laplace(0.0, 1.0).log_prob(value)[mask].sum())
    with pytest.raises(ReductionError, match="masked within an event"):
        match_prior("z", dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), prior)
    whole = match_prior(
        "z",
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.Normal(torch.zeros(3, 2), 1.0).to_event(1).mask(mask),
    )
    assert torch.equal(whole.log_prob(torch.ones(3, 2)) == 0, ~mask)


SPELLINGS = {
    "scalar": lambda d: d(torch.tensor(0.0)),
    "batch": lambda d: d(torch.zeros(3)),
    "to_event": lambda d: d(torch.zeros(3)).to_event(1),
    "expanded": lambda d: d(torch.tensor(0.0)).expand([3]),
    "expanded, to_event": lambda d: d(torch.tensor(0.0)).expand([3]).to_event(1),
    "one element": lambda d: d(torch.zeros(1)).to_event(1),
    "masked": lambda d: d(torch.zeros(3)).mask(torch.ones(3, dtype=torch.bool)),
    "event_dim": lambda d: dist.Delta(torch.zeros(3), event_dim=1) if d is dist.Delta else d(torch.zeros(3)),
}


@pytest.mark.parametrize("of", [dist.Delta, lambda loc: dist.Normal(loc, 0.2)], ids=["point", "normal"])
@pytest.mark.parametrize("prior", [dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.zeros(3), 1.0).to_event(1)])
def test_every_spelling_is_the_same_reduced_prior(prior, of):
    """How dimensions are declared is no matter where elements are independent."""
    values = torch.tensor([0.0, 0.5, 0.0]).float()
    expected = of(torch.zeros(3).float()).log_prob(values).sum()
    for how, spell in SPELLINGS.items():
        matched = match_prior("z", spell(of), prior)
        assert (matched.batch_shape, matched.event_shape) == (prior.batch_shape, prior.event_shape), how
        torch.testing.assert_close(matched.log_prob(values).sum(), expected, msg=how)


def test_a_reduced_prior_with_a_nan_is_refused():
    prior = dist.Normal(torch.zeros(3), 1.0)
    reduced_prior = dist.Normal(torch.tensor([0.0, torch.nan, 0.0]), 0.1, validate_args=False).to_event(1)
    with pytest.raises(ReductionError, match="'z' has a NaN in its loc, at 1 of 3 elements"):
        match_prior("z", reduced_prior, prior)


def test_a_model_with_a_program_of_reduced_priors_is_run_at_many_points_at_once():
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mean, 1.0))

    def half_as_broad():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mean, 0.5))

    priors = read_reduced_priors(half_as_broad, ["mean", "effect"], (), {})
    density = LogJoint(reduced_model(model, priors))
    points = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    exact = dist.Normal(0.0, 1.0).log_prob(points[:, 0]) + dist.Normal(points[:, 0], 0.5).log_prob(points[:, 1])
    torch.testing.assert_close(density(points), exact)
    assert density.is_vectorised

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints, transforms

from pyro_bmrs import ReductionError
from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal
from pyro_bmrs.evidence import reduce
from pyro_bmrs.evidence.support import Interval, check_within, common_interval, contains, is_discrete, support_interval


@pytest.mark.parametrize(
    ("distribution", "low", "high"),
    [
        (dist.Normal(0.0, 1.0), -math.inf, math.inf),
        (dist.Gamma(2.0, 1.0), 0.0, math.inf),
        (dist.HalfCauchy(1.0), 0.0, math.inf),
        (dist.Beta(2.0, 1.0), 0.0, 1.0),
        (dist.Uniform(-1.0, 2.0), -1.0, 2.0),
        (dist.Pareto(2.0, 1.0), 2.0, math.inf),
        (dist.VonMises(0.0, 1.0), -math.pi, math.pi),
        (LogUniform(0.5, 2.0), 0.5, 2.0),
        (TruncatedNormal(0.0, 1.0, -math.inf, 2.0), -math.inf, 2.0),
        (dist.LogNormal(0.0, 1.0), 0.0, math.inf),
        (dist.TransformedDistribution(dist.HalfCauchy(1.0), [transforms.AffineTransform(1.0, -2.0)]), -math.inf, 1.0),
        (dist.TransformedDistribution(dist.Beta(1.0, 2.0), [transforms.AffineTransform(1.0, 2.0)]), 1.0, 3.0),
        (dist.TransformedDistribution(dist.Uniform(0.0, 2.0), [transforms.ExpTransform()]), 1.0, math.exp(2.0)),
        (
            dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), 1.0)),
            0.0,
            math.inf,
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, torch.distributions.Distribution) else str(x),
)
def test_supports(distribution, low: float, high: float) -> None:
    interval = support_interval(distribution)
    assert (float(interval.low), float(interval.high)) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize(
    "distribution", [dist.Poisson(1.0), dist.Dirichlet(torch.ones(3)), dist.Normal(torch.zeros(2), 1.0).to_event(1)]
)
def test_what_is_no_interval_of_scalars_has_none(distribution) -> None:
    assert support_interval(distribution) is None


def test_intersections_and_what_is_outside() -> None:
    both = Interval(0.0).intersection(Interval(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 3.0])))
    assert both.low.tolist() == [0.0, 2.0]
    assert both.high.tolist() == [1.0, 3.0]
    assert Interval(torch.tensor([-1.0, 2.0])).outside(Interval(0.0)).tolist() == [True, False]
    assert not Interval().outside(Interval()).any()
    assert Interval(0.0).outside(Interval(0.0, 9.0)).all()


def test_ends_computed_in_two_ways_are_the_same_end() -> None:
    ends = torch.linspace(0.05, 20.0, 200)
    there_and_back = ends.log().exp()
    assert (there_and_back > ends).any()
    assert not Interval(0.0, there_and_back).outside(Interval(0.0, ends)).any()
    assert Interval(0.0, ends * (1 + 1e-5)).outside(Interval(0.0, ends)).all()


def test_the_coarser_of_two_precisions_says_what_rounding_is() -> None:
    single, double = torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64)
    assert single.double() > double
    assert not Interval(0.0, single).outside(Interval(0.0, double))
    assert Interval(0.0, double * (1 + 1e-9)).outside(Interval(0.0, double))
    assert not Interval(0.0, double * (1 + 1e-15)).outside(Interval(0.0, double))


def test_an_end_at_zero_has_no_slack() -> None:
    assert Interval(-1e-30).outside(Interval(0.0))


def test_infinite_ends_are_within_infinite_ends_alone() -> None:
    infinity = torch.tensor([-math.inf, 0.0])
    assert Interval(infinity).outside(Interval(0.0)).tolist() == [True, False]
    assert not Interval(infinity).outside(Interval()).any()


def test_the_support_of_a_constraint_is_the_interval() -> None:
    assert Interval().constraint() is constraints.real
    constraint = Interval(0.0, torch.tensor([1.0, math.inf])).constraint()
    assert constraint.check(torch.tensor([2.0, 2.0])).tolist() == [False, True]


# Whichever method meets it says it alike.
METHODS = {
    "rule": (dist.Normal(0.5, 0.1), dist.Uniform(0.0, 1.0), dist.Uniform(-1.0, 1.0), "exact"),
    "quadrature": (dist.Beta(2.0, 2.0), dist.Beta(1.0, 1.0), dist.Gamma(1.0, 1.0), "quadrature"),
    "importance": (dist.Beta(2.0, 2.0), dist.Beta(1.0, 1.0), dist.Gamma(1.0, 1.0), "importance"),
    "draws of a joint distribution": (
        dist.Dirichlet(torch.ones(2)),
        dist.Dirichlet(torch.ones(2)),
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        "importance",
    ),
}


@pytest.mark.parametrize("case", METHODS.values(), ids=METHODS)
def test_a_reduced_prior_beyond_the_priors_support_is_refused_in_one_sentence(case) -> None:
    *triple, method = case
    sentence = (
        "The reduced prior's support leaves the prior's at 1 of 1 elements. There the prior has no density: bound the "
        "reduced prior to the support of the prior."
    )
    with pytest.raises(ReductionError) as caught:
        reduce(*triple, method=method)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("method", ["exact", "quadrature", "importance"])
def test_no_method_takes_rounding_of_an_end_for_a_support_that_leaves(method: str) -> None:
    high = torch.tensor(0.7)
    above = torch.nextafter(high, torch.tensor(1.0))
    prior, reduced_prior = LogUniform(0.1, high), LogUniform(torch.tensor(0.1), above)
    posterior = TruncatedLogNormal(torch.tensor(-1.0), 0.2, 0.1, high)
    reduced = reduce(posterior, prior, reduced_prior, method=method)
    assert reduced.delta_evidence.item() == pytest.approx(0.0, abs=1e-5)
    wider = LogUniform(torch.tensor(0.1), torch.tensor(0.9))
    with pytest.raises(ReductionError, match="reduced prior's support leaves the prior's at 1 of 1"):
        reduce(posterior, prior, wider, method=method)


def test_check_within_counts_and_names() -> None:
    check_within(torch.tensor([False, False]), "posterior")
    with pytest.raises(ReductionError, match=r"The posterior's support .* at 1 of 2 elements.*bound the posterior"):
        check_within(torch.tensor([False, True]), "posterior")


def test_the_common_interval_of_three() -> None:
    common = common_interval(dist.Normal(0.0, 1.0), dist.Gamma(1.0, 1.0), dist.Uniform(0.5, 2.0))
    assert (float(common.low), float(common.high)) == (0.5, 2.0)
    with pytest.raises(ReductionError, match="the prior is Poisson"):
        common_interval(dist.Normal(0.0, 1.0), dist.Poisson(1.0), dist.Normal(0.0, 1.0))
    with pytest.raises(ReductionError, match="do not overlap at 1 of 1"):
        common_interval(dist.Uniform(0.0, 1.0), dist.Normal(0.0, 1.0), dist.Uniform(2.0, 3.0))


def test_values_are_in_a_support_event_by_event() -> None:
    shares = torch.tensor([[0.5, 0.5], [0.7, 0.5]])
    assert contains(dist.Dirichlet(torch.ones(2)), shares).tolist() == [True, False]
    assert contains(dist.Gamma(1.0, 1.0), torch.tensor([-1.0, 1.0])).tolist() == [False, True]


def test_counts_and_categories_are_discrete() -> None:
    assert is_discrete(dist.Poisson(1.0)) and is_discrete(dist.Categorical(torch.ones(2)).to_event(0))
    assert not is_discrete(dist.Beta(1.0, 1.0))

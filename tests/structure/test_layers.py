# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from scipy import stats
from torch.distributions import transforms

from pyro_bmrs import ReductionError
from pyro_bmrs.evidence import log_evidence_change, reduce
from pyro_bmrs.structure.layers import as_point, is_point, layers, peel, to_event

AT = torch.tensor([0.5, -1.0])
POINTS = {
    "a batch, declared dependent": lambda: dist.Delta(AT).to_event(1),
    "one event": lambda: dist.Delta(AT, event_dim=1),
    "expanded": lambda: ExpandedDistribution(dist.Delta(AT), torch.Size([2])).to_event(1),
    "an expanded event": lambda: ExpandedDistribution(dist.Delta(AT, event_dim=1), torch.Size([])),
    "independent of no dimension": lambda: dist.Independent(dist.Delta(AT, event_dim=1), 0),
    "of torch's own wrapper": lambda: torch.distributions.Independent(dist.Delta(AT), 1),
}
WRAPPED = {
    "event": dist.Normal(torch.randn(3, 2), 0.7).to_event(1),
    "nested event": torch.distributions.Independent(dist.Normal(torch.randn(3, 2), 0.7).to_event(1), 1),
    "expanded": ExpandedDistribution(dist.Normal(torch.randn(2), 0.7), torch.Size([3, 2])).to_event(1),
    "mask within": dist.Normal(torch.randn(3, 2), 0.7).mask(torch.tensor([True, False])).to_event(1),
    "mask outside": dist.Normal(torch.randn(3, 2), 0.7).to_event(1).mask(torch.tensor([True, False, True])),
    "transform of events": dist.TransformedDistribution(
        dist.Gamma(torch.rand(3, 2) + 1, 2.0).to_event(1), [transforms.AffineTransform(1.0, 2.0)]
    ),
    "transform of expanded events": dist.TransformedDistribution(
        ExpandedDistribution(dist.Gamma(torch.rand(2) + 1, 2.0).to_event(1), torch.Size([3])),
        [transforms.ExpTransform()],
    ),
    "identity of events": dist.TransformedDistribution(
        dist.Normal(torch.randn(3, 2), 0.7).to_event(1), [transforms.AffineTransform(0.0, 1.0)]
    ),
    "joint": dist.Dirichlet(torch.rand(3, 2) + 1),
    "joint, independent": dist.Dirichlet(torch.rand(3, 2) + 1).to_event(1),
}


@pytest.mark.parametrize("distribution", WRAPPED.values(), ids=WRAPPED)
def test_the_density_is_the_sum_of_that_of_the_elements_that_count(distribution) -> None:
    x = distribution.sample()
    peeled = peel(distribution)
    terms = peeled.whole().log_prob(x)
    assert terms.shape == peeled.shape
    assert peeled.shape == distribution.batch_shape + distribution.event_shape[: peeled.event_dims]
    total = terms.sum(tuple(range(-peeled.event_dims, 0))) if peeled.event_dims else terms
    torch.testing.assert_close(total, distribution.log_prob(x))
    assert len(peeled.core.event_shape) == len(distribution.event_shape) - peeled.event_dims


def test_a_transform_that_mixes_elements_keeps_them_together() -> None:
    stick_breaking = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [transforms.StickBreakingTransform()]
    )
    assert peel(stick_breaking).core is stick_breaking


def test_layers_are_the_distribution_and_all_that_it_is_made_around() -> None:
    inner = dist.Normal(torch.zeros(2), 1.0)
    masked = inner.mask(True)
    event = dist.Independent(masked, 1)
    found = list(layers(event))
    assert len(found) == 3
    assert found[0] is event and found[1] is masked and found[2] is inner


@pytest.mark.parametrize("spell", POINTS.values(), ids=POINTS)
def test_a_point_is_one_however_it_is_spelled(spell) -> None:
    point = spell()
    assert is_point(point)
    one = as_point(point)
    assert one is not None
    assert one.event_dim == 1 and one.batch_shape == ()
    assert one.log_prob(AT) == 0
    assert one.log_prob(AT + torch.tensor([0.0, 1e-3])) == -torch.inf


@pytest.mark.parametrize("spell", POINTS.values(), ids=POINTS)
def test_a_joint_posterior_is_reduced_to_a_point_however_it_is_spelled(spell) -> None:
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    posterior = dist.MultivariateNormal(torch.ones(2, dtype=torch.float64), covariance)
    prior = dist.Normal(torch.zeros(2, dtype=torch.float64), 2.0).to_event(1)
    # The Savage-Dickey ratio of densities at the point.
    exact = stats.multivariate_normal.logpdf(AT, np.ones(2), covariance) - stats.norm.logpdf(AT, 0, 2).sum()
    reduced = reduce(posterior, prior, spell())
    assert reduced.method == "exact"
    assert reduced.delta_evidence.item() == pytest.approx(exact, rel=1e-12)
    assert is_point(reduced.posterior)


def test_a_point_on_independent_elements_may_be_masked_one_by_one() -> None:
    mask = torch.tensor([True, False])
    prior = dist.Normal(torch.zeros(2, dtype=torch.float64), 2.0).mask(mask).to_event(1)
    posterior = dist.Normal(torch.ones(2, dtype=torch.float64), 0.5).to_event(1)
    exact = stats.norm.logpdf(0.5, 1, 0.5) - stats.norm.logpdf(0.5, 0, 2)
    for point in (dist.Delta(AT).mask(mask).to_event(1), dist.Delta(AT, event_dim=1), dist.Delta(AT).to_event(1)):
        assert log_evidence_change(posterior, prior, point).item() == pytest.approx(exact, rel=1e-12)


def test_a_masked_point_is_a_point_but_no_single_delta() -> None:
    masked = dist.Delta(AT).mask(torch.tensor([True, False])).to_event(1)
    assert is_point(masked)
    with pytest.raises(ReductionError, match="mask on single elements"):
        as_point(masked)


def test_the_log_density_of_a_delta_is_kept() -> None:
    weighted = dist.Delta(AT, torch.tensor([1.0, 2.0]))
    one = as_point(weighted.to_event(1))
    assert one is not None
    assert one.log_prob(AT) == 3.0
    # It is no density of single elements: which part of it belongs to which is not known.
    assert peel(dist.Delta(AT, torch.tensor(3.0), event_dim=1)).event_dims == 0


@pytest.mark.parametrize("other", [dist.Normal(0.0, 1.0), dist.Dirichlet(torch.ones(2)), dist.LogNormal(0.0, 1.0)])
def test_what_has_a_density_is_no_point(other) -> None:
    assert not is_point(other)
    assert as_point(other) is None


def test_to_event_leaves_a_delta_a_delta() -> None:
    batch = dist.Delta(torch.randn(4, 3, 2), event_dim=1)
    event = to_event(batch, 1)
    assert type(event) is dist.Delta
    assert (event.batch_shape, event.event_shape) == ((4,), (3, 2))
    normal = dist.Normal(torch.zeros(3), 1.0)
    assert to_event(normal, 0) is normal
    assert to_event(normal, 1).event_shape == (3,)

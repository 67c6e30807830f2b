# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Copies of distributions stay when what they were made of is changed in place, and pass gradients on."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_bmrs.structure.copies import detached, with_own_tensors

VALUES = torch.tensor([0.3, 0.7])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: dist.Normal(p, p).to_event(1),
        lambda p: dist.Normal(0.0, p.sum()).expand([2]),
        lambda p: dist.MultivariateNormal(p, scale_tril=p.diag()),
        lambda p: dist.LowRankMultivariateNormal(p, p.unsqueeze(-1), p),
        lambda p: dist.Dirichlet(p),
        lambda p: dist.Normal(p, 1.0).mask(torch.tensor([True, False])),
        lambda p: dist.MaskedMixture(torch.tensor([True, False]), dist.Normal(p, 1.0), dist.Normal(0.0, p)),
        lambda p: dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(p, p)),
        lambda p: dist.TransformedDistribution(dist.Normal(0.0, p), dist.transforms.ExpTransform().inv.inv),
    ],
)
def test_a_copy_keeps_its_density_and_its_gradient(make) -> None:
    parameter = torch.tensor([0.7, 1.3], requires_grad=True)
    copy, before = with_own_tensors(make(parameter)), make(parameter.detach().clone()).log_prob(VALUES)
    (gradient,) = torch.autograd.grad(copy.log_prob(VALUES).sum(), parameter, retain_graph=True)
    (expected,) = torch.autograd.grad(make(parameter).log_prob(VALUES).sum(), parameter)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        parameter.mul_(3.0)
    torch.testing.assert_close(copy.log_prob(VALUES), before)


def test_a_flow_is_copied_with_its_weights() -> None:
    flow = dist.transforms.spline(1)
    copy = with_own_tensors(dist.TransformedDistribution(dist.Normal(torch.zeros(1), 1.0), [flow]))
    values = torch.tensor([[0.3]])
    before = copy.log_prob(values).detach().clone()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.linspace(0.0, 1.0, parameter.numel()).reshape(parameter.shape))
    torch.testing.assert_close(copy.log_prob(values).detach(), before)


def test_what_is_shared_stays_shared() -> None:
    scale = torch.ones(())
    copy = with_own_tensors(dist.Normal(scale, scale))
    assert copy.loc is not scale
    assert type(copy) is dist.Normal


def test_a_detached_copy_passes_no_gradient_on_and_stays() -> None:
    parameter = torch.tensor([0.7, 1.3], requires_grad=True)
    affine = dist.transforms.AffineTransform(2 * parameter, parameter.exp())
    original = dist.TransformedDistribution(dist.Normal(parameter, 1.0), affine)
    copy, before = detached(original), original.log_prob(VALUES).detach()
    with torch.no_grad():
        parameter.mul_(3.0)
    density = copy.log_prob(VALUES)
    assert not density.requires_grad
    torch.testing.assert_close(density, before)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import copy
import math
import pickle

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import biject_to, constraints, transform_to

from pyro_bmrs.distributions.extended_interval import extended_interval

INF = math.inf
LOW = torch.tensor([0.0, -3.0, -INF, -INF, 1e6], dtype=torch.float64)
HIGH = torch.tensor([1.0, INF, 2.0, INF, 1e6 + 1], dtype=torch.float64)


@pytest.mark.parametrize("registry", [biject_to, transform_to])
def test_the_transform_is_an_increasing_bijection_onto_the_interval(registry):
    support = extended_interval(LOW, HIGH)
    transform = registry(support)
    x = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None].expand(33, 5)
    y = transform(x)
    assert support.check(y).all()
    assert transform.forward_shape((33, 1)) == transform.inverse_shape((33, 1)) == y.shape
    assert transform.codomain.check(y).all() and transform.sign == 1 and transform.bijective
    assert (y[1:] > y[:-1]).all()
    torch.testing.assert_close(transform.inv(y), x, rtol=1e-6, atol=1e-6)


def test_bounded_elements_are_transformed_as_pytorch_does():
    low, high = torch.tensor([0.0, -2.0]), torch.tensor([1.0, 5.0])
    ours, theirs = biject_to(extended_interval(low, high)), biject_to(constraints.interval(low, high))
    x = torch.linspace(-5, 5, 11)[:, None].expand(11, 2)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.log_abs_det_jacobian(x, ours(x)), theirs.log_abs_det_jacobian(x, theirs(x)))


def test_the_log_jacobian_is_that_of_automatic_differentiation():
    transform = biject_to(extended_interval(LOW, HIGH))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64, requires_grad=True)
    y = transform(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), slope.log())
    assert gradcheck(transform, (x,))
    assert gradcheck(transform.inv, (y.detach().requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_leaves_the_interval_or_becomes_nan_far_out(dtype):
    low, high = LOW.to(dtype), HIGH.to(dtype)
    support = extended_interval(low, high)
    transform = biject_to(support)
    for far in (-1e4, -80.0, 80.0, 1e4):
        x = torch.full_like(low, far).requires_grad_()
        y = transform(x)
        assert support.check(y).all()
        bounded = low.isfinite() & high.isfinite()
        (slope,) = torch.autograd.grad(y[bounded].sum(), x)
        assert slope[bounded].isfinite().all()
    ends = torch.stack([low, high])
    assert transform.inv(ends)[ends.isfinite()].isfinite().all()


def test_transforms_compare_cache_and_copy():
    transform = biject_to(extended_interval(LOW, HIGH))
    assert transform == biject_to(extended_interval(LOW.clone(), HIGH))
    assert transform != biject_to(extended_interval(LOW - 1, HIGH))
    assert transform.with_cache(0) is transform
    cached = transform.with_cache(1)
    y = cached(torch.zeros(5, dtype=torch.float64))
    assert cached(cached.inv(y)) is y
    for copied in (copy.deepcopy(cached), pickle.loads(pickle.dumps(cached))):
        assert copied == transform

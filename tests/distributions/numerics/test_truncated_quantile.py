# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import itertools
import math
import warnings

import pytest
import torch
from mpmath import mpf
from torch.autograd import gradcheck

from pyro_bmrs.distributions.numerics.truncated_quantile import truncated_cdf, truncated_quantile
from tests.distributions.exact_truncated_normal import ExactTruncatedNormal

INF = math.inf
# Locations in widths from the low end, scales in widths; an unbounded interval counts as one of width 1.
PLACES = [-40.0, -3.0, -0.1, 0.0, 0.3, 0.9, 1.0, 1.5, 41.0]
SCALES = [1e-6, 1e-3, 0.1, 0.3, 1.0, 3.0, 1e2, 1e6]
PROBABILITIES = [1e-12, 1e-3, 0.2, 0.5, 0.7, 0.999]


def cases(low, high, dtype):
    """Parameters and probabilities of a sweep, flat."""
    anchor = low if math.isfinite(low) else high - 1
    grid = torch.tensor(list(itertools.product(PLACES, SCALES, PROBABILITIES)), dtype=torch.float64).to(dtype)
    place, scale, u = grid.unbind(-1)
    width = high - low if math.isfinite(high - low) else 1
    return u, anchor + width * place, width * scale, torch.full_like(u, low), torch.full_like(u, high)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0), (0.0, INF), (-INF, 0.0)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 3e-6)])
@pytest.mark.no_cover
def test_the_quantile_has_the_probability_asked_for(low, high, dtype, tolerance):
    arguments = cases(low, high, dtype)
    x = truncated_quantile(*arguments)
    assert torch.all((low <= x) & (x <= high))
    for value, u, *parameters in zip(x.tolist(), *(tensor.tolist() for tensor in arguments)):
        exact = ExactTruncatedNormal(*parameters)
        # A quantile cannot be closer than the rounding of x itself allows.
        rounding = exact.pdf(value) * abs(value) * torch.finfo(dtype).eps
        error = min(abs(exact.cdf(value) - mpf(u)), abs(exact.sf(value) - (1 - mpf(u))))
        assert error <= tolerance + 2 * rounding, (value, u, parameters)


@pytest.mark.parametrize("loc, scale", [(0.0, 1.0), (0.3, 0.1), (2.0, 1.0), (8.0, 1.0), (1e4, 3.0), (0.4, 1e3)])
@pytest.mark.parametrize("dtype, tolerance, tiny", [(torch.float64, 1e-13, 1e-300), (torch.float32, 1e-5, 1e-37)])
def test_the_tail_away_from_the_mode_keeps_its_relative_accuracy(loc, scale, dtype, tolerance, tiny):
    u = torch.tensor([tiny, 1e-30, 1e-15, 1e-7], dtype=dtype)
    loc, scale, low, high = (torch.full_like(u, number) for number in (loc, scale, -INF, 1.0))
    x = truncated_quantile(u, loc, scale, low, high)
    for value, probability in zip(x.tolist(), u.tolist()):
        exact = ExactTruncatedNormal(loc[0].item(), scale[0].item(), -INF, 1.0)
        rounding = exact.pdf(value) * abs(value) * torch.finfo(dtype).eps
        assert abs(exact.cdf(value) - probability) <= tolerance * probability + 2 * rounding


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0), (0.0, INF), (-INF, 0.0)])
@pytest.mark.parametrize("dtype, relative, absolute", [(torch.float64, 1e-8, 1e-14), (torch.float32, 2e-4, 5e-6)])
@pytest.mark.no_cover
def test_slopes_are_those_of_the_implicit_function(low, high, dtype, relative, absolute):
    arguments = cases(low, high, dtype)
    parameters = [tensor.clone().requires_grad_() for tensor in arguments]
    x = truncated_quantile(*parameters)
    slopes = torch.autograd.grad(x.sum(), parameters)
    checked = 0
    for i, (value, u, *numbers) in enumerate(zip(x.tolist(), *(tensor.tolist() for tensor in arguments))):
        exact = ExactTruncatedNormal(*numbers)
        # The truth is taken at the rounded x: only where rounding hardly changes the probability.
        if exact.pdf(value) * abs(value) * torch.finfo(dtype).eps > 0.01 * relative * min(u, 1 - u):
            continue
        checked += 1
        for slope, truth in zip(slopes, [1 / exact.pdf(value), *exact.quantile_slopes(value)]):
            error = abs(slope[i].item() - truth)
            assert error <= relative * abs(truth) + absolute, (u, numbers, slope[i].item(), float(truth))
    assert checked > len(x) / 4


@pytest.mark.parametrize(
    "loc, scale, low, high",
    [
        (0.3, 0.7, 0.0, 1.0),  # in the bulk
        (0.3, 0.7, -INF, 1.0),
        (-2.0, 0.8, 0.0, INF),
        (-6.0, 1.0, 0.0, 2.0),  # in a tail
        (9.0, 1.0, 0.0, 2.0),
        (9.0, 1.0, -INF, 2.0),
        (0.2, 30.0, 0.0, 1.0),  # nearly uniform
        (0.5, 4.0, 0.0, 1.0),
    ],
)
def test_gradients_agree_with_finite_differences(loc, scale, low, high):
    u = torch.tensor([0.03, 0.4, 0.95], dtype=torch.float64, requires_grad=True)
    ends = {"low": low, "high": high}
    free = [loc, scale, *(end for end in ends.values() if math.isfinite(end))]
    parameters = [torch.full_like(u, number).requires_grad_() for number in free]

    def arguments(loc, scale, *finite):
        finite = iter(finite)
        return loc, scale, *(next(finite) if math.isfinite(end) else torch.full_like(u, end) for end in ends.values())

    def quantile(u, *parameters):
        return truncated_quantile(u, *arguments(*parameters))

    def cdf(x, *parameters):
        return truncated_cdf(x, *arguments(*parameters))

    assert gradcheck(quantile, (u, *parameters), atol=1e-7, rtol=1e-5)
    x = quantile(u, *parameters).detach().requires_grad_()
    assert gradcheck(cdf, (x, *parameters), atol=1e-7, rtol=1e-5)


def test_parameters_broadcast_against_probabilities_and_gradients_sum_over_them():
    u = torch.rand(5, 4, 3, dtype=torch.float64)
    # One element in the bulk, one in a tail, one nearly uniform.
    parameters = [
        torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for values in ([0.5, -30.0, 0.1], [0.4, 1.0, 50.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    ]
    x = truncated_quantile(u, *parameters)
    gradients = torch.autograd.grad(x.sum(), parameters)
    expanded = [parameter.detach().expand(u.shape).clone().requires_grad_() for parameter in parameters]
    full = truncated_quantile(u, *expanded)
    torch.testing.assert_close(x, full)
    for gradient, each in zip(gradients, torch.autograd.grad(full.sum(), expanded)):
        torch.testing.assert_close(gradient, each.sum((0, 1)))


def test_strided_arguments():
    u = torch.rand(3, 4, dtype=torch.float64)
    loc = torch.linspace(-30, 1, 12, dtype=torch.float64).reshape(3, 4)
    one, zero = torch.ones_like(loc), torch.zeros_like(loc)
    x = truncated_quantile(u, loc, one, zero, one)
    torch.testing.assert_close(truncated_quantile(u.T, loc.T, one.T, zero.T, one.T), x.T)


def test_a_second_derivative_is_refused_rather_than_wrong():
    u, loc = torch.tensor([0.3]), torch.tensor([0.2], requires_grad=True)
    x = truncated_quantile(u, loc, torch.ones(1), torch.zeros(1), torch.ones(1))
    (slope,) = torch.autograd.grad(x.square().sum(), loc, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_a_traced_quantile_still_takes_the_formula_that_its_parameters_need():
    u, one, zero = torch.tensor([0.3, 0.7]), torch.ones(2), torch.zeros(2)

    def quantile(loc):
        return truncated_quantile(u, loc, one, zero, one)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own
        traced = torch.jit.trace(quantile, (torch.tensor([0.2, 0.3], requires_grad=True),), check_trace=False)
    for numbers in ([0.5, 0.1], [-30.0, 40.0], [0.5, -40.0]):
        loc = torch.tensor(numbers, requires_grad=True)
        torch.testing.assert_close(traced(loc), quantile(loc))
        slopes = (torch.autograd.grad(function(loc).sum(), loc)[0] for function in (traced, quantile))
        torch.testing.assert_close(*slopes)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A trace says what the function does that was traced, however often it is called, and for other values too."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from torch.distributions import constraints, kl_divergence

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal

# Functions of two numbers and a value; the two that are traced first put the mode within the interval, or outside.
FUNCTIONS = {
    "density": lambda loc, scale, x: TruncatedNormal(loc, scale, 0.0, 3.0).log_prob(x),
    "density, infinite end": lambda loc, scale, x: TruncatedNormal(loc, scale, 0.0, math.inf).log_prob(x),
    "density, constant": lambda loc, scale, x: TruncatedNormal(torch.tensor(5.0), torch.tensor(0.5), 0.0, 3.0).log_prob(
        x
    ),
    "cdf": lambda loc, scale, x: TruncatedNormal(loc, scale, 0.0, 3.0).cdf(x),
    "quantile": lambda loc, scale, x: TruncatedNormal(loc, scale, 0.0, 3.0).icdf(x / 3),
    "mean": lambda loc, scale, x: TruncatedNormal(loc, scale, 0.0, x).mean,
    "variance": lambda loc, scale, x: TruncatedNormal(loc, scale, 0.0, x).variance,
    "entropy": lambda loc, scale, x: TruncatedNormal(loc, scale, 0.0, x).entropy(),
    "log-normal density": lambda loc, scale, x: TruncatedLogNormal(loc, scale, 1e-3, 3.0).log_prob(x),
    "log-normal variance": lambda loc, scale, x: TruncatedLogNormal(loc, scale, 0.0, x).variance,
    "log-normal quantile": lambda loc, scale, x: TruncatedLogNormal(loc, scale, 0.1, 3.0).icdf(x / 3),
    "log-uniform density": lambda loc, scale, x: LogUniform(scale / 10, 3.0 + scale).log_prob(x),
    "log-uniform variance": lambda loc, scale, x: LogUniform(scale / 10, 3.0 + scale).variance,
    "divergence": lambda loc, scale, x: kl_divergence(
        TruncatedNormal(loc, scale, 0.0, 3.0), TruncatedNormal(x, scale.detach(), 0.0, 3.0)
    ),
}


pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")


def arguments(requires_grad, *values):
    return [torch.tensor(value, dtype=torch.float64, requires_grad=requires_grad) for value in values]


def said_of(function, inputs):
    """Its value, and the gradients if they are asked for."""
    value = function(*inputs)
    return [value, *torch.autograd.grad(value, inputs, allow_unused=True)] if value.requires_grad else [value]


def agrees(function, first, requires_grad, calls):
    traced = torch.jit.trace(function, tuple(arguments(requires_grad, *first, 0.3)), check_trace=False)
    for number in range(calls):
        inputs = arguments(requires_grad, 3.0 * math.sin(number), 0.1 + 0.01 * number, 0.3 + 0.02 * number)
        torch.testing.assert_close(said_of(traced, inputs), said_of(function, inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@pytest.mark.parametrize("first, requires_grad", [((1.0, 0.5), True), ((5.0, 0.1), False)])
def test_a_trace_says_the_same_for_other_values(function, first, requires_grad):
    agrees(function, first, requires_grad, calls=10)


@pytest.mark.parametrize("name", ["density", "density, constant", "log-normal density"])
def test_a_trace_says_the_same_at_its_hundredth_call(name):
    agrees(FUNCTIONS[name], (1.0, 0.5), True, calls=100)


def model(y):
    pyro.sample(
        "y", dist.Normal(pyro.sample("x", TruncatedNormal(torch.tensor(0.0), torch.tensor(0.5), 0.0, 3.0)), 1.0), obs=y
    )


def guide(y):
    loc = pyro.param("loc", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(0.4), constraint=constraints.positive)
    pyro.sample("x", TruncatedNormal(loc, scale, 0.0, 3.0))


def test_a_traced_elbo_has_the_values_and_gradients_of_the_elbo():
    def ten_losses_and_gradients(elbo):
        pyro.clear_param_store()
        data = torch.tensor(1.0)
        elbo.loss_and_grads(model, guide, data)  # draws once more where it is compiled
        pyro.set_rng_seed(0)
        said = []
        for _ in range(10):
            leaves = [pyro.param(name).unconstrained() for name in ("loc", "scale")]
            for leaf in leaves:
                leaf.grad = None
            loss = elbo.loss_and_grads(model, guide, data)
            said.append([loss, *(leaf.grad.item() for leaf in leaves)])
        return torch.tensor(said)

    said = ten_losses_and_gradients(JitTrace_ELBO())
    torch.testing.assert_close(said, ten_losses_and_gradients(Trace_ELBO()), rtol=1e-4, atol=1e-4)
    assert len(said.unique(dim=0)) == 10

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What every Pyro distribution owes: shapes, wrappers, constraints, copies, validation."""

import copy
import math
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch.distributions import biject_to, constraints, transform_to

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal, TruncatedNormal
from pyro_bmrs.errors import ReductionError

INF = math.inf
ROW = torch.tensor([0.2, -30.0, 0.1])
SCALE = torch.tensor([[1.0], [50.0]])
BUILDERS = {
    "TruncatedNormal": lambda: TruncatedNormal(ROW, SCALE, 0.0, 1.0),
    "TruncatedNormal with infinite ends": lambda: TruncatedNormal(
        ROW, SCALE, torch.tensor([-INF, 0.0, -INF]), torch.tensor([1.0, INF, INF])
    ),
    "TruncatedLogNormal": lambda: TruncatedLogNormal(ROW, SCALE, 1e-3, 2.0),
    "TruncatedLogNormal from 0": lambda: TruncatedLogNormal(ROW, SCALE / 9, 0.0, torch.tensor([1.0, 2.0, INF])),
    "LogUniform": lambda: LogUniform(torch.tensor([1e-9, 1e-3, 0.5]), torch.tensor([[1.0], [2.0]])),
}
pytestmark = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())


def parameters(distribution):
    return {name: getattr(distribution, name) for name in distribution.arg_constraints}


def assert_same(first, second):
    assert type(first) is type(second) and first.batch_shape == second.batch_shape
    for name, value in parameters(first).items():
        assert torch.equal(value, getattr(second, name)), name


def test_shapes(build):
    distribution = build()
    assert distribution.batch_shape == (2, 3) and distribution.event_shape == () and distribution.has_rsample
    assert distribution.rsample().shape == distribution().shape == (2, 3)
    value = distribution.sample((4, 1))
    assert value.shape == distribution.shape((4, 1)) == (4, 1, 2, 3)
    assert distribution.log_prob(value).shape == distribution.cdf(value).shape == value.shape
    assert distribution.log_prob(value[0, 0, 0]).shape == (2, 3)
    for statistic in ("mean", "variance", "stddev", "mode"):
        assert getattr(distribution, statistic).shape == (2, 3)
    assert distribution.entropy().shape == (2, 3)
    assert distribution.infer_shapes(**{name: value.shape for name, value in parameters(distribution).items()}) == (
        (2, 3),
        (),
    )


def test_numbers_make_scalars_of_the_default_dtype(build):
    distribution = build()
    numbers = [value[0, 0].item() for value in parameters(distribution).values()]
    scalar = type(distribution)(*numbers)
    assert scalar.batch_shape == () and scalar.sample().dtype == torch.get_default_dtype()


def test_expand(build):
    distribution = build()
    expanded = distribution.expand([4, 2, 3])
    assert type(expanded) is type(distribution) and expanded.batch_shape == (4, 2, 3)
    assert expanded.expand_by([5]).batch_shape == (5, 4, 2, 3)
    value = expanded.sample()
    assert value.shape == (4, 2, 3)
    torch.testing.assert_close(expanded.log_prob(value), distribution.log_prob(value))
    torch.testing.assert_close(expanded.mean, distribution.mean.expand(4, 2, 3))
    assert (value[0] != value[1]).any()
    assert expanded._validate_args == distribution._validate_args


def test_to_event_and_mask(build):
    distribution = build()
    event = distribution.to_event(1)
    value = event.sample()
    assert event.batch_shape == (2,) and event.event_shape == (3,)
    torch.testing.assert_close(event.log_prob(value), distribution.log_prob(value).sum(-1))
    torch.testing.assert_close(event.entropy(), distribution.entropy().sum(-1))
    assert event.support.check(value).all()
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(distribution.mask(mask).log_prob(value), distribution.log_prob(value) * mask)


def test_copies(build):
    distribution = build()
    distribution.log_prob(distribution.rsample())
    for copied in (copy.deepcopy(distribution), pickle.loads(pickle.dumps(distribution)), copy.copy(distribution)):
        assert_same(copied, distribution)
        value = copied.sample()
        torch.testing.assert_close(copied.log_prob(value), distribution.log_prob(value))


def test_the_repr_names_the_parameters(build):
    distribution = build()
    assert re.match(r"\w+\((\w+: torch\.Size\(\[2, 3\]\)(, )?)+\)$", repr(distribution))
    assert all(name in repr(distribution) for name in parameters(distribution))


@pytest.mark.parametrize("registry", [biject_to, transform_to])
def test_support_and_its_bijection(build, registry):
    distribution = build()
    assert constraints.is_dependent(type(distribution).support) and type(distribution).support.event_dim == 0
    assert not type(distribution).support.is_discrete
    value = distribution.sample((50,)).double()
    exact = type(distribution)(*(value.double() for value in parameters(distribution).values()))
    inside = value.clamp(*(getattr(exact.support, name) for name in ("lower_bound", "upper_bound")))
    bijection = registry(exact.support)
    x = bijection.inv(inside)
    assert exact.support.check(bijection(x)).all() and x.isfinite().all()
    torch.testing.assert_close(bijection(x), inside, rtol=1e-6, atol=1e-9)
    assert exact.support.check(bijection(torch.randn(50, 2, 3, dtype=torch.float64))).all()
    event = registry(exact.to_event(1).support)
    assert event.log_abs_det_jacobian(x, event(x)).shape == (50, 2)


def test_values_outside_the_support_are_refused(build):
    distribution = build()
    outside = torch.where(distribution.high.isfinite(), distribution.high + 1, distribution.low - 1)
    if outside.isfinite().any():
        for method in (distribution.log_prob, distribution.cdf):
            with pytest.raises(ValueError, match="within the support"):
                method(outside)


@pytest.mark.parametrize("name, wrong", [("loc", math.nan), ("scale", 0.0), ("scale", -1.0), ("scale", math.nan)])
def test_wrong_parameters_are_refused(build, name, wrong):
    distribution = build()
    arguments = parameters(distribution)
    if name in arguments:
        arguments[name] = arguments[name].clone()
        arguments[name][1, 2] = wrong
        with pytest.raises(ValueError, match=f"parameter {name}"):
            type(distribution)(**arguments)


@pytest.mark.parametrize("name", ["loc", "scale"])
def test_infinite_parameters_are_refused(build, name):
    distribution = build()
    arguments = parameters(distribution)
    if name in arguments:
        arguments[name] = torch.full((2, 3), INF)
        with pytest.raises(ReductionError, match=f"finite {name}"):
            type(distribution)(**arguments)


def test_ends_in_the_wrong_order_are_refused_and_counted(build):
    distribution = build()
    arguments = parameters(distribution)
    arguments["low"], arguments["high"] = torch.ones(2, 3), torch.full((2, 3), 2.0)
    arguments["high"][1, 1:] = 1.0
    with pytest.raises(ReductionError, match=r"low < high.*at index \(1, 1\).*2 of 6"):
        type(distribution)(**arguments)
    unchecked = type(distribution)(**arguments, validate_args=False)
    assert unchecked.batch_shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_has_the_dtype_of_the_parameters(build, dtype):
    distribution = build()
    cast = type(distribution)(**{name: value.to(dtype) for name, value in parameters(distribution).items()})
    value = cast.sample()
    tensors = [value, cast.log_prob(value), cast.cdf(value), cast.icdf(torch.rand(2, 3, dtype=dtype)), cast.entropy()]
    tensors += [getattr(cast, name) for name in ("mean", "variance", "stddev", "mode")]
    assert {tensor.dtype for tensor in tensors} == {dtype}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_is_on_the_device_of_the_parameters(build):
    distribution = build()
    moved = type(distribution)(**{name: value.cuda() for name, value in parameters(distribution).items()})
    value = moved.rsample()
    tensors = [value, moved.log_prob(value), moved.cdf(value), moved.icdf(torch.rand(2, 3).cuda()), moved.entropy()]
    tensors += [getattr(moved, name) for name in ("mean", "variance", "stddev", "mode")]
    tensors.append(biject_to(moved.support)(torch.zeros(2, 3).cuda()))
    assert all(tensor.is_cuda for tensor in tensors)


def test_in_plates_of_a_model_and_under_an_autoguide(build):
    def model():
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            x = pyro.sample("x", build())
        with pyro.plate("more", 4):
            pyro.sample("y", type(build())(*(value[0, 0] for value in parameters(build()).values())))
        return x

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (2, 3) and trace.nodes["y"]["value"].shape == (4,)

    guide = AutoNormal(model)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide)
    assert loss.isfinite()
    samples = Predictive(guide, num_samples=7)()
    assert samples["x"].shape == (7, 2, 3) and build().support.check(samples["x"]).all()


def test_under_an_outer_transform(build):
    transformed = dist.TransformedDistribution(build(), [dist.transforms.AffineTransform(0.0, 2.0)])
    value = transformed.sample()
    torch.testing.assert_close(transformed.log_prob(value), build().log_prob(value / 2) - math.log(2))

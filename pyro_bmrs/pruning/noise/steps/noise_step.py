# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Draws of truncated log-normals, and their divergence from the log-uniform on the same interval, for a step of training.

In a small network a step costs as much as it has operations, whatever their size. Here are the value and the
derivatives of both, in a few dozen operations that are the same for all parameters, for the units of all layers at
once. The general rules, in :mod:`pyro_bmrs.distributions`, are differentiable in the ends too and exact to rounding,
and take hundreds.

Both look along the interval of the logarithm from the end that is nearer to the location. In scales from there, t runs
from 0 to the length L, and :math:`\alpha` is how far the end lies beyond the location: negative where that is inside.

**Draws.** The logarithm is drawn as a quantile: with :math:`\bar\Phi` the upper tail of the normal, which does not
cancel in the direction of the longer side, :math:`\bar\Phi(\alpha + t) = \bar\Phi(\alpha) - u\,(\bar\Phi(\alpha)
- \bar\Phi(\alpha + L))` is inverted in double precision; beyond :math:`\alpha = 30`, where the hazard is linear to
rounding, by a quadratic. The derivatives are those of the implicit function, dx/dloc = 1 - (1 - u) f(low) / f(x) -
u f(high) / f(x), and likewise in the scale (M. Figurnov, S. Mohamed and A. Mnih (2018), *Implicit reparameterization
gradients*, https://arxiv.org/abs/1805.08498).

**Divergence.** It is that of the logarithms, a truncated normal from a uniform. With t measured from the mode, which
lies :math:`\mu = \max(\alpha, 0)` scales from the location, the density proportional to :math:`e^{-e(t)}`, and M its
integral,

.. math:: \mathrm{KL} = \log(\text{width} / \sigma) - \log M - E[e], \qquad e(t) = \mu t + \tfrac12 t^2,

and its derivatives are :math:`-\mathrm{Cov}(t, e) / \sigma` in the location and :math:`-2\,\mathrm{Var}(e)` in the log
of the scale. All of these are expectations under one density, and come from one Gauss-Legendre rule.

On the CPU all of it is NumPy's: between convolutions the caches are cold, and an operation of torch costs ten of NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_bmrs.distributions.numerics.normal_quadrature import gauss_legendre

__all__ = ["LogUniforms", "NoiseStep", "noise_step"]

_ROOT_HALF = math.sqrt(0.5)
# From here on the hazard of the normal is linear, as far as a quantile is concerned.
_FAR = 30.0
# How far probabilities are from 0 and 1, by rounding.
_EDGE = 2.0**-53
# Beyond so many e-folds below the mode a density is 0, and so many nodes integrate it, in single precision and double.
_SINGLE, _DOUBLE = (24.0, 24), (40.0, 48)
# So many draws are computed at a time that what is computed of them stays in the cache.
_NUM_TOGETHER = 8192


class LogUniforms(NamedTuple):
    """
    The priors of all units, as a step computes with them: arrays of NumPy on the CPU, elsewhere of torch.

    Made by :meth:`of`, once for as long as the priors stay.
    """

    ends: Any  # of the variable, in double precision, of shape (2, units)
    log_ends: Any  # of its logarithm, in double precision, of shape (2, units)
    sides: Any  # 0 and 1, of shape (2, 1)
    log_width: Any  # the log of how far those are apart, in the precision of the parameters
    # A Gauss-Legendre rule that integrates to rounding in that precision.
    nodes: Any  # on [-1/2, 1/2], symmetric to the last bit
    moments: Any  # the weights of the integral, and of the integral times the node
    reach: Any  # how many scales a normal takes to fall

    @classmethod
    def of(cls, ends: Tensor, log_ends: Tensor, dtype: torch.dtype) -> LogUniforms:
        """
        The priors on given intervals.

        :param ends: the ends of the variable itself, positive and finite, shape ``(2, units)``.
        :param log_ends: their logarithms, shape ``(2, units)``.
        :param dtype: that of the parameters.
        """
        log_ends = log_ends.double()
        num_folds, num_nodes = _SINGLE if torch.finfo(dtype).bits <= 32 else _DOUBLE
        nodes, weights = log_ends.new_tensor(gauss_legendre(num_nodes))
        nodes = 0.5 * (nodes - nodes.flip(0))
        moments, reach = torch.stack([weights, weights * nodes]), log_ends.new_tensor(math.sqrt(2 * num_folds))
        rounded = (log_ends[1] - log_ends[0]).log(), nodes, moments, reach
        tables = ends.double(), log_ends, log_ends.new_tensor([[0.0], [1.0]]), *(table.to(dtype) for table in rounded)
        return cls(*(table.numpy() if _is_numpys(table.device, dtype) else table for table in tables))

    def at(self, units: Tensor) -> LogUniforms:
        """
        Those of some of the units.

        :param units: their numbers.
        """
        numbers: Any = units if isinstance(self.ends, Tensor) else units.numpy()
        of_units = {name: getattr(self, name)[..., numbers] for name in ("ends", "log_ends", "log_width")}
        return self._replace(**of_units)


class NoiseStep(NamedTuple):
    """
    Draws of truncated log-normals, and their divergences from the log-uniform on the same interval.

    :param values: by site, each of shape ``(..., units of the site)``.
    :param divergence: of each unit in nats, shape ``(units,)``.
    :param log_normaliser: log of the integral of the density of the logarithm relative to its mode, shape ``(units,)``.
    :param weighted: the sum of divergences times weights, where there are weights.
    """

    values: tuple[Tensor, ...]
    divergence: Tensor
    log_normaliser: Tensor
    weighted: Tensor | None


def noise_step(
    uniform: Tensor,
    parameters: Tensor,
    priors: LogUniforms,
    sites: Sequence[slice],
    weights: Tensor | None = None,
) -> NoiseStep:
    """
    Quantiles of truncated log-normals, and KL(q || p) of them from the log-uniform on the same interval.

    All are differentiable once in the parameters.

    :param uniform: probabilities in [0, 1), of any precision; shape ``(..., units)``. A 0 stands for what rounds to it.
    :param parameters: location and log of the scale of the logarithm, shape ``(2, units)``.
    :param priors: the log-uniforms.
    :param sites: which units are each site's; together all, in order.
    :param weights: of the divergences, shape ``(units,)``, not differentiated.
    :return: draws of the dtype of the parameters, divergences, and normalisers.

    Example::

        >>> import torch
        >>> log_ends = torch.tensor([[-20.0, -20.0], [0.0, 0.0]]).double()
        >>> priors = LogUniforms.of(log_ends.exp(), log_ends, torch.float32)
        >>> uniform, parameters = torch.tensor([0.5, 0.5]), torch.tensor([[-3.0, 0.0], [0.0, -5.0]])
        >>> step = noise_step(uniform, parameters, priors, [slice(1), slice(1, 2)])
        >>> step.values[0].log()
        tensor([-3.0017])
        >>> step.divergence
        tensor([1.5848, 7.2699])
    """
    apply: Any = _Step.apply
    *values, divergence, log_normaliser, weighted = apply(sites, priors, weights, uniform, parameters)
    return NoiseStep(tuple(values), divergence, log_normaliser, weighted)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sites: Sequence[slice], priors: LogUniforms, weights: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        xp = torch if isinstance(priors.ends, Tensor) else np
        arrays: Any = tensors if xp is torch else [tensor.detach().numpy() for tensor in tensors]
        uniform, parameters = arrays
        law = _law(xp, _cast(parameters, priors.ends), priors)
        probability = _cast(uniform, priors.ends) * (1 - 2 * _EDGE) + _EDGE
        value, ctx.by_value = _quantiles(xp, probability, law, parameters, priors)
        divergence, log_normaliser, ctx.by_divergence, ctx.by_normaliser = _divergence(xp, law, parameters, priors)
        ctx.sites, ctx.weights = sites, weights
        divergence, log_normaliser = _tensor(divergence), _tensor(log_normaliser)
        weighted = None if weights is None else divergence.dot(weights)
        return *(_tensor(value[..., site]) for site in sites), divergence, log_normaliser, weighted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        xp = torch if isinstance(ctx.by_value, Tensor) else np
        *of_values, of_divergence, of_normaliser, of_weighted = (
            None if grad is None else grad.numpy() if xp is np else grad for grad in grads
        )
        gradient: Any = 0
        if any(grad is not None for grad in of_values):
            parts = (
                xp.zeros_like(ctx.by_value[0][..., site]) if grad is None else grad
                for site, grad in zip(ctx.sites, of_values)
            )
            gradient = xp.concatenate(tuple(parts), -1) * ctx.by_value
            if gradient.ndim > 2:
                gradient = gradient.reshape(2, -1, gradient.shape[-1]).sum(1)
        if of_weighted is not None:
            weights = ctx.weights.numpy() if xp is np else ctx.weights
            of_divergence = of_weighted * weights + (0 if of_divergence is None else of_divergence)
        # The mode stands still: where it moves with the location, the slope there is 0.
        if of_divergence is not None:
            gradient = gradient + of_divergence * ctx.by_divergence
        if of_normaliser is not None:
            gradient = gradient + of_normaliser * xp.stack(ctx.by_normaliser)
        return None, None, None, None, _tensor(gradient)


class _Law(NamedTuple):
    """Truncated normals, as they are seen from the end that is nearer to the location; in double precision."""

    is_upper: Any  # 1 where that end is the upper one, else 0
    end: Any  # the end
    scale: Any  # negative where the interval extends downwards from the end
    start: Any  # how many scales the end is beyond the location
    length: Any  # and how many the interval is long


def _is_numpys(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether NumPy sees the same memory, and has the precision."""
    return device.type == "cpu" and dtype != torch.bfloat16


def _tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def _special(function: Callable[[Tensor], Tensor], array: Any) -> Any:
    """A special function of an array, of which NumPy has none."""
    return function(array) if isinstance(array, Tensor) else function(_tensor(array)).numpy()


def _cast(array: Any, like: Any) -> Any:
    """An array in the precision of another."""
    return array.to(like.dtype) if isinstance(array, Tensor) else array.astype(like.dtype, copy=False)


def _empty(shape: tuple[int, ...], like: Any) -> Any:
    """An array in the precision of another."""
    return like.new_empty(shape) if isinstance(like, Tensor) else np.empty(shape, like.dtype)


def _pair(first: Any, second: Any, like: Any) -> Any:
    """Two arrays below each other, in the precision of another; what stacking costs several times more for."""
    pair = _empty((2, *first.shape), like)
    pair[0], pair[1] = first, second
    return pair


def _law(xp: Any, parameters: Any, priors: LogUniforms) -> _Law:
    loc, log_scale = parameters
    low, high = priors.log_ends
    scale = xp.exp(log_scale)
    places = (priors.log_ends - loc) / scale
    is_upper = places[0] + places[1] < 0
    start = xp.where(is_upper, -places[1], places[0])
    signed = xp.where(is_upper, -scale, scale)
    return _Law(_cast(is_upper, scale), xp.where(is_upper, high, low), signed, start, (high - low) / scale)


def _quantiles(xp: Any, uniform: Any, law: _Law, parameters: Any, priors: LogUniforms) -> tuple[Any, Any]:
    """The quantiles, and their derivatives in the location and the log of the scale; of the parameters' precision."""
    # The upper tails from either end of the interval.
    tails = 0.5 * _special(torch.special.erfc, (law.start + law.length * priors.sides) * _ROOT_HALF)
    shared = tails[0], tails[0] - tails[1], law.length * (law.start + 0.5 * law.length)

    def quantile(uniform: Any) -> tuple[Any, Any]:
        value, by_loc, by_log_scale = _quantile(xp, uniform, law, priors, *shared)
        return _cast(value, parameters), _pair(by_loc, by_log_scale, parameters)

    rows = max(1, _NUM_TOGETHER // len(law.start))
    if xp is torch or uniform.ndim < 2 or uniform.size <= rows * len(law.start):
        return quantile(uniform)
    flat = uniform.reshape(-1, len(law.start))
    values, slopes = zip(*(quantile(flat[row : row + rows]) for row in range(0, len(flat), rows)))
    return np.concatenate(values).reshape(uniform.shape), np.concatenate(slopes, 1).reshape(2, *uniform.shape)


def _quantile(
    xp: Any, uniform: Any, law: _Law, priors: LogUniforms, tail: Any, mass: Any, whole_fall: Any
) -> tuple[Any, Any, Any]:
    """The same of some of the draws; the last three are the upper tail, its share inside, and how the density falls."""
    is_upper, end, scale, start, length = law
    passed = abs(is_upper - uniform)
    ahead = 1 - passed
    t = -start - _special(torch.special.ndtri, tail - passed * mass)
    is_far = start > _FAR
    if is_far.any():
        t = xp.where(is_far, _far_quantile(xp, passed, ahead, start, length, whole_fall), t)
    t = xp.minimum(xp.where(t > 0, t, 0.0), length)

    # Densities at the ends, relative to that at the value.
    fall = t * (start + 0.5 * t)
    by_near, by_far = xp.exp(fall) * ahead, xp.exp(fall - whole_fall) * passed
    value, by_loc = xp.exp(end + scale * t), 1 - (by_near + by_far)
    by_log_scale = scale * (t + start * by_loc - length * by_far)
    # exp(log(low)) may round to less than low.
    inside = xp.minimum(xp.maximum(value, priors.ends[0]), priors.ends[1])
    return inside, value * by_loc, value * by_log_scale


def _far_quantile(xp: Any, passed: Any, ahead: Any, start: Any, length: Any, whole_fall: Any) -> Any:
    """Quantiles of normals of which nothing but the upper tail is inside."""
    # Of the others anything that is finite.
    start = xp.where(start > _FAR, start, _FAR)
    first = _special(torch.special.erfcx, _ROOT_HALF * start)
    last = _special(torch.special.erfcx, _ROOT_HALF * (start + length))
    depth = -xp.log(ahead + passed * (xp.exp(-whole_fall) * last / first))
    # The hazard less the start, which as a difference would cancel.
    inverse = 1 / start
    gap = inverse * (1 - inverse * inverse * (2 - 10 * inverse * inverse))
    hazard = start + gap
    return 2 * depth / (hazard + xp.sqrt(hazard * hazard + 2 * depth * hazard * gap))


def _divergence(xp: Any, law: _Law, parameters: Any, priors: LogUniforms) -> tuple[Any, Any, Any, tuple[Any, Any]]:
    """The divergence and the log normaliser, and their derivatives in the location and the log of the scale."""
    start, length, scale = _cast(law.start, parameters), _cast(law.length, parameters), _cast(law.scale, parameters)
    mode = xp.where(start > 0, start, 0.0)
    # Where the density has fallen far enough: the root of mode t + t²/2 = reach²/2.
    reach = priors.reach * priors.reach / (mode + xp.hypot(mode, priors.reach))
    below = mode - start
    below, above = xp.minimum(below, reach), xp.minimum(length - below, reach)
    width, middle = below + above, 0.5 * (above - below)
    # The density, times -e, and times e² at the nodes, in one block, the units in a row: an operation costs as much as
    # its memory is far.
    block = _empty((3, len(priors.nodes), len(width)), parameters)
    density, weighted, squared = block
    t = priors.nodes[:, None] * width
    t += middle
    height = xp.multiply(t, -0.5, out=weighted)
    height -= mode
    height *= t
    xp.exp(height, out=density)
    xp.multiply(height, height, out=squared)
    squared *= density
    weighted *= density
    # The integrals of each, and of each times the node.
    (mass, node), (height, cross), (square, _) = priors.moments @ block
    height, node = height / mass, node / mass
    log_normaliser = xp.log(mass * width) + parameters[1]
    divergence = priors.log_width - log_normaliser + height
    by_loc, by_log_scale = (cross / mass - node * height) * width / scale, -2 * (square / mass - height * height)
    by_normaliser = (width * node + middle) / scale, -2 * height
    return divergence, log_normaliser, _pair(by_loc, by_log_scale, parameters), by_normaliser

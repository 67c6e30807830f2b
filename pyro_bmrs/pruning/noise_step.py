# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Draws of truncated log-normals, and their divergence from the log-uniform on the same interval, for a step of training.

In a small network a step costs as much as it has operations, whatever their size. Here are the value and the
derivatives of both, in a few dozen operations that are the same for all parameters, for the units of all layers at
once. The general rules, in :mod:`pyro_bmrs.distributions`, are differentiable in the ends too and exact to rounding,
and take hundreds.

**Draws.** The logarithm is drawn as a quantile. With t the displacement from the mode in scales, :math:`\alpha \ge 0`
how many scales the mode lies from the location, and :math:`\bar\Phi` the upper tail of the normal, the survival
:math:`\bar\Phi(\alpha + t) / \bar\Phi(\alpha)` is inverted in double precision, in which it does not cancel; beyond
:math:`\alpha = 30`, where the hazard is linear to rounding, by a quadratic. The derivatives are those of the implicit
function, dx/dloc = 1 - (1 - u) f(low) / f(x) - u f(high) / f(x), and likewise in the scale (M. Figurnov, S. Mohamed and
A. Mnih (2018), *Implicit reparameterization gradients*, https://arxiv.org/abs/1805.08498).

**Divergence.** It is that of the logarithms, a truncated normal from a uniform. With t and :math:`\alpha` as above, the
density proportional to :math:`e^{-e(t)}`, and M its integral,

.. math:: \mathrm{KL} = \log(\text{width} / \sigma) - \log M - E[e], \qquad e(t) = \alpha |t| + \tfrac12 t^2,

and its derivatives are :math:`-\mathrm{Cov}(t, e) / \sigma` in the location and :math:`-2\,\mathrm{Var}(e)` in the log
of the scale. All of these are expectations under one density, and come from one Gauss-Legendre rule on either side of
the mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_bmrs.distributions.normal_quadrature import gauss_legendre

__all__ = ["draw_log_normal", "log_uniform_divergence"]

_ROOT_HALF = math.sqrt(0.5)
# From here on the hazard of the normal is linear, as far as a quantile is concerned.
_FAR = 30.0
# Beyond so many e-folds below the mode a density is 0.
_NUM_FOLDS = 40.0


def draw_log_normal(uniform: Tensor, loc: Tensor, log_scale: Tensor, ends: Tensor) -> Tensor:
    """
    Quantiles of truncated log-normals, differentiable once in ``loc`` and ``log_scale``.

    :param uniform: probabilities in (0, 1), in double precision; shape ``(..., units)``.
    :param loc: location of the logarithm, shape ``(units,)``.
    :param log_scale: log of the scale of the logarithm, likewise.
    :param ends: the ends of the variable itself, positive and finite, in double precision; shape ``(2, units)``.
    :return: of the shape of ``uniform`` and the dtype of ``loc``.

    Example::

        >>> import torch
        >>> uniform, ends = torch.tensor([0.5]).double(), torch.tensor([[1e-9], [1.0]]).double()
        >>> draw_log_normal(uniform, torch.tensor([-3.0]), torch.tensor([0.0]), ends).log()
        tensor([-3.0017])
    """
    return _Draw.apply(uniform, loc, log_scale, ends)


def log_uniform_divergence(loc: Tensor, log_scale: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """
    KL(q || p) for q a truncated log-normal, and p log-uniform on the same interval; and the log normaliser of q.

    :param loc: location of the logarithm, shape ``(units,)``.
    :param log_scale: log of the scale of the logarithm.
    :param ends: the ends of the logarithm, finite; shape ``(2, units)``.
    :return: the divergence of each unit in nats, and the log of the integral of the density of the logarithm relative
        to its mode; differentiable once in ``loc`` and ``log_scale``.

    Example::

        >>> import torch
        >>> log_uniform_divergence(torch.tensor([0.0]), torch.tensor([-5.0]), torch.tensor([[-20.0], [0.0]]))
        (tensor([7.2699]), tensor([-4.7742]))
    """
    return _Divergence.apply(loc, log_scale, ends)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, uniform: Tensor, loc: Tensor, log_scale: Tensor, ends: Tensor) -> Tensor:
        xp, arrays = _arrays(uniform, loc.double(), log_scale.double(), ends)
        with np.errstate(all="ignore"):
            value, by_loc, by_log_scale = (torch.as_tensor(array).to(loc) for array in _quantile(xp, *arrays))
        ctx.save_for_backward(by_loc, by_log_scale)
        ctx.shape = loc.shape
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_loc, by_log_scale = ctx.saved_tensors
        return None, (grad * by_loc).sum_to_size(ctx.shape), (grad * by_log_scale).sum_to_size(ctx.shape), None


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_scale: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        xp, arrays = _arrays(loc, log_scale, ends)
        with np.errstate(all="ignore"):
            results = _divergence(xp, *arrays, *_arrays(*_rule(loc.dtype, loc.device))[1])
        divergence, log_normaliser, *saved = map(torch.as_tensor, results)
        ctx.save_for_backward(*saved)
        return divergence, log_normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_normaliser: Tensor | None) -> tuple[Tensor | None, ...]:
        # The mode stands still: where it moves with the location, the slope there is 0.
        covariance, variance, place, energy = ctx.saved_tensors
        by_loc = by_log_scale = None
        if grad is not None:
            by_loc, by_log_scale = -grad * covariance, -2 * grad * variance
        if grad_normaliser is not None:
            more_loc, more_log_scale = grad_normaliser * place, 2 * grad_normaliser * energy
            by_loc = more_loc if by_loc is None else by_loc + more_loc
            by_log_scale = more_log_scale if by_log_scale is None else by_log_scale + more_log_scale
        return by_loc, by_log_scale, None


def _arrays(*tensors: Tensor) -> tuple[Any, list[Any]]:
    """
    The tensors as arrays, and the library to compute with.

    Where NumPy sees the same memory it computes: on a few hundred units its operations take a quarter of the time.
    """
    if all(tensor.is_cpu for tensor in tensors):
        return np, [tensor.detach().numpy() for tensor in tensors]
    return torch, list(tensors)


def _special(function: Callable[[Tensor], Tensor], array: Any) -> Any:
    """A special function of an array, of which NumPy has none."""
    return function(array) if isinstance(array, Tensor) else function(torch.from_numpy(array)).numpy()


def _quantile(xp: Any, uniform: Any, loc: Any, log_scale: Any, ends: Any) -> tuple[Any, Any, Any]:
    """The quantiles, and their derivatives in the location and the log of the scale."""
    scale = xp.exp(log_scale)
    distances = (xp.log(ends) - loc) / scale
    offset, start, lengths = _from_mode(xp, distances)

    # Beyond the start, of the half normal: the share of it that each side has.
    tails, whole = (_special(torch.special.erfcx, place * _ROOT_HALF) for place in (start + lengths, start))
    falls = lengths * (start + 0.5 * lengths)
    survival = xp.exp(-falls) * tails / whole
    below, above = 1 - survival
    total, above_uniform = below + above, 1 - uniform
    signed = uniform * total - below
    # Sums of what is small, not differences of what is not.
    is_below = signed < 0
    beyond, outer = xp.where(is_below, survival[0], survival[1]), xp.where(is_below, uniform, above_uniform)
    left = beyond + outer * total

    t = -start - _special(torch.special.ndtri, 0.5 * whole * xp.exp(-0.5 * start * start) * left)
    is_far = start > _FAR
    if is_far.any():
        # The hazard less the start, which as a difference would cancel.
        inverse, depth = 1 / start, -xp.log(left)
        gap = inverse * (1 - inverse * inverse * (2 - 10 * inverse * inverse))
        hazard = start + gap
        quadratic = 2 * depth / (hazard + xp.sqrt(hazard * hazard + 2 * depth * hazard * gap))
        t = xp.where(is_far, quadratic, t)
    t = xp.minimum(xp.maximum(t, xp.zeros_like(t)), xp.where(is_below, lengths[0], lengths[1]))
    t = xp.copysign(t, signed)

    # Densities at the ends, relative to that at the value.
    fall = t * (offset + 0.5 * t)
    by_low, by_high = xp.exp(fall - falls[0]) * above_uniform, xp.exp(fall - falls[1]) * uniform
    place = t + offset
    value = xp.exp(loc + scale * place)
    by_scale = place - distances[0] * by_low - distances[1] * by_high
    # exp(log(low)) may round to less than low.
    return xp.minimum(xp.maximum(value, ends[0]), ends[1]), value * (1 - (by_low + by_high)), value * scale * by_scale


def _from_mode(xp: Any, distances: Any) -> tuple[Any, Any, Any]:
    """
    Where the mode is, given both ends relative to the location, in scales.

    :return: the mode relative to the location, how far it is from it, and how far the ends are from the mode.
    """
    nothing = xp.zeros_like(distances[0])
    offset = xp.maximum(distances[0], nothing) + xp.minimum(distances[1], nothing)
    return offset, abs(offset), abs(distances - offset)


def _divergence(xp: Any, loc: Any, log_scale: Any, ends: Any, nodes: Any, moments: Any, root: Any) -> tuple[Any, ...]:
    """The divergence and the log normaliser, and of the density exp(-e(t)): Cov(t, e), Var(e), E[t] and E[e]."""
    narrowness = xp.exp(-log_scale)
    _, start, lengths = _from_mode(xp, (ends - loc) * narrowness)
    # Where the density has fallen far enough: the root of |offset| t + t²/2 = folds.
    lengths = xp.minimum(lengths, 2 * _NUM_FOLDS / (start + xp.hypot(start, root)))[..., None]
    # The mode is where the density is highest: on whatever side there is anything, it falls.
    t = lengths * nodes
    energies = t * (start[:, None] + 0.5 * t)
    density = xp.exp(-energies)
    weighted = density * energies
    # The integrals of 1 and t, of e and e t, and of e².
    (mass, place), (energy, cross), (square, _) = (
        _both_sides(values @ moments * lengths, lengths) for values in (density, weighted, weighted * energies)
    )
    energy, place = energy / mass, place / mass
    log_normaliser = xp.log(mass) + log_scale
    covariance, variance = (cross / mass - place * energy) * narrowness, square / mass - energy * energy
    divergence = xp.log(ends[1] - ends[0]) - log_normaliser - energy
    return divergence, log_normaliser, covariance, variance, place * narrowness, energy


def _both_sides(integrals: Any, lengths: Any) -> tuple[Any, Any]:
    """The sums over both sides of the mode of the integrals of a function, and of it times t."""
    below, above = integrals
    return below[:, 0] + above[:, 0], above[:, 1] * lengths[1, :, 0] - below[:, 1] * lengths[0, :, 0]


@lru_cache
def _rule(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes on [0, 1], the weights of the integral and of the mean, and how many scales a normal takes to fall."""
    rule = gauss_legendre(16 if torch.finfo(dtype).bits <= 32 else 32)
    nodes, weights = torch.tensor(rule, dtype=dtype, device=device)
    return nodes, torch.stack([weights, weights * nodes], -1), nodes.new_tensor(math.sqrt(2 * _NUM_FOLDS))

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
from functools import lru_cache
from typing import Any

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


def draw_log_normal(uniform: Tensor, loc: Tensor, log_scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """
    Quantiles of truncated log-normals, differentiable once in ``loc`` and ``log_scale``.

    :param uniform: probabilities in (0, 1), in double precision; shape ``(..., units)``.
    :param loc: location of the logarithm, shape ``(units,)``.
    :param log_scale: log of the scale of the logarithm, likewise.
    :param low: lower end of the variable itself, positive.
    :param high: its upper end, finite.
    :return: of the shape of ``uniform`` and the dtype of ``loc``.

    Example::

        >>> import torch
        >>> uniform, low, high = torch.tensor([0.5]).double(), torch.tensor([1e-9]), torch.tensor([1.0])
        >>> draw_log_normal(uniform, torch.tensor([-3.0]), torch.tensor([0.0]), low, high).log()
        tensor([-3.0017])
    """
    return _Draw.apply(uniform, loc, log_scale, low, high)


def log_uniform_divergence(loc: Tensor, log_scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """
    KL(q || p) for q a truncated log-normal, and p log-uniform on the same interval; and the log normaliser of q.

    :param loc: location of the logarithm, shape ``(units,)``.
    :param log_scale: log of the scale of the logarithm.
    :param low: lower end of the logarithm, finite.
    :param high: its upper end, finite.
    :return: the divergence of each unit in nats, and the log of the integral of the density of the logarithm relative
        to its mode; differentiable once in ``loc`` and ``log_scale``.

    Example::

        >>> import torch
        >>> low, high = torch.tensor([-20.0]), torch.tensor([0.0])
        >>> log_uniform_divergence(torch.tensor([0.0]), torch.tensor([-5.0]), low, high)
        (tensor([7.2699]), tensor([-4.7742]))
    """
    return _Divergence.apply(loc, log_scale, low, high)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, uniform: Tensor, loc: Tensor, log_scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        scale, wide_loc = torch.exp(log_scale.double()), loc.double()
        distances = (torch.stack([low, high]).double().log_() - wide_loc).div_(scale)
        below, above = distances
        # Of the mode from the location, signed, and of both ends from the mode; in scales.
        offset = below.clamp(min=0).add_(above.clamp(max=0))
        start = offset.abs()
        lengths = (distances - offset).abs_()

        # Beyond the start, of the half normal: the share of it that each side has.
        tails = torch.special.erfcx(torch.cat([start.unsqueeze(0), start + lengths]).mul_(_ROOT_HALF))
        falls = lengths * torch.add(start, lengths, alpha=0.5)
        survival = torch.exp(-falls).mul_(tails[1:]).div_(tails[0])
        total, above_uniform = torch.rsub(survival, 1).sum(0), 1 - uniform
        signed = torch.addcmul(survival[0] - 1, uniform, total)
        # Sums of what is small, not differences of what is not.
        is_below = signed < 0
        beyond, outer = torch.where(is_below, survival[0], survival[1]), torch.where(is_below, uniform, above_uniform)
        left = torch.addcmul(beyond, outer, total)

        near = torch.special.erfc(start.clamp(max=_FAR).mul_(_ROOT_HALF)) * left
        t = torch.special.ndtri(near.mul_(0.5)).add_(start).neg_().clamp_(min=0)
        is_far = start > _FAR
        if is_far.any():
            # The hazard less the start, which as a difference would cancel.
            inverse, depth = start.reciprocal(), -left.log()
            gap = inverse * (1 - inverse.square() * (2 - 10 * inverse.square()))
            hazard = start + gap
            quadratic = 2 * depth / (hazard + (hazard * hazard + 2 * depth * hazard * gap).sqrt())
            t = torch.where(is_far, quadratic, t)
        t = torch.minimum(t, torch.where(is_below, lengths[0], lengths[1])).copysign_(signed)

        # Densities at the ends, relative to that at the value.
        fall = t * torch.add(offset, t, alpha=0.5)
        by_low, by_high = torch.exp(fall - falls[0]).mul_(above_uniform), torch.exp(fall - falls[1]).mul_(uniform)
        place = t.add_(offset)
        by_scale = torch.addcmul(place, below, by_low, value=-1).addcmul_(above, by_high, value=-1)
        by_loc = torch.rsub(by_low.add_(by_high), 1)
        exact = torch.addcmul(wide_loc, scale, place).exp_()
        ctx.save_for_backward((exact * by_loc).to(loc.dtype), (exact * scale).mul_(by_scale).to(loc.dtype))
        ctx.shape = loc.shape
        # exp(log(low)) may round to less than low.
        return exact.to(loc.dtype).clamp_(low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_loc, by_log_scale = ctx.saved_tensors
        return None, (grad * by_loc).sum_to_size(ctx.shape), (grad * by_log_scale).sum_to_size(ctx.shape), None, None


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_scale: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        narrowness = torch.exp(-log_scale)
        distances = (torch.stack([low, high]) - loc).mul_(narrowness)
        offset = distances[0].clamp(min=0).add_(distances[1].clamp(max=0))
        mass, energy, square, place, cross = _expectations(offset, (distances - offset).abs_())
        covariance = torch.addcmul(cross, place, energy, value=-1).mul_(narrowness)
        variance = torch.addcmul(square, energy, energy, value=-1)
        ctx.save_for_backward(covariance, variance, place.mul_(narrowness), energy)
        # By the logs, as the scale may be smaller than any number.
        log_normaliser = mass.log_().add_(log_scale)
        return (high - low).log_().sub_(log_normaliser).sub_(energy), log_normaliser

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
        return by_loc, by_log_scale, None, None


def _expectations(offset: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """
    The mass, and E[e], E[e²], E[t] and E[te], of the density exp(-e(t)), all in scales.

    :param offset: of the mode from the location, signed.
    :param lengths: of the interval on both sides of the mode, shape ``(2, units)``.
    """
    nodes, moments, side = _rule(offset.dtype, offset.device)
    start = offset.abs()
    # Where the density has fallen far enough: the root of |offset| t + t²/2 = folds.
    root = math.sqrt(2 * _NUM_FOLDS)
    lengths = lengths.clamp(
        max=torch.hypot(start, torch.full_like(start, root)).add_(start).reciprocal_().mul_(root * root)
    )
    # The mode is where the density is highest: on whatever side there is anything, it falls.
    energy = torch.stack([start * lengths, 0.5 * lengths * lengths], -1) @ nodes
    weighted = energy.new_empty((3, *energy.shape))
    torch.exp(-energy, out=weighted[0])
    torch.mul(weighted[0], energy, out=weighted[1])
    torch.mul(weighted[1], energy, out=weighted[2])
    sums, moved = ((weighted @ moments) * lengths.unsqueeze(-1)).unbind(-1)
    mass, energies, squares = sums.sum(1)
    place, cross, _ = (moved * (lengths * side)).sum(1)
    return mass, energies / mass, squares / mass, place / mass, cross / mass


@lru_cache
def _rule(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes on [0, 1] and their squares, the weights of the integral and of the mean, the signs of the sides."""
    rule = gauss_legendre(16 if torch.finfo(dtype).bits <= 32 else 32)
    nodes, weights = torch.tensor(rule, dtype=dtype, device=device)
    moments = torch.stack([weights, weights * nodes], -1)
    return torch.stack([nodes, nodes * nodes]), moments, nodes.new_tensor([[-1.0], [1.0]])

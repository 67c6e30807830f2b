# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The log evidence of products of normals on intervals for millions of elements, without a graph.

Elements are taken in blocks, so that intermediate values stay in a processor's cache and memory is bounded, and
parameters that all elements share are never expanded. For uniform priors, those of pruning, closed forms for a mode
within the interval go first; only elements for which they would lose digits take the general way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pyro_bmrs.distributions.normal_mass import scaled_tail
from pyro_bmrs.evidence.normal_product import (
    IntervalNormal,
    IntervalUniform,
    Member,
    NormalMember,
    UniformMember,
    normal_product,
    product_of_members,
    seen_from_mode,
)

_BLOCK = 65536
_ROOT_HALF = math.sqrt(0.5)

_Record = TypeVar("_Record", bound=tuple[Tensor, ...])


def log_evidence(
    q: IntervalNormal | IntervalUniform, p: IntervalNormal | IntervalUniform, r: IntervalNormal | IntervalUniform
) -> Tensor:
    """The ``log_evidence`` of :func:`~.normal_product.normal_product`, in blocks where no gradient is asked for."""
    tensors = [*q, *p, *r]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    if shape.numel() <= _BLOCK or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return normal_product(q, p, r).log_evidence

    def flat(tensor: Tensor) -> Tensor:
        return tensor.reshape(()) if tensor.numel() == 1 else tensor.expand(shape).reshape(-1)

    size = shape.numel()
    return _in_blocks(_map(flat, q), _map(flat, seen_from_mode(p)), _map(flat, seen_from_mode(r)), size).reshape(shape)


def _in_blocks(q: IntervalNormal | IntervalUniform, p: Member, r: Member, size: int) -> Tensor:
    blocks = [slice(start, start + _BLOCK) for start in range(0, size, _BLOCK)]
    one_dtype = len({tensor.dtype for tensor in (*q, *p, *r)}) == 1
    if isinstance(q, IntervalUniform) or isinstance(p, NormalMember) or not q.loc.dim() or not one_dtype:
        return torch.cat([_in_general(_rows(q, block), _rows(p, block), _rows(r, block)) for block in blocks])
    values, masks = zip(*(_in_closed_form(_rows(q, block), _rows(r, block)) for block in blocks))
    out = torch.cat(values).add_(p.log_mass)
    for rest in torch.cat(masks).nonzero().squeeze(-1).split(_BLOCK):
        out[rest] = _in_general(_rows(q, rest), _rows(p, rest), _rows(r, rest))
    return out


def _in_general(q: IntervalNormal | IntervalUniform, p: Member, r: Member) -> Tensor:
    return product_of_members(seen_from_mode(q), p, r).log_evidence


def _in_closed_form(q: IntervalNormal, r: Member) -> tuple[Tensor, Tensor]:
    """log E_q[r], and where its closed form would lose digits."""
    return _of_restriction(q, r) if isinstance(r, UniformMember) else _of_product(q, r)


def _of_product(q: IntervalNormal, r: NormalMember) -> tuple[Tensor, Tensor]:
    # Where the locations of q and r lie within the common interval they are the modes, and their weighted mean is that
    # of the product: masses are sums of error functions, and nothing cancels.
    low, high = torch.maximum(q.low, r.low), torch.minimum(q.high, r.high)
    left, right = q.loc - low, high - q.loc
    outside = (torch.minimum(left, right) < 0) | (r.loc < low) | (r.loc > high)
    precision = q.scale**-2
    total = precision + r.precision
    weight, weight_r = precision / total, r.precision / total
    left, right = weight * left + weight_r * (r.loc - low), weight * right + weight_r * (high - r.loc)
    energy = (0.5 * r.precision) * weight * (r.loc - q.loc).square_()
    root, root_q = total.mul_(0.5).sqrt_(), _ROOT_HALF / q.scale
    mass = (left * root).erf_().add_((right * root).erf_()).div_(root)
    mass_q = ((q.loc - q.low) * root_q).erf_().add_(((q.high - q.loc) * root_q).erf_()).div_(root_q)
    return mass.div_(mass_q).log_().sub_(energy).sub_(r.log_mass), outside


def _of_restriction(q: IntervalNormal, r: UniformMember) -> tuple[Tensor, Tensor]:
    """The log of the fraction of q between the ends of r, over the width of r."""
    low, high = torch.maximum(q.low, r.low), torch.minimum(q.high, r.high)
    left, right, root = q.loc - low, high - q.loc, _ROOT_HALF / q.scale
    left_q, right_q = q.loc - q.low, q.high - q.loc
    mass = (left * root).erf_().add_((right * root).erf_())
    mass_q = (left_q * root).erf_().add_((right_q * root).erf_())
    out = mass.div_(mass_q).log_()
    nearer = torch.minimum(left, right)
    outside = torch.minimum(left_q, right_q) < 0
    beyond = (nearer < 0).nonzero().squeeze(-1)
    if len(beyond):
        # In the tail of q both error functions are near 1: scaled ones keep their difference.
        start, root, mass_q = (t.expand_as(nearer).index_select(0, beyond) for t in (nearer, root, mass_q))
        length = (high - low).expand_as(nearer).index_select(0, beyond).mul_(root)
        tail, fall = scaled_tail(start.neg_().mul_(root), length)
        out.index_copy_(0, beyond, tail.div_(mass_q).log_().sub_(start.square_()))
        outside[beyond] |= fall < 1
    return out.sub_(r.log_mass), outside


def _map(function: Callable[[Tensor], Tensor], record: _Record) -> _Record:
    return type(record)(*map(function, record))


def _rows(record: _Record, rows: slice | Tensor) -> _Record:
    def of(tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)

    return _map(of, record)

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

from pyro_bmrs.distributions.numerics.normal_mass import scaled_tail
from pyro_bmrs.evidence.numerics.normal_product import (
    IntervalNormal,
    IntervalUniform,
    Member,
    NormalMember,
    UniformMember,
    normal_product,
    product_of_members,
    seen_from_mode,
)

_BLOCK = 131072
# A sum of two error functions that is at least this has lost no more than a digit if they cancel.
_LEAST_SUM = 0.1

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
    out = q.loc.new_empty(size)
    remainders = []
    for block in blocks:
        members = _rows(q, block), _rows(p, block), _rows(r, block)
        remainders.append(_in_closed_form(*members, out[block]) + block.start)
    for rest in torch.cat(remainders).split(_BLOCK):
        out[rest] = _in_general(_rows(q, rest), _rows(p, rest), _rows(r, rest))
    return out


def _in_general(q: IntervalNormal | IntervalUniform, p: Member, r: Member) -> Tensor:
    return product_of_members(seen_from_mode(q), p, r).log_evidence


def _in_closed_form(q: IntervalNormal, p: UniformMember, r: Member, out: Tensor) -> Tensor:
    """Write log E_q[r/p] into ``out``; return the elements to be done again, since here they lost digits."""
    return _restricted(q, p, r, out) if isinstance(r, UniformMember) else _multiplied(q, p, r, out)


def _multiplied(q: IntervalNormal, p: UniformMember, r: NormalMember, out: Tensor) -> Tensor:
    """Of two normals: from the masses of both and of their product, and the distance between them."""
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
    root, root_q = total.mul_(0.5).sqrt_(), _half_root_precision(q.scale)
    mass = (left * root).erf_().add_((right * root).erf_()).div_(root)
    mass_q = ((q.loc - q.low) * root_q).erf_().add_(((q.high - q.loc) * root_q).erf_()).div_(root_q)
    torch.log(mass.div_(mass_q), out=out).sub_(energy).add_(p.log_mass - r.log_mass)
    return outside.nonzero().squeeze(-1)


def _restricted(q: IntervalNormal, p: UniformMember, r: UniformMember, out: Tensor) -> Tensor:
    """Of a normal and a uniform: from the fraction of the normal that lies between the ends of the uniform."""
    low, high = torch.maximum(q.low, r.low), torch.minimum(q.high, r.high)
    left, right, root = q.loc - low, high - q.loc, _half_root_precision(q.scale)
    below, above = torch.erf(left * root), torch.erf(right * root)
    # Pruning mostly asks for an interval that has its low end in common with the posterior.
    below_q = below if torch.equal(low, q.low) else torch.erf((q.loc - q.low) * root)
    above_q = above if torch.equal(high, q.high) else torch.erf((q.high - q.loc) * root)
    mass, mass_q = below + above, below_q + above_q
    fraction = mass / mass_q
    small = again = (mass < _LEAST_SUM).nonzero().squeeze(-1)
    if len(small):
        # In the tail of q both error functions are near 1: scaled ones keep their difference.
        left, right, root, mass_q = [_rows_of(tensor, mass, small) for tensor in (left, right, root, mass_q)]
        start = torch.minimum(left, right).neg_().mul_(root)
        tail, fall = scaled_tail(start, _rows_of(high - low, mass, small).mul_(root))
        fraction.index_copy_(0, small, tail.div_(mass_q))
        again = small[(mass_q < _LEAST_SUM) | (fall < 1)]
    torch.log(fraction, out=out).add_(p.log_mass - r.log_mass)
    if len(small):
        out.index_add_(0, small, start.square_(), alpha=-1)
    return again


def _rows_of(tensor: Tensor, like: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor that all elements may share."""
    return tensor.expand_as(like).index_select(0, rows)


def _half_root_precision(scale: Tensor) -> Tensor:
    """The root of half the precision, by which a distance is multiplied to be the argument of an error function."""
    return scale.new_tensor(math.sqrt(0.5)) / scale


def _map(function: Callable[[Tensor], Tensor], record: _Record) -> _Record:
    return type(record)(*map(function, record))


def _rows(record: _Record, rows: slice | Tensor) -> _Record:
    def of(tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)

    return _map(of, record)

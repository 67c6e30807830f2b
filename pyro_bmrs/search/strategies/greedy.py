# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
Forward and backward search among the reduced models of a joint normal posterior.

The state of the search is one symmetric matrix, the covariance A of the observations (:mod:`.observations`) swept on
the groups that are observed (Goodnight 1979, "A tutorial on the SWEEP operator", The American Statistician 33,
https://doi.org/10.1080/00031305.1979.10482685). Its diagonal blocks tell what becomes of the evidence when a group
changes sides, whichever side it is on: with M the swept matrix and b the swept residual, observing or forgetting the
elements K changes the log evidence by

.. math:: \pm \sum_{i \in K} c_i - \tfrac12 \log \left| \det M_{KK} \right| - \tfrac12 b_K^\top M_{KK}^{-1} b_K .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bmrs.errors import ReductionError

# Less of a gain, in nats, may be rounding.
TOLERANCE = 1e-8
# How many kicks in turn may lead to nothing, of how many groups, out of how many that are least decided.
_MOST_KICKS, _FLIPPED, _UNDECIDED = 40, 5, 20
# Of so many groups and more each kick takes longer, and there are fewer, and beyond the second none.
_FEWER_KICKS, _NO_KICKS = 100, 400
# Numbers in the blocks of pairs of groups that are looked at together.
_BATCH = 2**22


class Observed(NamedTuple):
    """
    Groups of observations to choose from.

    :param covariance: of the observations, shape ``(d, d)``.
    :param residual: observations less their means, shape ``(d,)``.
    :param constants: what each group adds to the score beside its normal density, shape ``(n,)``.
    :param label: the group of each observation, ascending, shape ``(d,)``.
    """

    covariance: Tensor
    residual: Tensor
    constants: Tensor
    label: Tensor


class Sweep:
    """
    One model, and what it would be worth to change it.

    :param observed: the observations to choose from.
    :param reduced: the groups to start with, shape ``(n,)``, boolean; later, those that are reduced.

    ``score`` is the change in log evidence with the constants of the groups, in nats.
    """

    def __init__(self, observed: Observed, reduced: Tensor) -> None:
        self._observed, self.reduced = observed, reduced.clone()
        self._members, self._present = members(observed.label, len(observed.constants))
        # All reduced groups at once, by a Cholesky factor.
        covariance, residual, constants, label = observed
        inside = self.reduced[label].nonzero().squeeze(-1)
        outside = (~self.reduced)[label].nonzero().squeeze(-1)
        factor = factor_of(covariance[inside][:, inside])
        inverse = torch.cholesky_inverse(factor)
        slope = inverse @ covariance[inside][:, outside]
        self._matrix = torch.empty_like(covariance)
        self._matrix[inside.unsqueeze(-1), inside] = -inverse
        self._matrix[inside.unsqueeze(-1), outside] = slope
        self._matrix[outside.unsqueeze(-1), inside] = slope.mT
        cross = covariance[outside][:, inside]
        self._matrix[outside.unsqueeze(-1), outside] = covariance[outside][:, outside] - cross @ slope
        weights = inverse @ residual[inside]
        self._residual = residual.clone()
        self._residual[inside] = weights
        self._residual[outside] -= cross @ weights
        self.score = constants[self.reduced].sum() - factor.diagonal().log().sum() - 0.5 * residual[inside] @ weights

    def flip(self, group: int) -> None:
        """Observes a group, or forgets it again."""
        self.score = self.score + self._signed_constants()[group]
        for place in self._members[group][self._present[group]].tolist():
            self._pivot(place, forget=bool(self.reduced[group]))
        self.reduced[group] = ~self.reduced[group]

    def _pivot(self, at: int, forget: bool) -> None:
        matrix, residual = self._matrix, self._residual
        column, pivot, error = matrix[:, at].clone(), matrix[at, at].clone(), residual[at].clone()
        self.score = self.score - 0.5 * (pivot.abs().log() + error.square() / pivot)
        residual.sub_(column * (error / pivot))
        matrix.addr_(column, column / pivot, alpha=-1)
        side = -1.0 if forget else 1.0
        matrix[:, at] = side * column / pivot
        matrix[at] = matrix[:, at]
        matrix[at, at] = -1 / pivot
        residual[at] = side * error / pivot

    def given(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance and residual of the observations of some groups that are not reduced, given those that are."""
        at = self._members[groups][self._present[groups]]
        return self._matrix[at][:, at], self._residual[at]

    def changes(self) -> Tensor:
        """What it would add to the score to flip each group, shape ``(n,)``."""
        block, error = self._blocks()
        return worth(self._signed_constants(), block, error)

    def _signed_constants(self) -> Tensor:
        return torch.where(self.reduced, -self._observed.constants, self._observed.constants)

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """The diagonal block of each group and its residual, padded to the size of the largest group."""
        block = self._matrix[self._members.unsqueeze(-1), self._members.unsqueeze(-2)]
        both = self._present.unsqueeze(-1) & self._present.unsqueeze(-2)
        eye = torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
        return torch.where(both, block, eye), self._residual[self._members] * self._present

    def best_pair(self) -> tuple[float, int, int]:
        """What it would add to the score to flip two groups together, at most, and the two groups."""
        block, error = self._blocks()
        constants = self._signed_constants()
        alone = worth(constants, block, error)
        count, size = error.shape
        best = (-math.inf, 0, 0)
        for rows in torch.arange(count, device=alone.device).split(max(1, _BATCH // (count * size * size))):
            # After the flip of a row's group, the block of a column's is the Schur complement of the row's in the two.
            cross = self._matrix[self._members[rows][:, None, :, None], self._members[None, :, None, :]]
            cross = cross * (self._present[rows][:, None, :, None] & self._present[None, :, None, :])
            own = torch.arange(len(rows), device=rows.device), rows
            cross[own] = 0.0
            slope = solve(block[rows].unsqueeze(1), cross)
            after = block - product(cross.mT, slope)
            error_after = error - product(slope.mT, error[rows][:, None, :, None]).squeeze(-1)
            both = alone[rows].unsqueeze(-1) + worth(constants, after, error_after)
            both[own] = -torch.inf
            place = int(both.argmax())
            found = (float(both.flatten()[place]), int(rows[place // count]), place % count)
            best = max(best, found)
        return best


def factor_of(covariance: Tensor) -> Tensor:
    """
    A Cholesky factor of the covariance of observations.

    :raises ReductionError: where there is none.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance)
    if info.any():
        raise ReductionError("the posterior's covariance is singular to rounding; leave out what others determine")
    return factor


def worth(constants: Tensor, block: Tensor, error: Tensor) -> Tensor:
    """
    What it adds to the score to flip a group.

    :param constants: what the group adds beside its normal density, with the sign of the flip.
    :param block: its diagonal block of the swept matrix.
    :param error: its part of the swept residual.
    """
    if block.shape[-1] == 1:
        pivot = block[..., 0, 0]
        return constants - 0.5 * (pivot.abs().log() + error[..., 0].square() / pivot)
    log_det: Tensor = torch.linalg.slogdet(block).logabsdet
    weights: Tensor = torch.linalg.solve(block, error)
    return constants - 0.5 * (log_det + (error * weights).sum(-1))


def solve(block: Tensor, right: Tensor) -> Tensor:
    """The inverse of a block, times another; millions of blocks of a single element are numbers, not matrices."""
    return right / block if block.shape[-1] == 1 else torch.linalg.solve(block, right)


def product(left: Tensor, right: Tensor) -> Tensor:
    """A block times another."""
    return left * right if left.shape[-1] == 1 else left @ right


def members(label: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The observations of each group, padded to the largest, and which of them are there: both ``(n, size)``."""
    sizes = torch.bincount(label, minlength=count)
    offset = torch.arange(int(sizes.max()), device=label.device)
    present = offset < sizes.unsqueeze(-1)
    return (sizes.cumsum(0) - sizes).unsqueeze(-1) + torch.where(present, offset, 0), present


def climb(observed: Observed, reduced: Tensor, advance: Callable[[Sweep], object] = lambda sweep: None) -> Sweep:
    """
    From a model to one that no flip of a group and no flip of a pair of groups improves.

    The best single flip is taken as long as one helps, then the best pair, swaps of a reduced for a full group among
    them, until none helps.

    :param observed: the observations to choose from.
    :param reduced: the groups to start with, shape ``(n,)``, boolean.
    :param advance: called with the state after each flip.
    :return: the state at the optimum.
    """
    sweep = Sweep(observed, reduced)
    while flips := _best_flips(sweep):
        for group in flips:
            sweep.flip(group)
        advance(sweep)
    # Without the rounding of the flips; if they have hidden a gain, on from there.
    fresh = Sweep(observed, sweep.reduced)
    return climb(observed, sweep.reduced, advance) if _best_flips(fresh) else fresh


def _best_flips(sweep: Sweep) -> list[int]:
    """The group to flip, or the two groups where one does not help; none where two do not either."""
    gain, group = sweep.changes().max(-1)
    if gain > TOLERANCE:
        return [int(group)]
    pair_gain, *pair = sweep.best_pair()
    return pair if pair_gain > TOLERANCE else []


def starts(observed: Observed) -> Sequence[Tensor]:
    """Where to begin: nothing reduced, everything, and every group whose reduction alone adds to the score."""
    nothing = torch.zeros_like(observed.constants, dtype=torch.bool)
    return [nothing, ~nothing, Sweep(observed, nothing).changes() > 0]


def climb_from_several(observed: Observed, advance: Callable[[Sweep], object] = lambda sweep: None) -> Sweep:
    """
    The best of the optima that :func:`climb` reaches from each of the :func:`starts`, and from around the best of them.

    Where covariates share few causes, many models are optima. From the best of them some of the least decided groups
    are flipped, at random, and the climb begins again, until so many such kicks have led to nothing better (H. R.
    Lourenço, O. C. Martin and T. Stützle (2003), *Iterated local search*, https://doi.org/10.1007/0-306-48056-5_11).
    """
    best = max((climb(observed, start, advance) for start in starts(observed)), key=lambda sweep: float(sweep.score))
    count = len(observed.constants)
    num_kicks = _MOST_KICKS * _FEWER_KICKS // max(count, _FEWER_KICKS) if _FLIPPED < count <= _NO_KICKS else 0
    generator, idle = torch.Generator().manual_seed(0), 0
    while idle < num_kicks:
        undecided = best.changes().topk(min(_UNDECIDED, count)).indices
        kicked = undecided[torch.randperm(len(undecided), generator=generator)[:_FLIPPED].to(undecided.device)]
        start = best.reduced.clone()
        start[kicked] ^= True
        found = climb(observed, start, advance)
        idle = 0 if found.score > best.score + TOLERANCE else idle + 1
        best = max((best, found), key=lambda sweep: float(sweep.score))
    return best

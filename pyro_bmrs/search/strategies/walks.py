# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Several models at once, each of which groups may be flipped in, and what each flip would be worth."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pyro_bmrs.search.strategies.greedy import Observed, factor_of, members, product, solve, worth

# Flips after which the state is computed anew, without their rounding.
_FRESH = 200


class Walk(Protocol):
    """
    Some models, side by side.

    ``reduced`` tells which groups are reduced in each, shape ``(num_walks, n)``, ``score`` is the log evidence of each
    less that of the full model, in nats.
    """

    reduced: Tensor
    score: Tensor

    def changes(self) -> Tensor:
        """What it would add to each score to flip each group, shape ``(num_walks, n)``."""

    def pair_changes(self, first: Tensor, second: Tensor) -> Tensor:
        """What it would add to each score to flip two groups together, shape ``(num_walks, num_pairs)``."""

    def flip(self, walks: Tensor, groups: Tensor) -> None:
        """Flips one group in each of some walks, all different."""


class IndependentWalk:
    """
    Models of groups that are independent.

    :param alone: change in log evidence with the reduction of each, shape ``(n,)``.
    :param reduced: where to begin, shape ``(num_walks, n)``.
    """

    def __init__(self, alone: Tensor, reduced: Tensor) -> None:
        self._alone, self.reduced = alone, reduced.clone()
        self.score = torch.where(reduced, alone, 0.0).sum(-1)

    def changes(self) -> Tensor:
        return torch.where(self.reduced, -self._alone, self._alone)

    def pair_changes(self, first: Tensor, second: Tensor) -> Tensor:
        changes = self.changes()
        return changes[:, first] + changes[:, second]

    def flip(self, walks: Tensor, groups: Tensor) -> None:
        self.score[walks] += self.changes()[walks, groups]
        self.reduced[walks, groups] ^= True


class SweptWalk:
    """
    Models of a joint normal posterior: a swept matrix each, as in :mod:`.greedy`.

    :param observed: the observations to choose from.
    :param reduced: where to begin, shape ``(num_walks, n)``.
    :raises ReductionError: where the covariance is singular.
    """

    def __init__(self, observed: Observed, reduced: Tensor) -> None:
        self._observed, self.reduced = observed, reduced.clone()
        self._members, self._present = members(observed.label, len(observed.constants))
        self._refresh()

    def _refresh(self) -> None:
        """All reduced groups of each walk at once, by a Cholesky factor."""
        covariance, residual, constants, label = self._observed
        inside = self.reduced[:, label]
        both = inside.unsqueeze(-1) & inside.unsqueeze(-2)
        eye = torch.eye(len(label), dtype=covariance.dtype, device=covariance.device)
        factor = factor_of(torch.where(both, covariance, eye))
        inner = torch.where(inside, residual, 0.0).unsqueeze(-1)
        # Slopes of all that is not observed on all that is; rows of the latter alone.
        slope = torch.cholesky_solve(torch.where(inside.unsqueeze(-1), covariance, 0.0), factor)
        inverse = torch.where(both, torch.cholesky_inverse(factor), 0.0)
        outside = ~inside.unsqueeze(-1) & ~inside.unsqueeze(-2)
        across = torch.where(inside.unsqueeze(-1), slope, slope.mT)
        rest = covariance - covariance @ torch.where(inside.unsqueeze(-1), slope, 0.0)
        self._matrix = torch.where(both, -inverse, torch.where(outside, rest, across))
        weights = torch.cholesky_solve(inner, factor).squeeze(-1)
        weights = torch.where(inside, weights, 0.0)
        self._residual = torch.where(inside, weights, residual - weights @ covariance)
        log_dets = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        square = (torch.where(inside, residual, 0.0) * weights).sum(-1)
        self.score = torch.where(self.reduced, constants, 0.0).sum(-1) - log_dets - 0.5 * square
        self._flips = 0

    def _signed_constants(self) -> Tensor:
        return torch.where(self.reduced, -self._observed.constants, self._observed.constants)

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Of groups beside groups, padded: shape ``(num_walks, len(rows), size, size)``."""
        block = self._matrix[:, self._members[rows].unsqueeze(-1), self._members[columns].unsqueeze(-2)]
        return block * (self._present[rows].unsqueeze(-1) & self._present[columns].unsqueeze(-2))

    def _own(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The diagonal block of each group, with ones in place of what is padded, and its residual."""
        missing = (~self._present[groups]).to(self._matrix).diag_embed()
        return self._block(groups, groups) + missing, self._residual[:, self._members[groups]] * self._present[groups]

    def changes(self) -> Tensor:
        return worth(self._signed_constants(), *self._own(torch.arange(self.reduced.shape[-1])))

    def pair_changes(self, first: Tensor, second: Tensor) -> Tensor:
        constants = self._signed_constants()
        (one, error), (other, other_error) = self._own(first), self._own(second)
        # After the flip of the first, the block of the second is the Schur complement of the first in the two.
        slope = solve(one, self._block(first, second))
        after = other - product(self._block(second, first), slope)
        error_after = other_error - product(slope.mT, error.unsqueeze(-1)).squeeze(-1)
        return worth(constants[:, first], one, error) + worth(constants[:, second], after, error_after)

    def flip(self, walks: Tensor, groups: Tensor) -> None:
        forget = self.reduced[walks, groups]
        constants = self._observed.constants[groups]
        self.score[walks] += torch.where(forget, -constants, constants)
        for place, present in zip(self._members[groups].unbind(-1), self._present[groups].unbind(-1)):
            self._pivot(walks[present], place[present], forget[present])
        self.reduced[walks, groups] ^= True
        self._flips += 1
        if self._flips >= _FRESH:
            self._refresh()

    def _pivot(self, walks: Tensor, at: Tensor, forget: Tensor) -> None:
        column = self._matrix[walks, at]
        pivot, error = self._matrix[walks, at, at], self._residual[walks, at]
        self.score[walks] -= 0.5 * (pivot.abs().log() + error.square() / pivot)
        self._residual[walks] -= column * (error / pivot).unsqueeze(-1)
        self._matrix[walks] -= column.unsqueeze(-1) * (column / pivot.unsqueeze(-1)).unsqueeze(-2)
        side = torch.where(forget, -1.0, 1.0).to(column)
        swept = (side / pivot).unsqueeze(-1) * column
        self._matrix[walks, at] = swept
        self._matrix[walks, :, at] = swept
        self._matrix[walks, at, at] = -1 / pivot
        self._residual[walks, at] = side * error / pivot

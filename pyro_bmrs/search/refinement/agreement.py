# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How far inclusion probabilities would move if the evidence of models were integrated: whether to trust them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pyro_bmrs.search.refinement.correction import Sample

# Of an inclusion probability: to be as good as it gets, and to be trusted.
_SMALL_DISTANCE, _LARGEST_DISTANCE = 0.015, 0.04
# Of the draws, on the average over models: below the first they say nothing; below the second they reach too little of
# the posterior, and tell part of the distance.
_SMALLEST_SHARE, _LARGE_SHARE = 0.05, 0.5


class Agreement(NamedTuple):
    """
    Inclusion probabilities, held against those where the evidence of each model is integrated. It stands at
    ``ModelSpace.agreement``.

    :param distance: how far they are apart, at most, as a sample of the models says.
    :param share: of the draws of a reduced posterior that count for its integral, on the average over these models.

    Example::

        >>> from pyro_bmrs.search import Agreement
        >>> Agreement(distance=0.003, share=0.97).is_close
        True
        >>> Agreement(distance=0.2, share=0.9).words()
        'integrals of some models move inclusion probabilities by up to 0.2'
    """

    distance: float
    share: float

    @property
    def is_known(self) -> bool:
        """Whether the draws say anything."""
        return self.share >= _SMALLEST_SHARE

    @property
    def is_close(self) -> bool:
        """Whether inclusion probabilities are to be trusted to a twentieth."""
        return self._is_within(_LARGEST_DISTANCE)

    @property
    def is_beyond_doubt(self) -> bool:
        """Whether they are so near that another normal need not be asked for."""
        return self._is_within(_SMALL_DISTANCE)

    @property
    def is_off(self) -> bool:
        """Whether the draws say that inclusion probabilities are off, and not merely too little."""
        return not self.is_known or self.distance > _LARGEST_DISTANCE

    def _is_within(self, distance: float) -> bool:
        return self.is_known and self.distance <= distance * min(1.0, self.share / _LARGE_SHARE)

    def words(self) -> str:
        """In a sentence, if it is not close."""
        if not self.is_off:
            return f"no more than {self.share:.0%} of the draws of reduced posteriors count for their integrals"
        if not self.is_known:
            return "too few draws of the reduced posteriors count, so that the model cannot be asked cheaply"
        return f"integrals of some models move inclusion probabilities by up to {self.distance:.2g}"


def agreement(sample: Sample, by_group: Tensor) -> Agreement:
    """
    How far inclusion probabilities are from those by integrals.

    Only what differs between models, and goes with their groups, moves an inclusion probability.

    :param sample: of the models, by other draws than those that ``by_group`` was had from.
    :param by_group: what was added to the evidence of each model for each group that it reduces.
    """
    left = sample.missed - sample.reduced.to(by_group) @ by_group
    moved = (sample.weights.log() + left).softmax(0)
    distance = ((moved - sample.weights) @ (~sample.reduced).to(moved)).abs().max()
    return Agreement(float(distance.nan_to_num(1.0)), float(sample.weights @ sample.share))

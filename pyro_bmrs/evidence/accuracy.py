# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""How a change in log evidence was computed, and how far the number is to be trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# From the most exact to the least.
METHODS = ("exact", "quadrature", "integration", "importance")


@dataclass(frozen=True)
class Accuracy:
    """
    What is known of the accuracy of a change in log evidence, of its batch shape.

    :param method: ``"exact"``, ``"quadrature"`` or ``"importance"``.
    :param standard_error: in nats, where the change is a Monte Carlo estimate.
    :param pareto_k: shape of the tail of the importance weights (Vehtari et al. 2024, arXiv:1507.02646); above 0.7
        the estimate is not to be trusted.
    :param effective_sample_size: how many independent draws of the reduced posterior the weighted ones are worth.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence import reduce
        >>> reduce(dist.Beta(8., 4.), dist.Beta(1., 1.), dist.Beta(10., 10.)).accuracy
        Accuracy(method='exact', standard_error=None, pareto_k=None, effective_sample_size=None)
    """

    method: str = "exact"
    standard_error: Tensor | None = None
    pareto_k: Tensor | None = None
    effective_sample_size: Tensor | None = None

    def scaled(self, scale: float) -> Accuracy:
        """Of the change times a positive number."""
        return self if self.standard_error is None else replace(self, standard_error=scale * self.standard_error)

    def summed(self, shape: torch.Size, dims: int) -> Accuracy:
        """
        Of sums of independent changes.

        :param shape: of the changes, before they are added up.
        :param dims: over how many of the rightmost dimensions they are.
        """
        error, k, size = (
            None if value is None else value.expand(shape)
            for value in (self.standard_error, self.pareto_k, self.effective_sample_size)
        )
        if dims:
            error = None if error is None else error.flatten(-dims).square().sum(-1).sqrt()
            k = None if k is None else k.flatten(-dims).amax(-1)
            size = None if size is None else size.flatten(-dims).amin(-1)
        return Accuracy(self.method, error, k, size)


class Estimated:
    """
    What has an :class:`Accuracy`, each part of which can be asked for by name.

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_bmrs.evidence import reduce
        >>> reduced = reduce(dist.LogNormal(0., 0.1), dist.HalfCauchy(1.), dist.Gamma(3., 5.))
        >>> reduced.method, reduced.standard_error
        ('quadrature', None)
    """

    accuracy: Accuracy

    @property
    def method(self) -> str:
        """How the change in log evidence was computed: ``"exact"``, ``"quadrature"`` or ``"importance"``."""
        return self.accuracy.method

    @property
    def standard_error(self) -> Tensor | None:
        """Standard error of the change in log evidence in nats; None where it is no estimate."""
        return self.accuracy.standard_error

    @property
    def pareto_k(self) -> Tensor | None:
        """Tail shape of the importance weights: above 0.7 the estimate is not to be trusted. None without sampling."""
        return self.accuracy.pareto_k

    @property
    def effective_sample_size(self) -> Tensor | None:
        """
        How many independent draws of the reduced posterior the weighted ones are worth. None without sampling.

        Where several sites are sampled one by one, the smallest number of them.
        """
        return self.accuracy.effective_sample_size


def combine(parts: Iterable[Accuracy]) -> Accuracy:
    """
    Of the sum of all elements of independent changes: 0-d.

    The sum is as exact as its least exact part; errors add in quadrature; of the tails the heaviest counts, and of the
    effective sample sizes the smallest.

    Example::

        >>> import torch
        >>> from pyro_bmrs.evidence.accuracy import Accuracy, combine
        >>> combine([Accuracy(), Accuracy("importance", torch.tensor([0.3, 0.4]))]).standard_error
        tensor(0.5000)
    """
    parts = list(parts)
    errors = [part.standard_error.square().sum() for part in parts if part.standard_error is not None]
    tails = [part.pareto_k.max() for part in parts if part.pareto_k is not None]
    sizes = [part.effective_sample_size.min() for part in parts if part.effective_sample_size is not None]
    return Accuracy(
        _least_exact(part.method for part in parts),
        torch.stack(errors).sum().sqrt() if errors else None,
        torch.stack(tails).max() if tails else None,
        torch.stack(sizes).min() if sizes else None,
    )


def choose(mask: Tensor, on: Accuracy, off: Accuracy) -> Accuracy:
    """
    Of a change that is one where a mask is true and another elsewhere.

    An element that is no estimate, beside others that are, has the error 0, no tail (minus infinity), and an effective
    sample size without bound. A side that is in force nowhere does not count.
    """
    if mask.all():
        return on
    if not mask.any():
        return off
    return Accuracy(
        _least_exact([on.method, off.method]),
        _chosen(mask, on.standard_error, off.standard_error, 0.0),
        _chosen(mask, on.pareto_k, off.pareto_k, -torch.inf),
        _chosen(mask, on.effective_sample_size, off.effective_sample_size, torch.inf),
    )


def _chosen(mask: Tensor, on: Tensor | None, off: Tensor | None, otherwise: float) -> Tensor | None:
    if on is None and off is None:
        return None
    return torch.where(mask, otherwise if on is None else on, otherwise if off is None else off)


def _least_exact(methods: Iterable[str]) -> str:
    """The method that a result composed of several rests on; a composition of none is exact."""
    return max(methods, key=METHODS.index, default="exact")

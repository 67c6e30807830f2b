# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A distribution seen as a structure with tensors in it: read the tensors out, and build the same structure on others.

Reduced guides need this to make a reduced posterior trainable, and full-size priors to undo a plate's subsampling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from pyro_bmrs.structure.layers import layers

# Of several spellings of one parameter, the one to read and train.
_PREFERRED = {
    dist.MultivariateNormal: ("loc", "scale_tril"),
    torch.distributions.MultivariateNormal: ("loc", "scale_tril"),
    torch.distributions.Wishart: ("df", "scale_tril"),
}

ParameterMap = Callable[[str, Tensor, Constraint, int], Tensor]


@cache
def _constructor_names(type_: type[Distribution]) -> frozenset[str]:
    return frozenset(inspect.signature(type_.__init__).parameters)


def _leaf_names(distribution: Distribution) -> tuple[str, ...]:
    for type_, names in _PREFERRED.items():
        if isinstance(distribution, type_):
            return names
    constrained = distribution.arg_constraints
    if "probs" in constrained and "logits" in constrained:
        spelling = "probs" if "probs" in distribution.__dict__ else "logits"
        return tuple(name for name in constrained if name not in ("probs", "logits")) + (spelling,)
    return tuple(constrained)


def is_leaf(distribution: Distribution) -> bool:
    """Whether a distribution is made of its own parameters, around no other distribution."""
    names = _leaf_names(distribution)
    known: Any = type(distribution)
    return bool(names) and set(names) <= _constructor_names(known)


def _event_dim(constraint: Any) -> int:
    return 0 if constraints.is_dependent(constraint) else constraint.event_dim


def map_parameters(distribution: Distribution, function: ParameterMap, prefix: str = "") -> Distribution:
    """
    The same kind of distribution, with ``function`` applied to each tensor that parametrises it.

    :param distribution: any composition of wrappers around distributions that list their ``arg_constraints``.
    :param function: called as ``function(path, value, constraint, event_dim)``, where ``path`` names the tensor within
        the structure and ``event_dim`` counts the rightmost dimensions of ``value`` that belong to one batch element.
    :param prefix: put before each path.
    :raises NotImplementedError: for a distribution that cannot be rebuilt from its parameters.

    Example::

        >>> import pyro.distributions as dist
        >>> doubled = map_parameters(dist.Normal(1.0, 2.0).expand([3]).to_event(1), lambda path, value, *_: 2 * value)
        >>> doubled.base_dist.scale
        tensor([4., 4., 4.])
    """
    extra = getattr(distribution, "_map_parameters", None)
    if extra is not None:
        mapped: Distribution = extra(function, prefix)
        return mapped
    if isinstance(distribution, torch.distributions.Independent):
        count = distribution.reinterpreted_batch_ndims

        def shifted(path: str, value: Tensor, constraint: Constraint, event_dim: int) -> Tensor:
            return function(path, value, constraint, event_dim + count)

        return dist.Independent(map_parameters(distribution.base_dist, shifted, prefix), count)
    if isinstance(distribution, dist.torch_distribution.ExpandedDistribution):
        shape = distribution.batch_shape
        if isinstance(distribution.base_dist, dist.Empirical):
            # Its own expand makes what is being taken apart here.
            expanded: Distribution = map_parameters(distribution.base_dist, function, prefix).expand(shape)
            return expanded
        if not isinstance(distribution.base_dist, dist.MaskedMixture):
            # A parameter shared by the expanded elements becomes one for each.
            return map_parameters(distribution.base_dist.expand(shape), function, prefix)
        return _map_mixture(distribution.base_dist, shape, function, prefix)
    if isinstance(distribution, dist.MaskedMixture):
        return _map_mixture(distribution, distribution.batch_shape, function, prefix)
    if isinstance(distribution, dist.MaskedDistribution):
        return dist.MaskedDistribution(map_parameters(distribution.base_dist, function, prefix), distribution._mask)
    if isinstance(distribution, dist.Delta):
        value = function(prefix + "v", distribution.v, constraints.real, distribution.event_dim)
        density = function(prefix + "log_density", distribution.log_density, constraints.real, 0)
        return dist.Delta(value, density, distribution.event_dim)
    if isinstance(distribution, dist.Empirical):
        event_dim = len(distribution.event_shape) + 1
        samples = function(prefix + "samples", distribution._samples, constraints.real, event_dim)
        return dist.Empirical(samples, function(prefix + "log_weights", distribution._log_weights, constraints.real, 1))
    if is_leaf(distribution):
        arguments: dict[str, Any] = {}
        for name in _leaf_names(distribution):
            constraint = distribution.arg_constraints[name]
            value = getattr(distribution, name)
            arguments[name] = function(prefix + name, value, constraint, _event_dim(constraint))
        return type(distribution)(**arguments)
    if isinstance(distribution, torch.distributions.TransformedDistribution):
        base = map_parameters(distribution.base_dist, function, prefix)
        mapped = dist.TransformedDistribution(base, distribution.transforms)
        return mapped
    raise NotImplementedError(f"{type(distribution).__name__} cannot be rebuilt from its parameters")


def _map_mixture(mixture: Any, batch_shape: torch.Size, function: ParameterMap, prefix: str) -> Distribution:
    sides = [
        map_parameters(component.expand(batch_shape), function, f"{prefix}component{number}_")
        for number, component in enumerate((mixture.component0, mixture.component1))
    ]
    return dist.MaskedMixture(mixture.mask.expand(batch_shape), *sides)


def tensor_of(distribution: Distribution) -> Tensor | None:
    """One of the floating point tensors in a distribution, for its dtype and device; None where there is none."""
    for layer in layers(distribution):
        for value in vars(layer).values():
            if isinstance(value, Tensor) and value.is_floating_point():
                return value
        if isinstance(layer, dist.MaskedMixture):
            return tensor_of(layer.component0)
    return None

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Autoguides that are joint normals in other words, as the :class:`~pyro.infer.autoguide.AutoMultivariateNormal` that
says the same.

``AutoGaussian`` has the precision matrix of a joint normal, sparse, as the product of factors that follow the model.
``AutoStructured`` has its square root: a site is a linear function of the sites before it, and of noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from operator import attrgetter
from typing import Any

import torch
from pyro.infer.autoguide import AutoGaussian, AutoMultivariateNormal, AutoStructured
from torch import Tensor

from pyro_bmrs.structure.joint_normal import square_root


@dataclass(frozen=True)
class SquareRoot:
    """
    A joint normal over the unconstrained values of sites: its mean, and a square root of its covariance.

    :param loc: of each site, shape ``(size,)``.
    :param rows: of each site, shape ``(size, n)`` with the same n for all; the covariance of two sites is the product
        of theirs.
    """

    loc: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]


@singledispatch
def read_square_root(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SquareRoot | None:
    """
    The joint normal that a guide draws its unconstrained values from; None for a guide that draws them otherwise.

    :param guide: the guide, fitted.
    :param args: positional arguments of its model.
    :param kwargs: keyword arguments of its model.
    """
    return None


@read_square_root.register
def _(guide: AutoGaussian, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SquareRoot | None:
    dense: Any = guide
    if not hasattr(guide, "_dense_get_mvn"):
        # The other backend has the same parameters, and no matrix.
        make: Any = AutoGaussian  # which makes one of its subclasses
        dense = make(guide.model, backend="dense")
        dense._setup_prototype(*args, **kwargs)
        dense.load_state_dict(guide.state_dict())
    normal, loc, rows, start = dense._dense_get_mvn(), {}, {}, 0
    for name, (batch_shape, event_shape) in dense._dense_shapes.items():
        here = slice(start, start + (batch_shape + event_shape).numel())
        scale = attrgetter(name)(guide.scales).reshape(-1)
        loc[name] = attrgetter(name)(guide.locs).reshape(-1) + scale * normal.loc[here]
        rows[name] = scale.unsqueeze(-1) * normal.scale_tril[here]
        start = here.stop
    return SquareRoot(loc, rows)


@read_square_root.register
def _(guide: AutoStructured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SquareRoot | None:
    dependencies = [dep for name, _ in guide._sorted_sites for dep in _dependencies(guide, name).values()]
    kinds: Any = guide.conditionals
    if not all(kinds[name] in ("normal", "mvn") for name, _ in guide._sorted_sites):
        return None  # a point, or noise that a callable draws
    if not all(type(dependency) is torch.nn.Linear for dependency in dependencies):
        return None
    sizes = {name: attrgetter(name)(guide.locs).numel() for name, _ in guide._sorted_sites}
    total, start = sum(sizes.values()), 0
    loc: dict[str, Tensor] = {}
    shift: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for name, _ in guide._sorted_sites:
        own, scale = attrgetter(name)(guide.locs), attrgetter(name)(guide.scales)
        noise = scale.diag()
        if kinds[name] == "mvn":
            noise = scale.unsqueeze(-1) * attrgetter(name)(guide.scale_trils)
        padding = (start, total - start - sizes[name])
        rows[name] = torch.nn.functional.pad(noise, padding)
        shift[name] = torch.zeros_like(own)
        for upstream, dependency in _dependencies(guide, name).items():
            rows[name] = rows[name] + dependency.weight @ rows[upstream]
            shift[name] = shift[name] + dependency(shift[upstream])
        loc[name] = own + shift[name]
        start += sizes[name]
    return SquareRoot(loc, rows)


def _dependencies(guide: AutoStructured, name: str) -> dict[str, Any]:
    """What carries the deviation of each site before it over to a site."""
    upstream: Any = guide.dependencies
    modules = attrgetter(name)(guide.deps)
    return {other: attrgetter(other)(modules) for other in upstream.get(name, {})}


def as_multivariate_normal(
    guide: Any, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AutoMultivariateNormal | None:
    """
    A guide as the one that draws the same joint normal in one statement; None where it is no joint normal.

    Gradients flow to the parameters of the guide that it was made of; it has none of its own.

    :param guide: the guide, fitted.
    :param model: its model, with the initialisation that it starts at.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoGaussian
        >>> from pyro_bmrs.posteriors.guides.joint_normals import as_multivariate_normal
        >>> def model():
        ...     a = pyro.sample("a", dist.Normal(0., 1.))
        ...     pyro.sample("b", dist.LogNormal(a, 1.))
        >>> guide = AutoGaussian(model, init_scale=0.5); _ = guide()
        >>> as_multivariate_normal(guide, model, (), {}).get_posterior().event_shape
        torch.Size([2])
    """
    normal = read_square_root(guide, args, kwargs)
    if normal is None:
        return None
    twin = AutoMultivariateNormal(model)
    twin._setup_prototype(*args, **kwargs)
    prototype: Any = twin.prototype_trace
    names = [name for name, _ in prototype.iter_stochastic_nodes()]
    root = square_root(torch.cat([normal.rows[name] for name in names]))
    scale = root.diagonal()
    values = {
        "loc": torch.cat([normal.loc[name] for name in names]),
        "scale": scale,
        "scale_tril": root / scale.unsqueeze(-1),
    }
    for name, value in values.items():
        delattr(twin, name)
        twin.register_buffer(name, value)
    return twin

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Labels and moments of a site's elements: what every table needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError, name_of_unknown

# Draws for the moments of a posterior that has no closed form for them.
_NUM_DRAWS = 4000

LabelsLike: TypeAlias = Mapping[str, Sequence[Any] | Mapping[str, Sequence[Any]]]


@dataclass(frozen=True)
class SiteLabels:
    """
    The names of a site's dimensions, and of the places along each, as xarray has them.

    :param dims: a name for each dimension.
    :param coords: for each dimension, what each place along it is called.

    Example::

        >>> from pyro_bmrs.tables import SiteLabels
        >>> list(SiteLabels(("drug", "week"), (("a", "b"), (1, 2))).places(torch.Size([2, 2])))
        [('a', 1), ('a', 2), ('b', 1), ('b', 2)]
    """

    dims: tuple[str, ...]
    coords: tuple[tuple[Any, ...], ...]

    @property
    def shape(self) -> torch.Size:
        """Of the site."""
        return torch.Size(map(len, self.coords))

    def places(self, shape: torch.Size) -> Iterator[tuple[Any, ...]]:
        """What each element of a tensor is called, along each dimension: of the site's shape, or of its batch shape."""
        if self.shape[: len(shape)] != shape:
            raise ReductionError(
                f"labels are for elements of shape {tuple(self.shape)}, and those of the dimensions {self.dims} have "
                f"{tuple(shape)}; give a name for each place along each dimension"
            )
        return itertools.product(*self.coords[: len(shape)])


def counted(name: str, shape: Sequence[int]) -> SiteLabels:
    """The labels of a site whose places have no names: they are counted from 0, as ArviZ does it."""
    return SiteLabels(tuple(f"{name}_dim_{dim}" for dim in range(len(shape))), tuple(tuple(range(n)) for n in shape))


def read_labels(labels: LabelsLike | None, shapes: Mapping[str, torch.Size]) -> dict[str, SiteLabels]:
    """
    The names of elements that a user gives.

    :param labels: for each site that has any: names of its elements, where it has one dimension, or a mapping from the
        name of each dimension to the names along it.
    :param shapes: shape of each site.
    :raises ReductionError: for an unknown site, a number of names that is not the site's, or a name given twice.

    Example::

        >>> from pyro_bmrs.tables import read_labels
        >>> read_labels({"slopes": ["age", "dose"]}, {"slopes": (2,)})
        {'slopes': SiteLabels(dims=('slopes_dim_0',), coords=(('age', 'dose'),))}
    """
    found: dict[str, SiteLabels] = {}
    along: dict[str, tuple[Any, ...]] = {}
    for name, given in (labels or {}).items():
        if name not in shapes:
            raise name_of_unknown(name, shapes, "labels names a site that is not there: the model")
        shape = torch.Size(shapes[name])
        named = given if isinstance(given, Mapping) else _along_one(name, given, shape)
        coords = tuple(tuple(_plain(names)) for names in named.values())
        counts = tuple(map(len, coords))
        if counts != shape:
            raise ReductionError(
                f"labels has {' x '.join(map(str, counts)) or 'no'} names for site {name!r}, of shape {tuple(shape)}; "
                "give a name for each place along each dimension"
            )
        for dim, places in zip(named, coords):
            if len(set(map(str, places))) < len(places):
                raise ReductionError(f"labels names two places along {dim!r} of site {name!r} alike")
            if along.setdefault(str(dim), places) != places:
                raise ReductionError(f"labels names the places along {dim!r} otherwise at site {name!r} than before")
        found[name] = SiteLabels(tuple(map(str, named)), coords)
    return found


def _along_one(name: str, given: Any, shape: torch.Size) -> dict[str, Any]:
    if isinstance(given, str) or len(shape) > 1 and sum(size != 1 for size in shape) > 1:
        raise ReductionError(
            f"labels of site {name!r}, of shape {tuple(shape)}, must be a list of names for one dimension, or a "
            "mapping from the name of each dimension to the names along it"
        )
    names = list(_plain(given))
    long = next((dim for dim, size in enumerate(shape) if size != 1), len(shape) - 1)
    return {f"{name}_dim_{dim}": names if dim == long else [0] for dim in range(len(shape))} or {name: names}


def _plain(names: Any) -> list[Any]:
    """Names as Python has them, out of an array or an index of pandas."""
    listed = names.tolist() if hasattr(names, "tolist") else list(names)
    return list(listed)


def element_labels(name: str, shape: torch.Size, labels: SiteLabels | None = None) -> list[str]:
    """
    Labels of a site's elements, as ArviZ writes them.

    :param name: the site.
    :param shape: of its elements.
    :param labels: what they are called; by default they are counted.

    Example::

        >>> element_labels("w", torch.Size([2]))
        ['w[0]', 'w[1]']
        >>> element_labels("w", torch.Size([2]), SiteLabels(("feature",), (("age", "dose"),)))
        ['w[age]', 'w[dose]']
    """
    places = itertools.product(*map(range, shape)) if labels is None else labels.places(shape)
    return [f"{name}[{', '.join(map(str, place))}]" if place else name for place in places]


def numbers(given: Any, what: str) -> Tensor:
    """
    Numbers out of a tensor, an array, a data frame or lists of them, in double precision.

    :param what: they are called.
    :raises ReductionError: for what is no number, or of no shape.

    Example::

        >>> numbers([[1, 2], [3, 4]], "design")
        tensor([[1., 2.],
                [3., 4.]], dtype=torch.float64)
    """
    if isinstance(given, Tensor):
        return given.detach().cpu().double()
    try:
        return torch.tensor(np.asarray(given, dtype=float), dtype=torch.double)
    except (TypeError, ValueError) as error:
        raise ReductionError(
            f"{what} has something in it that is no number ({error}); give a table of numbers"
        ) from error


@torch.no_grad()
def moments(distribution: Distribution | None, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each element; by draws where the distribution knows no closed form."""
    missing = torch.full(shape, torch.nan)
    if distribution is None or distribution.batch_shape + distribution.event_shape != shape:
        return missing, missing
    try:
        return distribution.mean, distribution.stddev
    except NotImplementedError:
        draws = distribution.sample(torch.Size([_NUM_DRAWS]))
        return draws.mean(0), draws.std(0)

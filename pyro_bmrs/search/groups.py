# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Groups of elements that take their full or their reduced prior together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.errors import ReductionError, name_of_unknown
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.tables import SiteLabels, element_labels


class Candidates(NamedTuple):
    """
    What may be reduced.

    :param fitted: the fitted guide.
    :param priors: prior of each site that may be reduced.
    :param reduced_priors: reduced prior of each, of the same shapes.
    """

    fitted: FittedGuide
    priors: Mapping[str, Distribution]
    reduced_priors: Mapping[str, Distribution]

    @property
    def example(self) -> Tensor:
        """A value of one of the sites, for its device and dtype."""
        nodes: Any = self.fitted.traces[1].nodes
        value: Tensor = nodes[next(iter(self.priors))]["value"]
        return value


@dataclass(frozen=True)
class Groups:
    """
    Which elements of which sites switch together.

    :param names: a name for each group.
    :param labels: for each site, the group that each element belongs to, of the shape of its elements; -1 for elements
        that belong to none and keep their full prior.
    :param kept: names of groups that were left out, to keep their full prior for sure.
    """

    names: tuple[str, ...]
    labels: Mapping[str, Tensor]
    kept: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def spread(self, values: Tensor, ungrouped: float) -> dict[str, Tensor]:
        """
        A value for each group as a value for each element of each site.

        :param values: shape ``(..., num_groups)``.
        :param ungrouped: the value of elements that belong to no group.
        """
        padded = torch.cat([values, values.new_full((*values.shape[:-1], 1), ungrouped)], -1)
        # The label -1 picks what was appended.
        return {name: padded[..., label] for name, label in self.labels.items()}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """
        A value for each element of each site, added up over the elements of each group.

        :param values: for each site, of the shape of its elements.
        :return: shape ``(num_groups,)``.
        """
        total = next(iter(values.values())).new_zeros(len(self) + 1, dtype=torch.double)
        for name, label in self.labels.items():
            total.index_add_(0, label.reshape(-1) % len(total), values[name].reshape(-1).double())
        return total[:-1]


def without(groups: Groups, names: Sequence[str]) -> Groups:
    """
    The groups but for some, whose elements keep their full prior for sure.

    :raises ReductionError: for names of no groups, and where nothing is left to switch.
    """
    kept = (names,) if isinstance(names, str) else tuple(names)
    for name in kept:
        if name not in groups.names:
            raise name_of_unknown(name, groups.names, "always: the space", "group")
    left = [number for number, name in enumerate(groups.names) if name not in kept]
    if not left:
        raise ReductionError("the space of models is empty: all groups always stay")
    numbers = torch.full((len(groups) + 1,), -1)
    numbers[left] = torch.arange(len(left))
    # The label -1 picks the last, which stays -1.
    labels = {name: numbers.to(label.device)[label] for name, label in groups.labels.items()}
    return Groups(tuple(groups.names[number] for number in left), labels, kept)


GroupsLike = str | Groups | Mapping[str, str | Sequence[str] | Mapping[str, Any]]


def read_groups(
    groups: GroupsLike,
    shapes: Mapping[str, torch.Size],
    device: torch.device | None = None,
    labels: Mapping[str, SiteLabels] | None = None,
) -> Groups:
    """
    The groups that a user states.

    :param groups: ``"element"`` (each element by itself), ``"site"`` (each site as a whole), or a mapping from the
        name of a group to what is in it: a site, several sites, or a mapping from site to an index of its elements
        (anything that indexes a tensor of the site's shape: a number, a slice, a list, a boolean mask, a tuple of
        these), or the names of its elements, or of places along one of its dimensions.
    :param shapes: shape of the elements of each site that has a reduced prior.
    :param device: where the labels are to lie.
    :param labels: what the places along the dimensions of sites are called.
    :raises ReductionError: for a group that is empty, names an unknown site, leaves a site's shape or overlaps another;
        for a space without groups; for a site with a reduced prior but in no group.

    Example::

        >>> groups = read_groups({"first two": {"w": [0, 1]}, "rest": {"w": 2, "b": ...}}, {"w": (3,), "b": ()})
        >>> groups.labels["w"], groups.labels["b"]
        (tensor([0, 0, 1]), tensor(1))
    """
    if isinstance(groups, Groups):
        return groups
    shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
    if not any(shape.numel() for shape in shapes.values()) or (isinstance(groups, Mapping) and not groups):
        raise ReductionError("the space of models is empty: there is no group of elements to reduce")
    if groups == "element":
        return _each_element(shapes, device, labels or {})
    if groups == "site":
        return Groups(
            tuple(shapes), {name: torch.full(s, i, device=device) for i, (name, s) in enumerate(shapes.items())}
        )
    if not isinstance(groups, Mapping):
        raise ReductionError(
            f"groups is {groups!r}; give 'element', 'site', or a mapping from the name of a group to its elements"
        )
    numbers = {name: torch.full(shape, -1, device=device) for name, shape in shapes.items()}
    for number, (group, content) in enumerate(groups.items()):
        members = {site: _by_name(group, site, at, labels or {}) for site, at in _members(group, content).items()}
        _place(group, number, members, numbers, list(groups))
    for name, label in numbers.items():
        if not (label >= 0).any():
            raise ReductionError(f"site {name!r} has a reduced prior, but no group holds any of its elements")
    return Groups(tuple(groups), numbers)


def _by_name(group: str, site: str, index: Any, labels: Mapping[str, SiteLabels]) -> Any:
    """An index of a site's elements: as it is, or, where it is a name or several, the elements that they name."""
    names = [index] if isinstance(index, str) else list(index) if isinstance(index, (list, tuple)) else []
    if not names or not all(isinstance(name, str) for name in names):
        return index
    if site not in labels:
        raise ReductionError(
            f"group {group!r} names elements of site {site!r}, which has no names; give them as labels={{{site!r}: "
            "[...]}, or an index"
        )
    own = labels[site]
    whole = element_labels(site, own.shape, own)
    chosen = torch.zeros(len(whole), dtype=torch.bool)
    for name in names:
        here = torch.tensor(
            [name == label or name in map(str, place) for label, place in zip(whole, own.places(own.shape))]
        )
        if not here.any():
            near = difflib.get_close_matches(name, [str(place) for along in own.coords for place in along], n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; they are {whole[:20]}"
            raise ReductionError(f"group {group!r}: no element of site {site!r} is called {name!r}{hint}")
        chosen |= here
    return chosen.reshape(own.shape)


def _each_element(
    shapes: Mapping[str, torch.Size], device: torch.device | None, named: Mapping[str, SiteLabels]
) -> Groups:
    names: list[str] = []
    labels = {}
    for name, shape in shapes.items():
        labels[name] = torch.arange(len(names), len(names) + shape.numel(), device=device).reshape(shape)
        names += element_labels(name, shape, named.get(name))
    return Groups(tuple(names), labels)


def _members(group: str, content: Any) -> dict[str, Any]:
    if isinstance(content, str):
        return {content: ...}
    if isinstance(content, Mapping):
        return dict(content)
    if isinstance(content, Sequence) and all(isinstance(site, str) for site in content):
        return dict.fromkeys(content, ...)
    raise ReductionError(
        f"group {group!r} is {content!r}; give a site, a list of sites, or a mapping from site to an index of its "
        "elements"
    )


def _place(group: str, number: int, content: Mapping[str, Any], labels: dict[str, Tensor], names: list[str]) -> None:
    """Writes the number of a group upon its elements."""
    found = 0
    for site, index in content.items():
        if site not in labels:
            raise name_of_unknown(site, labels, f"group {group!r}: the reduced prior")
        chosen = torch.zeros_like(labels[site], dtype=torch.bool)
        try:
            chosen[index] = True
        except (IndexError, TypeError, RuntimeError) as error:
            raise ReductionError(
                f"group {group!r}: {index!r} does not index the elements of site {site!r}, of shape "
                f"{tuple(chosen.shape)}: {error}"
            ) from error
        taken = labels[site][chosen]
        if (taken >= 0).any():
            other = names[int(taken.max())]
            raise ReductionError(f"groups {other!r} and {group!r} overlap in site {site!r}; an element is in one group")
        labels[site][chosen] = number
        found += int(chosen.sum())
    if not found:
        raise ReductionError(f"group {group!r} is empty; leave it out or put elements into it")

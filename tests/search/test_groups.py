# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs import ReductionError
from pyro_bmrs.search.groups import read_groups
from pyro_bmrs.tables import SiteLabels

SHAPES = {"a": torch.Size([2, 3]), "b": torch.Size([])}


def test_each_element_is_a_group_of_its_own():
    groups = read_groups("element", SHAPES)
    assert groups.names == ("a[0, 0]", "a[0, 1]", "a[0, 2]", "a[1, 0]", "a[1, 1]", "a[1, 2]", "b")
    assert groups.labels["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert groups.labels["b"].item() == 6


def test_each_site_is_a_group():
    groups = read_groups("site", SHAPES)
    assert groups.names == ("a", "b")
    assert groups.labels["a"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert groups.labels["b"].item() == 1


@pytest.mark.parametrize(
    "content, expected",
    [
        ("a", [[0, 0, 0], [0, 0, 0]]),
        (["a"], [[0, 0, 0], [0, 0, 0]]),
        ({"a": ...}, [[0, 0, 0], [0, 0, 0]]),
        ({"a": 1}, [[-1, -1, -1], [0, 0, 0]]),
        ({"a": (0, 2)}, [[-1, -1, 0], [-1, -1, -1]]),
        ({"a": (slice(None), [0, 2])}, [[0, -1, 0], [0, -1, 0]]),
        ({"a": torch.tensor([[True, False, False], [False, True, False]])}, [[0, -1, -1], [-1, 0, -1]]),
    ],
)
def test_what_indexes_a_tensor_indexes_a_site(content, expected):
    groups = read_groups({"first": content, "second": "b"}, SHAPES)
    assert groups.names == ("first", "second")
    assert groups.labels["a"].tolist() == expected


def test_values_of_groups_and_of_elements():
    groups = read_groups({"column": {"a": (slice(None), 0)}, "rest": {"a": (0, 1), "b": ...}}, SHAPES)
    spread = groups.spread(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.0)
    assert spread["a"].tolist() == [[[1, 2, 0], [1, 0, 0]], [[3, 4, 0], [3, 0, 0]]]
    assert spread["b"].tolist() == [2, 4]
    total = groups.total({"a": torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]), "b": torch.tensor(64.0)})
    assert total.tolist() == [9, 66]


@pytest.mark.parametrize(
    "groups, message",
    [
        ("elements", "'elements'.*give 'element', 'site'"),
        (3, "groups is 3"),
        ({}, "space of models is empty"),
        ({"g": "weights"}, "group 'g'.*no latent site 'weights'"),
        ({"g": 5}, "group 'g' is 5"),
        ({"g": {"a": 2}}, "group 'g': 2 does not index.*'a', of shape \\(2, 3\\)"),
        ({"g": {"a": "first"}}, r"group 'g' names elements of site 'a', which has no names; give them as labels="),
        ({"g": {"a": torch.ones(3, dtype=torch.bool)}}, "does not index the elements of site 'a'"),
        ({"g": {"a": []}}, "group 'g' is empty"),
        ({"g": {"a": slice(0, 0)}, "h": "b"}, "group 'g' is empty"),
        ({"g": "a", "h": {"a": (0, 0)}, "i": "b"}, "groups 'g' and 'h' overlap in site 'a'"),
        ({"g": ["a", "b"], "h": "b"}, "groups 'g' and 'h' overlap in site 'b'"),
        ({"g": "a"}, "site 'b' has a reduced prior, but no group"),
    ],
)
def test_what_makes_no_groups_is_refused(groups, message):
    with pytest.raises(ReductionError, match=message):
        read_groups(groups, SHAPES)


LABELS = {"a": SiteLabels(("drug", "age"), (("placebo", "verum"), ("child", "adult", "old")))}


@pytest.mark.parametrize(
    "names, expected",
    [
        ("verum", [[-1, -1, -1], [0, 0, 0]]),
        (["child", "old"], [[0, -1, 0], [0, -1, 0]]),
        (("a[placebo, adult]", "a[verum, old]"), [[-1, 0, -1], [-1, -1, 0]]),
        ((0, 2), [[-1, -1, 0], [-1, -1, -1]]),
    ],
)
def test_elements_go_into_groups_by_name(names, expected):
    assert read_groups({"g": {"a": names}, "h": "b"}, SHAPES, None, LABELS).labels["a"].tolist() == expected


def test_groups_of_single_elements_are_called_as_they_are():
    names = read_groups("element", SHAPES, None, LABELS).names
    assert names[:2] == ("a[placebo, child]", "a[placebo, adult]") and names[-1] == "b"


def test_a_misspelt_name_of_an_element():
    with pytest.raises(ReductionError, match="no element of site 'a' is called 'adlut'; did you mean 'adult'"):
        read_groups({"g": {"a": ["adlut"]}, "h": "b"}, SHAPES, None, LABELS)


@pytest.mark.parametrize("groups", ["element", "site"])
def test_a_space_without_elements_is_refused(groups):
    with pytest.raises(ReductionError, match="empty"):
        read_groups(groups, {"a": torch.Size([0])})

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyro_bmrs.search.groups import read_groups
from pyro_bmrs.search.probabilities.models import Models
from pyro_bmrs.search.space_tables import name_of_model, summary_of, table_of


def test_a_model_is_called_by_what_it_reduces():
    names = [f"g{number}" for number in range(12)]
    assert name_of_model(names, torch.zeros(12).bool()) == "nothing"
    assert name_of_model(names, torch.arange(12) < 9) == ", ".join(names[:9])
    assert name_of_model(names, torch.arange(12) < 11) == ", ".join(names[:8]) + ", and 3 more"


def test_a_table_has_a_row_for_each_model():
    models = Models(torch.tensor([[True, False], [False, False]]), torch.tensor([0.5, 0.0]), torch.tensor([0.6, 0.4]))
    table = table_of(models, ["a", "b"], ())
    assert table["reduced"].tolist() == ["a", "nothing"] and table["num_reduced"].tolist() == [1, 0]
    assert table.index.tolist() == [1, 2] and table.index.name == "rank"


def test_a_summary_has_a_row_for_each_element():
    groups = read_groups({"first": {"w": 0}}, {"w": torch.Size([2])})
    posteriors, labels = {"w": dist.Normal(torch.tensor([1.0, 2.0]), 0.5)}, {"w": ["w[age]", "w[dose]"]}
    table = summary_of(groups, labels, posteriors, {"inclusion_probability": {"w": torch.tensor([0.3, 1.0])}}, "model")
    assert table.loc["w[age]"].tolist() == ["first", 1.0, 0.5, 0.30000001192092896, "model"]
    assert table.loc["w[dose]", "group"] == ""

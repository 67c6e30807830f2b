# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What the table of other libraries' networks says of each, of small ones that need none of these libraries."""

from __future__ import annotations

import pytest

from tests.networks.catalogue import Entry
from tests.networks.examination import YES, examine
from tests.pruning.networks import NETWORKS, OTHER_NETWORKS
from tests.pruning.unusual import UNUSUAL

OWN = {**NETWORKS, **OTHER_NETWORKS, **UNUSUAL}
SAMPLE = "mlp-tanh lenet-5 resnet grouped concatenating squeeze-excitation circular vit transformer recurrent".split()


@pytest.mark.parametrize("name", [*SAMPLE, *UNUSUAL])
def test_a_network_of_the_sample(name: str) -> None:
    # Of the unusual ones each is the size of a test of one operation, and exported like those of the sample.
    without = ("left_by_torch_pruning", "onnx", *(["export"] if name in UNUSUAL else []))
    row = examine(Entry(name, *OWN[name]), without=without)
    row = {**dict.fromkeys(without, YES), **row}
    assert [row[column] for column in ("attaches", "compacts", "export", "trains", "saved")] == [YES] * 5, row
    assert row["removed"] >= 0.95 and row["prunable"] >= 0.8, row
    assert row["float32"] <= 1e-5 and row["float64"] <= 1e-12, row

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from tests.pruning.noise.places import (
    Untraceable,
    places,
)


def test_what_cannot_be_traced_is_read_part_by_part():
    assert places(Untraceable()) == {"body.0": ("body.1", "output", 4, 1), "hidden": ("hidden", "output", 5, 1)}

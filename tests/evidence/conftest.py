# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyro_bmrs.evidence import registry


@pytest.fixture
def own_rules() -> Iterator[None]:
    """Rules that a test registers are there for that test alone."""
    rules = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(rules)
    registry.find_rules.cache_clear()

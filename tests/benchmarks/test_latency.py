# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A compact network takes no longer than the network that it was made of, whatever runs it.

It may be as much slower as a copy of the network is.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.latency import RUNTIMES, SIZES, measured
from tests.benchmarks.networks import NETWORKS

pytestmark = pytest.mark.usefixtures("one_thread")

# Of what is the same, the clock makes no less than this.
CLOCK = 0.02
# For groups of unequal sizes torch has no norm, and one image is normed sooner by its own than by ours. Over more
# channels the norm is another function, so that none can come back.
UNEVEN_GROUPS = {"group norms": 1.2, "small group norms": 1.5}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_never_slower(name: str, runtime: str, size: int, record_property: Any) -> None:
    before, ratio, again = measured(name, runtime, size)
    print(f"\n{before:.0f} µs, again {again:.2f} times, compact {ratio:.2f} times")
    record_property("ratio", ratio)
    bound = UNEVEN_GROUPS.get(name, 1.0) if size == 1 else 1.0
    assert ratio <= bound + max(CLOCK, abs(again - 1))

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What compaction does to each of the test networks; as a program, it prints that as JSON, to compare processors by."""

from __future__ import annotations

import json
from typing import Any

import torch

from pyro_bmrs.pruning import attach_noise, compaction_report, noise_sites
from pyro_bmrs.pruning.compaction.compact import compact_gated
from tests.pruning.networks import NETWORKS, OTHER_NETWORKS, make


def removals(name: str) -> dict[str, Any]:
    """The fate of each unit, head and branch of a network, half of which are pruned, and what is left of its layers."""
    net, inputs = make(name)
    sites = noise_sites(attach_noise(net, kinds=("units", "heads", "block")))
    generator = torch.Generator().manual_seed(0)
    gates = {site: torch.rand(at.noise.num_units, generator=generator).round() for site, at in sites.items()}
    report = compaction_report(compact_gated(net, gates, sites, inputs))
    return {
        "fates": report.units.groupby("site")["fate"].agg(list).to_dict(),
        "reasons": report.masked["reason"].tolist(),
        "multiplied": dict(report.multiplied),
        "parameters": report.layers["parameters_after"].to_dict(),
    }


def all_removals() -> dict[str, Any]:
    """Those of each test network."""
    return {name: removals(name) for name in (*NETWORKS, *OTHER_NETWORKS)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), "removals": all_removals()}))

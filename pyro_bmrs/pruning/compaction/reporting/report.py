# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What compaction did: to each unit, and to each layer's parameters and multiplications."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from pyro_bmrs.errors import ReductionError

if TYPE_CHECKING:
    import pandas as pd

# A unit's fate.
KEPT, REMOVED, MASKED = "kept", "removed", "masked"


@dataclass(frozen=True)
class CompactionReport:
    """
    What :func:`~pyro_bmrs.pruning.compact` did to a network.

    :param units: a row for each unit, by site and number: its ``gate`` (the posterior mean of its noise, 0 where it
        is pruned), its ``fate`` (``"kept"``; ``"removed"``; ``"masked"``, which is pruned, but still there as weights,
        or factors, of 0), and why it is masked; ``delta_evidence`` in nats where it was given.
    :param layers: a row for each module that has parameters or multiplies matrices by itself: ``parameters`` and
        multiply-accumulate operations (``macs``) of one call on the example inputs, before and after.
    :param multiplied: why the noise of a site is still there, as a multiplication by fixed factors.
    :param architecture: what was changed in the network, as plain data: a description for each time that it was
        compacted.
    :param latencies: for each number of examples for which it was asked what a call with them took, in microseconds,
        before and after.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, noise_sites
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> gates = {"0": torch.tensor([0.0, 1.0, 0.5, 0.0])}
        >>> small = compact_gated(net, gates, noise_sites(net), torch.ones(1, 3))
        >>> compaction_report(small).units["fate"].tolist()
        ['removed', 'kept', 'kept', 'removed']
    """

    units: pd.DataFrame
    layers: pd.DataFrame
    multiplied: Mapping[str, str]
    architecture: Sequence[Mapping[str, Any]] = field(repr=False)
    latencies: Mapping[int, Sequence[float]] = field(default_factory=dict)

    @property
    def sites(self) -> pd.DataFrame:
        """
        A row for each site: how many units it had, and how many were kept, removed and masked; and the sum of
        ``delta_evidence`` over those that were pruned, in nats, where it was given.
        """
        import pandas as pd

        fates = pd.crosstab(self.units.index.get_level_values("site"), self.units["fate"])
        counts = fates.reindex(columns=[KEPT, REMOVED, MASKED], fill_value=0)
        counts.insert(0, "units", counts.sum(axis="columns"))
        counts.index.name, counts.columns.name = "site", None
        counts = counts.loc[self.units.index.get_level_values("site").unique()]
        if "delta_evidence" in self.units:
            pruned = self.units[self.units["gate"] == 0.0]
            counts["delta_evidence"] = (
                pruned["delta_evidence"].groupby("site").sum().reindex(counts.index, fill_value=0.0)
            )
        return counts

    @property
    def latency(self) -> pd.DataFrame:
        """
        A row for each number of examples, ``batch``, for which the latency was measured, with ``latency_before`` and
        ``latency_after``, medians in microseconds; none where ``compact`` was given no ``batch_sizes``.
        """
        import pandas as pd

        table = pd.DataFrame.from_dict(
            dict(self.latencies), orient="index", columns=["latency_before", "latency_after"], dtype=float
        )
        table.index.name = "batch"
        return table

    @property
    def masked(self) -> pd.DataFrame:
        """The rows of those units that are pruned and still there."""
        return self.units[self.units["fate"] == MASKED]

    def __repr__(self) -> str:
        sites, layers = self.sites, self.layers
        totals = layers.sum()
        changes = {
            "units": (sites["units"].sum(), (sites["units"] - sites[REMOVED]).sum()),
            "parameters": (totals["parameters_before"], totals["parameters_after"]),
            "MACs": (totals["macs_before"], totals["macs_after"]),
        }
        lines = [
            *(
                f"{what:<10} {before:>14,} -> {after:>14,} ({_times(before, after)})"
                for what, (before, after) in changes.items()
            ),
            *(
                f"{f'µs for {size}':<10} {before:>14,.0f} -> {after:>14,.0f} ({before / after:.2f} times as fast)"
                for size, (before, after) in self.latencies.items()
            ),
            *(() if self.latencies else ("µs         not measured: compact(..., batch_sizes=(1, 64)) measures it",)),
            "",
            sites.to_string(),
            "",
            layers.to_string(),
        ]
        masked = self.masked.reset_index()
        reasons = Counter(zip(masked["site"], masked["reason"]))
        lines += [f"\n{count} masked in {site}: {reason}" for (site, reason), count in reasons.items()]
        lines += [f"\nmultiplied at {site}: {reason}" for site, reason in self.multiplied.items()]
        return "\n".join(lines)

    def as_data(self) -> dict[str, Any]:
        """The report as numbers, strings, lists and dictionaries."""
        return {
            "units": self.units.reset_index().to_dict("list"),
            "layers": self.layers.reset_index().to_dict("list"),
            "multiplied": dict(self.multiplied),
            "architecture": list(self.architecture),
            "latency": self.latency.reset_index().to_dict("list"),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> CompactionReport:
        """The report that :meth:`as_data` describes."""
        import pandas as pd

        latency = data["latency"]
        return cls(
            pd.DataFrame(data["units"]).set_index(["site", "unit"]),
            pd.DataFrame(data["layers"]).set_index("layer"),
            data["multiplied"],
            data["architecture"],
            dict(zip(latency["batch"], zip(latency["latency_before"], latency["latency_after"]))),
        )


def compaction_report(net: nn.Module) -> CompactionReport:
    """
    What compaction did to a network.

    :param net: what :func:`~pyro_bmrs.pruning.compact` returned, a copy of it, or what
        :func:`~pyro_bmrs.pruning.load_compact` loaded.
    :raises ReductionError: for any other network.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, noise_sites
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> gates = {"0": torch.tensor([0.0, 1.0, 0.5, 0.0])}
        >>> small = compact_gated(net, gates, noise_sites(net), torch.ones(1, 3))
        >>> compaction_report(small).sites[["units", "kept", "removed"]]
              units  kept  removed
        site
        0         4     2        2
    """
    report = getattr(net, "compaction", None)
    if not isinstance(report, CompactionReport):
        raise ReductionError(
            f"this {type(net).__name__} has not been compacted: call compact(net, guide, example_inputs)"
        )
    return report


def _times(before: int, after: int) -> str:
    return f"{before / after:.1f} times fewer" if after else "none left"

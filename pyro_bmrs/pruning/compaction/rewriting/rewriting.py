# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A network with multiplications, after all exact rewritings that make it smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from pyro_bmrs.pruning.compaction.coupling.rounding import Rounding
from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.modules.plain import make_fast
from pyro_bmrs.pruning.compaction.modules.scaling import scales_of
from pyro_bmrs.pruning.compaction.reporting.cost import cost
from pyro_bmrs.pruning.compaction.surgery.blocks import remove_blocks
from pyro_bmrs.pruning.compaction.surgery.folding import fold
from pyro_bmrs.pruning.compaction.surgery.heads import HeadPlace, remove_heads
from pyro_bmrs.pruning.compaction.surgery.hidden_units import remove_hidden_units
from pyro_bmrs.pruning.compaction.surgery.removal import remove_channels
from pyro_bmrs.pruning.examples import Outputs
from pyro_bmrs.pruning.noise.attachment import KINDS, NoiseSite

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Masked:
    """
    A network with multiplications by fixed factors.

    :param net: the network.
    :param places: for each site the name of its multiplication.
    :param sites: for each site where it acts.
    :param importance: for each site, which of its units to rather keep in a layer that would vanish.
    :param merits: for each site, which of its units to rather keep where sizes are rounded up.
    :param example_inputs: what it is called with.
    :param outputs: what it computes.
    """

    net: nn.Module
    places: Mapping[str, str]
    sites: Mapping[str, NoiseSite]
    importance: Mapping[str, Tensor]
    merits: Mapping[str, Tensor]
    example_inputs: Any
    outputs: Outputs


class Rewritten(NamedTuple):
    """
    A masked network after exact rewritings.

    :param net: the network.
    :param present: names of the multiplications that were there before the last of them, which folds them.
    :param left: why channels that are multiplied by 0 are still there.
    :param multiplied: for the names of multiplications that are still there, why.
    :param costs: what each of its modules costs.
    :param gone: for the sites of widths, which units are gone.
    :param kept_for: for those of them whose pruned units are still there, why.
    """

    net: nn.Module
    present: set[str]
    left: dict[Channel, str]
    multiplied: dict[str, str]
    costs: pd.DataFrame
    gone: Mapping[str, Tensor] = {}
    kept_for: Mapping[str, str] = {}


def rewrite(masked: Masked, rounding: Rounding) -> Rewritten:
    """
    Takes out of a network what its multiplications by 0 make useless, and folds the other multiplications.

    :param masked: the network; left as it is.
    :param rounding: what sizes are rounded up to.
    """
    inputs, outputs, places = masked.example_inputs, masked.outputs, masked.places
    sizes = {places[name]: site.noise.unit_size for name, site in masked.sites.items()}
    importance, merits = (
        {places[name]: values[name].repeat_interleave(sizes[places[name]]) for name in masked.sites}
        for values in (masked.importance, masked.merits)
    )
    kinds = {kind: [places[name] for name, site in masked.sites.items() if site.kind == kind] for kind in KINDS}

    known = set(scales_of(masked.net))
    net, left = remove_blocks(masked.net, kinds["block"], inputs, outputs)
    # What is multiplied by 0 in branches that stay.
    kinds["units"] += sorted(scales_of(net).keys() - known)
    owners = {places[name]: site.module for name, site in masked.sites.items()}
    net, hidden, reasons = remove_hidden_units(net, outputs, importance, rounding, merits)
    left.update(reasons)
    heads = {place: HeadPlace(sizes[place], owners[place]) for place in kinds["heads"] if place in scales_of(net)}
    net, reasons = remove_heads(net, heads, inputs, outputs, importance, rounding, merits)
    left.update(reasons)
    units = [place for place in kinds["units"] if place in scales_of(net)]
    net, reasons = remove_channels(net, units, inputs, outputs, importance, rounding, merits)
    left.update(reasons)
    present = set(scales_of(net)) | hidden
    net, multiplied = fold(net, inputs, outputs)
    make_fast(net)
    return Rewritten(net, present, left, multiplied, cost(net, inputs))

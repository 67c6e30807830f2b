# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
A pruned network as an ordinary one that is smaller.

The noise becomes a multiplication by fixed factors, 0 for pruned units. What follows are exact rewritings of that
network: channels and heads that nothing depends on are taken out, and the multiplications that are left are folded into
the weights beside them. A rewriting that would change what the network computes is not done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.compaction.architecture import describe
from pyro_bmrs.pruning.compaction.coupling.rounding import Rounding
from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.modules.plain import make_fast, make_plain, restore_attentions
from pyro_bmrs.pruning.compaction.modules.scaling import scale_network, scales_of, unwrap
from pyro_bmrs.pruning.compaction.reporting.cost import compare_costs, cost
from pyro_bmrs.pruning.compaction.reporting.latency import batches, latencies
from pyro_bmrs.pruning.compaction.reporting.report import KEPT, MASKED, REMOVED, CompactionReport
from pyro_bmrs.pruning.compaction.rewriting.checks import (
    check_called,
    check_comparable,
    check_sizes,
    check_weights,
    checked_gates,
)
from pyro_bmrs.pruning.compaction.rewriting.fastest import fastest
from pyro_bmrs.pruning.compaction.rewriting.rewriting import Masked, Rewritten, rewrite
from pyro_bmrs.pruning.compaction.surgery.width.width import Widths, gate_norms
from pyro_bmrs.pruning.examples import Outputs, check_example_inputs, copy_network, run
from pyro_bmrs.pruning.noise.attachment import NoiseSite, detach_noise, noise_sites
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.noise.hooks import noise_hooks_in

if TYPE_CHECKING:
    import pandas as pd


def compact(
    net: nn.Module,
    guide: AutoTruncatedLogNormal,
    example_inputs: Any,
    *,
    delta_evidence: Mapping[str, Tensor] | None = None,
    round_to: int | Literal["auto"] | None = None,
    batch_sizes: Sequence[int] = (),
) -> nn.Module:
    """
    The network after pruning, as an ordinary one that is smaller: without noise, hooks or masks.

    It computes what the network does with the noise at its posterior mean, and at 0 for pruned units, to rounding; that
    is checked on the example inputs. The means of the units that are left are folded into the weights beside them.
    Pruned units are taken out where only a constant comes from them, which the next biases take over. Channels that the
    network ties together go when all of them can: which these are is seen by following each through the network,
    whatever it does with them, and through what it calls in training alone, such as auxiliary classifiers. Sizes by
    which a module splits channels are changed where it holds them as attributes. What cannot be taken out is left, as
    weights or factors of 0, and the report names it, with the module in the way.

    Weights that are computed, as by norms of weights or by a convolution's own forward, are in the result as they come
    out in evaluation, and what computed them is not.

    A recurrent layer whose layers and directions keep different numbers of hidden units is replaced by one that passes
    for torch's, with a tuple of final states in the place of one tensor. A first state has to be of the new width.
    Recurrent layers are followed step by step: a few steps in the example inputs do.

    An ``nn.MultiheadAttention`` is replaced by an :class:`~pyro_bmrs.pruning.Attention`, which can have fewer heads; an
    attention written as projections loses heads if it holds their number, and their width, as attributes.

    The result is copied, exported and put in a state dict as any module is; convolutions in channels-last memory stay
    so. :func:`~pyro_bmrs.pruning.save_compact` and :func:`~pyro_bmrs.pruning.load_compact` keep it in a file.

    With ``round_to`` the sizes that are left are rounded up, by units that could go and come back: those first for
    which the log evidence speaks most, where ``delta_evidence`` is given, or else those of the highest posterior mean.
    They are multiplied by 0 all the same, so that the outputs are as without them, and the report counts them among the
    masked. What goes together comes back together, and of heads whole ones do. Channels of a width that come back hold
    what its norms take from all of them, which is then the same; but not before a ``GroupNorm``, which is over places,
    too. ``"auto"`` measures on this machine, on the example inputs and on batches of ``batch_sizes``: each layer has
    the size at which it is fastest, which may be its own, and where the whole is faster without rounding, or as it was,
    it is that.

    Trained further, masked units may come back: nothing holds their weights at 0. Where a pruned unit leaves a constant
    other than 0, as before a sigmoid, it is that of inputs of the examples' size.

    :param net: the network, with noise attached; left as it is.
    :param guide: the fitted guide of its noise.
    :param example_inputs: what the network is called with: a tensor, a sequence of positional arguments, or a mapping
        of keyword arguments. Multiply-accumulate operations are counted on these.
    :param delta_evidence: for each site the change in log evidence of its units in nats, for the report, and for which
        units come back.
    :param round_to: a multiple that the sizes of layers are rounded up to, or ``"auto"``; by default they are not.
    :param batch_sizes: how many examples there are in batches on which the latency is measured, for the report of the
        network without noise and of the compact one, and by ``"auto"``, with which it is to be faster for all of them.
        They are those of the example inputs, again and again.
    :return: the smaller network; :func:`~pyro_bmrs.pruning.compaction_report` tells what became of each unit.
    :raises ReductionError: for a guide of another network, or one that is not fitted; weights or posterior means that
        are NaN or infinite; example inputs that do not fit the network; a network whose output is random; a
        ``delta_evidence`` that is not of its sites; sizes that are no positive integers.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, attach_noise, compact, noise_sites
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> _ = guide.noise_locs.data.sub_(0.5)  # in place of fitting
        >>> noise_sites(net)["0"].noise.kept[2] = False
        >>> compact(net, guide, torch.ones(1, 3))
        Sequential(
          (0): Linear(in_features=3, out_features=3, bias=True)
          (1): Tanh()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if not isinstance(guide, AutoTruncatedLogNormal):
        raise ReductionError(f"compact needs the AutoTruncatedLogNormal that was fitted, not a {type(guide).__name__}")
    sites, known = noise_sites(net), guide.noise
    if any(known.get(name) is not site.noise for name, site in sites.items()) or known.keys() - sites.keys():
        raise ReductionError(
            f"the guide is not of this network's noise: it has the sites {sorted(known)}, the network {sorted(sites)}"
        )
    if not guide.is_fitted:
        raise ReductionError("the guide is not fitted yet: its noise is where it began")
    bad = int((~guide.noise_parameters.isfinite()).sum())
    if bad:
        raise ReductionError(f"{bad} parameters of the guide are NaN or infinite: train again, at a lower rate")
    means = {name: guide.noise_posterior(name).mean.detach() for name in sites}
    gates = guide.mean_noise()
    options: dict[str, Any] = {"delta_evidence": delta_evidence, "round_to": round_to, "batch_sizes": batch_sizes}
    return compact_gated(net, gates, sites, example_inputs, importance=means, **options)


def compact_gated(
    net: nn.Module,
    gates: Mapping[str, Tensor],
    sites: Mapping[str, NoiseSite],
    example_inputs: Any,
    *,
    importance: Mapping[str, Tensor] | None = None,
    delta_evidence: Mapping[str, Tensor] | None = None,
    round_to: int | Literal["auto"] | None = None,
    batch_sizes: Sequence[int] = (),
) -> nn.Module:
    """
    A smaller network that computes what a network does whose units are multiplied by fixed factors.

    :param net: the network, with or without noise attached; left as it is.
    :param gates: for each site the factors of its units, 0 for those that are pruned; shape ``(num_units,)``.
    :param sites: for each site where it acts.
    :param example_inputs: what the network is called with: a tensor, a sequence of positional arguments, or a mapping
        of keyword arguments.
    :param importance: for each site, which of its units to rather keep in a layer that would vanish.
    :param delta_evidence: for each site the change in log evidence of its units in nats, for the report, and for which
        units come back.
    :param round_to: a multiple that the sizes of layers are rounded up to, or ``"auto"``; by default they are not.
    :param batch_sizes: how many examples there are in batches on which the latency is measured, for the report of the
        network without noise and of the compact one, and by ``"auto"``, with which it is to be faster for all of them.
        They are those of the example inputs, again and again.
    :return: the smaller network; :func:`~pyro_bmrs.pruning.compaction_report` tells what became of each unit.
    :raises ReductionError: for gates that do not fit the sites, weights or gates that are NaN or infinite, example
        inputs that do not fit the network, or a network whose output is random.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, compact_gated, noise_sites
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> gates = {"0": torch.tensor([0.0, 1.0, 0.5, 0.0])}
        >>> small = compact_gated(net, gates, noise_sites(net), torch.ones(1, 3))
        >>> small[0]
        Linear(in_features=3, out_features=2, bias=True)
    """
    original = copy_network(net)
    if any(noise_hooks_in(original)):
        detach_noise(original)
    gates = checked_gates(original, gates, sites)
    check_sizes(round_to, batch_sizes)
    for name, evidence in (delta_evidence or {}).items():
        if name not in sites or evidence.shape != gates[name].shape:
            raise ReductionError(f"delta_evidence[{name!r}], of shape {tuple(evidence.shape)}, is of no site like that")
    check_weights(original)
    bare = _without_noise(original, gates, sites, example_inputs)
    check_comparable(bare, example_inputs)
    given = batches(example_inputs, batch_sizes)
    for batch in given.values():
        run(bare, batch)
    masked = deepcopy(original)
    make_plain(masked)
    widths = {name: site for name, site in sites.items() if site.kind == "width"}
    others = {name: site for name, site in sites.items() if name not in widths}
    outputs, places = _masked_outputs(masked, gates, others, widths, example_inputs)

    def put_scales(net: nn.Module) -> None:
        scale_network(net, gates, others)

    importance = importance or gates
    known = sites.keys() <= (delta_evidence or {}).keys()
    merits = {name: -evidence for name, evidence in (delta_evidence or {}).items()} if known else importance
    whole = Widths(masked, gates, widths, example_inputs, outputs, importance, merits, put_scales)

    def finished(rounding: Rounding) -> Rewritten:
        narrowed = whole.removed(rounding)
        done = rewrite(Masked(narrowed.net, places, others, importance, merits, example_inputs, outputs), rounding)
        restore_attentions(done.net, original)
        _copy_modes(original, done.net)
        return done._replace(gone=narrowed.gone, kept_for=narrowed.left)

    if round_to == "auto":
        done = fastest(finished, whole.removed(Rounding()).net, [example_inputs, *given.values()])
    else:
        done = finished(Rounding(round_to or 1))
    if outputs.difference(done.net) > 1:
        raise ReductionError(
            "the compact network does not compute what the masked one does; please report this network"
        )
    earlier = vars(net).get("compaction")
    vars(done.net)["compaction"] = CompactionReport(
        _units(gates, sites, _Fates(places, done), delta_evidence or {}),
        compare_costs(_costs_without_noise(bare, example_inputs), done.costs),
        {site: done.multiplied[place] for site, place in places.items() if place in done.multiplied},
        [*(earlier.architecture if earlier else ()), describe(original, done.net)],
        {size: latencies([bare, done.net], batch) for size, batch in given.items()},
    )
    return done.net


def _masked_outputs(
    plain: nn.Module,
    gates: Mapping[str, Tensor],
    others: Mapping[str, NoiseSite],
    widths: Mapping[str, NoiseSite],
    example_inputs: Any,
) -> tuple[Outputs, dict[str, str]]:
    """What the network computes with all multiplications; and for each site but a width the name of its own."""
    masked = deepcopy(plain)
    gate_norms(masked, gates, widths)
    scales = scale_network(masked, gates, others)
    check_called(masked, scales, example_inputs)
    names = {scale: name for name, scale in scales_of(masked).items()}
    return Outputs(masked, example_inputs), {site: names[scale] for site, scale in scales.items()}


def _without_noise(
    original: nn.Module, gates: Mapping[str, Tensor], sites: Mapping[str, NoiseSite], example_inputs: Any
) -> nn.Module:
    """A copy of the network without any noise, which computes the same as the network does."""
    net = deepcopy(original)
    # What it calls itself; all other noise is off.
    own = {name: site for name, site in sites.items() if not site.module}
    for scale in scale_network(net, {name: torch.ones_like(gates[name]) for name in own}, own).values():
        unwrap(net, scale)
    check_example_inputs(net, example_inputs)
    return net


def _costs_without_noise(bare: nn.Module, example_inputs: Any) -> pd.DataFrame:
    """What each module of the network without noise costs, with the modules that the compact one has."""
    net = deepcopy(bare)
    make_plain(net)
    make_fast(net)
    return cost(net, example_inputs)


def _copy_modes(source: nn.Module, target: nn.Module) -> None:
    """
    Training modes, required gradients and the order of images' dimensions in memory, by name; of what is new, those of
    the module that it is in or was.
    """
    modules: dict[str, nn.Module] = dict(source.named_modules())
    known = dict(source.named_parameters())

    def nearest(name: str) -> nn.Module:
        while name not in modules:
            name = name.rpartition(".")[0]
        return modules[name]

    for name, module in target.named_modules():
        module.training = nearest(name).training
    for name, parameter in target.named_parameters():
        # A new bias learns as the weight beside it does.
        beside = known.get(name, known.get(f"{name.rpartition('.')[0]}.weight"))
        around = list(nearest(name).parameters()) if beside is None else [beside]
        parameter.requires_grad_(any(parameter.requires_grad for parameter in around))
        parameter.grad = None
        if parameter.dim() == 4 and name in known and known[name].is_contiguous(memory_format=torch.channels_last):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class _Fates(NamedTuple):
    """
    What the rows of a report are made of.

    :param places: for each site, but those of widths, the name of its multiplication.
    :param done: what was done to these.
    """

    places: Mapping[str, str]
    done: Rewritten

    def of(self, name: str, unit: int, size: int, gate: float) -> tuple[str, str]:
        """What became of a unit, and why if it is masked."""
        if name in self.done.gone:
            if gate:
                return KEPT, ""
            return (REMOVED, "") if self.done.gone[name][unit] else (MASKED, self.done.kept_for[name])
        place, left = self.places[name], self.done.left
        elements = (Channel(place, "through", unit * size + element) for element in range(size))
        reason = next((left[element] for element in elements if element in left), "")
        return _fate(gate, reason, is_present=place in self.done.present)


def _units(
    gates: Mapping[str, Tensor], sites: Mapping[str, NoiseSite], fates: _Fates, delta_evidence: Mapping[str, Tensor]
) -> pd.DataFrame:
    """The rows of a report."""
    import pandas as pd

    rows = []
    for name, gate in gates.items():
        size = sites[name].noise.unit_size
        evidence = delta_evidence[name].tolist() if name in delta_evidence else [math.nan] * len(gate)
        for unit, value in enumerate(gate.tolist()):
            rows.append((name, unit, value, *fates.of(name, unit, size, value), evidence[unit]))
    columns = ["site", "unit", "gate", "fate", "reason", "delta_evidence"]
    table = pd.DataFrame(rows, columns=columns).set_index(["site", "unit"])
    return table if delta_evidence else table.drop(columns="delta_evidence")


def _fate(gate: float, reason: str, *, is_present: bool) -> tuple[str, str]:
    """
    What becomes of a unit, and why if it is masked.

    :param gate: the factor that it is multiplied by.
    :param reason: why it is still there; empty if it is not.
    :param is_present: whether what multiplies it is still there.
    """
    if not is_present:  # It went with the residual branch that it was in.
        return REMOVED, ""
    if gate:
        return KEPT, ""
    return (MASKED, reason) if reason else (REMOVED, "")

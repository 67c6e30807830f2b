# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What becomes of a network half of whose units are pruned: one row of the table.

Every second unit of each site is given a posterior far below 1, so that :func:`pyro_bmrs.pruning.prune` lets it go,
with all that the network ties to it. Noise is on all units, heads and widths that can be pruned.
"""

from __future__ import annotations

import copy
import io
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    attach_noise,
    compact,
    compaction_report,
    load_compact,
    prune,
    save_compact,
)
from pyro_bmrs.pruning.examples import call, results
from tests.networks.catalogue import Entry

COLUMNS = (
    *("network", "parameters", "sites", "units", "pruned", "removed", "prunable", "left", "left_by_torch_pruning"),
    *("float32", "float64", "export", "onnx", "trains", "saved", "seconds_to_prune", "seconds"),
    *("attaches", "compacts", "masked_since"),
)
KINDS = ("units", "heads", "width")
# Seconds after which torch-pruning is given up.
LONGEST_OF_PEER = 120
# What a column says where the original cannot do it either.
NOT_THERE = "original does not"
YES = "yes"


def examine(entry: Entry, *, without: Collection[str] = ()) -> dict[str, Any]:
    """
    A row of the table.

    :param entry: the network.
    :param without: columns to leave out, as they take long: ``left_by_torch_pruning``, ``export`` or ``onnx``.
    :return: ``sites`` and ``units`` with noise, ``parameters``, the shares of them in layers that lose some
        (``prunable``) and left over (``left``, and ``left_by_torch_pruning``), the share of the pruned units that are
        removed; relative differences of the outputs in both precisions; what export, files and a step of training
        come to; seconds that compacting took in single precision. What raises is told where the value would be.
    """
    row: dict[str, Any] = {"network": entry.name}
    inputs = entry.inputs()
    with _told(row, "attaches"):
        original = _lively(entry)
        row["parameters"] = _num_parameters(original)
        begin = time.process_time()
        pruned = _pruned(copy.deepcopy(original), inputs)
        row["seconds_to_prune"] = round(time.process_time() - begin, 1)
        row["attaches"] = YES
    if row["attaches"] != YES:
        return row
    with _told(row, "compacts"):
        begin = time.process_time()
        small = compact(*pruned, inputs)
        row["seconds"] = round(time.process_time() - begin, 1)
        row.update(_counts(small), left=round(_num_parameters(small) / row["parameters"], 3), compacts=YES)
    with _told(row, "left_by_torch_pruning"):
        if "left_by_torch_pruning" not in without:
            with _at_most(LONGEST_OF_PEER):
                left = _by_torch_pruning(copy.deepcopy(original), inputs)
            row["left_by_torch_pruning"] = round(left / row["parameters"], 3)
    if row["compacts"] != YES:
        return row
    with _told(row, "float32"):
        row["float32"] = difference(pruned[0], small, inputs)
    with _told(row, "float64"):
        # One copy of a large network at a time.
        del pruned
        row["float64"] = _in_double(original, inputs)
    for column, does in (("export", _exports), ("onnx", _exports_onnx), ("trains", _trains)):
        if column not in without:
            row[column] = _as_the_original(does, original, small, inputs)
    with _told(row, "saved"):
        row["saved"] = _is_saved(small, original, inputs)
    return row


def _in_double(original: nn.Module, inputs: Any) -> float | str:
    """The difference in double precision, where the network can be in it."""
    double, inputs64 = copy.deepcopy(original).double(), tree_map_only(Tensor, _double, inputs)
    try:
        _outputs(double, inputs64)
    except RuntimeError:
        return NOT_THERE
    pruned = _pruned(double, inputs64)
    return difference(pruned[0], compact(*pruned, inputs64), inputs64)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raises where something takes longer, which torch-pruning does for ever of some grouped queries."""

    def give_up(*_: Any) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _told(row: dict[str, Any], column: str) -> Iterator[None]:
    try:
        yield
    # Whatever a network comes to is what the table is about.
    except Exception as error:
        row[column] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _lively(entry: Entry) -> nn.Module:
    """The network with random weights, its norms and factors as if trained."""
    torch.manual_seed(0)
    net = entry.make().eval()
    for module in net.modules():
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
            and module.weight is not None
        ):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    for name, parameter in net.named_parameters():
        # Heads begin at 0 in some, and branches close to it, so that nothing in them would be seen.
        is_factor = any(word in name for word in ("gamma", "layer_scale", ".ls"))
        if (parameter.dim() > 1 or is_factor) and parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    return net


def _pruned(net: nn.Module, inputs: Any) -> tuple[nn.Module, AutoTruncatedLogNormal]:
    """The network with noise, half of whose units are pruned, and its guide."""
    attach_noise(net, kinds=KINDS, example_inputs=inputs)
    guide = AutoTruncatedLogNormal(net)
    with torch.no_grad():
        guide.noise_parameters[0] = -0.7
        guide.noise_parameters[0, ::2], guide.noise_parameters[1, ::2] = -12.0, 1.5
    prune(net, guide, example_inputs=inputs)
    return net, guide


def _counts(small: nn.Module) -> dict[str, Any]:
    report = compaction_report(small)
    pruned = report.units[report.units["gate"] == 0.0]
    layers = report.layers
    loses = layers["parameters_after"] < layers["parameters_before"]
    reasons = report.masked["reason"].value_counts()
    return {
        "sites": len(report.sites),
        "units": len(report.units),
        "pruned": len(pruned),
        "removed": round((pruned["fate"] == "removed").mean(), 3),
        "prunable": round(layers["parameters_before"][loses].sum() / layers["parameters_before"].sum(), 3),
        "masked_since": "; ".join(
            f"{count}: {' '.join(reason.split())[:150]}" for reason, count in reasons[:3].items()
        ),
    }


def _num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def difference(net: nn.Module, other: nn.Module, inputs: Any) -> float:
    """The largest difference of the outputs of two networks, relative to their largest value."""
    largest = 0.0
    for one, two in zip(_outputs(net, inputs), _outputs(other, inputs), strict=True):
        largest = max(largest, ((one - two).abs().max() / one.abs().max().clamp(min=1e-30)).item())
    return float(f"{largest:.1e}")


@torch.no_grad()
def _outputs(net: nn.Module, inputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(_plain(call(net.eval(), inputs))) if _is_real(leaf)]


def _plain(output: Any) -> Any:
    """What a network predicts; what transformers return of their insides is narrower in a smaller network."""
    return results(dict(output) if hasattr(output, "to_tuple") else output)


def _is_real(leaf: Any) -> bool:
    return torch.is_tensor(leaf) and leaf.is_floating_point()


def _double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _by_torch_pruning(net: nn.Module, inputs: Any) -> int:
    """How many parameters torch-pruning leaves, which is asked for half of the channels, but for the last layer's."""
    import torch_pruning as tp

    before = [output.shape for output in _outputs(net, inputs)]
    called: list[nn.Module] = []
    layers = [module for module in net.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_hook(lambda module, *_: called.append(module)) for layer in layers]
    _outputs(net, inputs)
    for handle in handles:
        handle.remove()
    pruner = tp.pruner.BasePruner(
        net,
        inputs,
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=called[-1:],
        forward_fn=call,
        output_transform=lambda output: [leaf for leaf in tree_leaves(_plain(output)) if _is_real(leaf)],
    )
    pruner.step()
    if [output.shape for output in _outputs(net, inputs)] != before:
        raise ValueError("the outputs have other shapes")
    return _num_parameters(net)


def _as_the_original(does: Callable[[nn.Module, Any], None], original: nn.Module, small: nn.Module, inputs: Any) -> str:
    row: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _told(row, "small"):
            does(copy.deepcopy(small), inputs)
            return YES
        with _told(row, "original"):
            does(copy.deepcopy(original), inputs)
            return str(row["small"])
    return NOT_THERE


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _exports(net: nn.Module, inputs: Any) -> None:
    positional, named = _arguments(inputs)
    torch.export.export(net.eval(), positional, named)


def _exports_onnx(net: nn.Module, inputs: Any) -> None:
    positional, named = _arguments(inputs)
    torch.onnx.export(net.eval(), positional, io.BytesIO(), kwargs=named, dynamo=True, verbose=False)


def _trains(net: nn.Module, inputs: Any) -> None:
    net.train().requires_grad_(True)
    outputs = [leaf for leaf in tree_leaves(_plain(call(net, inputs))) if _is_real(leaf) and leaf.requires_grad]
    sum(output.float().square().mean() for output in outputs).backward()
    torch.optim.SGD(net.parameters(), 1e-6).step()
    if not any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in net.parameters()):
        raise ValueError("nothing has a gradient")


def _is_saved(small: nn.Module, original: nn.Module, inputs: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        save_compact(small, f"{folder}/net")
        loaded = load_compact(f"{folder}/net", original)
    return YES if difference(small, loaded, inputs) == 0 else "other outputs"

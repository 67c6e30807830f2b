# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Residual branches that are multiplied by 0, taken out of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyro_bmrs.pruning.compaction.coupling.lineage import Lineage
from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.modules.bypass import Bypass, Zeros
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled, scales_of, substitute
from pyro_bmrs.pruning.compaction.surgery.attempts import most_that_work
from pyro_bmrs.pruning.examples import Outputs, run
from pyro_bmrs.pruning.layers import channel_dim, layer_units


def remove_blocks(
    net: nn.Module, names: Collection[str], example_inputs: Any, outputs: Outputs
) -> tuple[nn.Module, dict[Channel, str]]:
    """
    Takes residual branches out of a network, whose ends are multiplied by 0.

    In a branch that has to stay, since it changes the shape of what it is given, what the layers are given makes no
    difference. It is multiplied by 0 too, so that its channels can go.

    :param net: a network with multiplications; left as it is.
    :param names: those of the multiplications by one factor at the ends of branches.
    :param example_inputs: what the network is called with.
    :param outputs: its outputs, which do not change.
    :return: the smaller network, and why the multiplications by 0 that are left are still there.
    """
    zeros = [name for name, scale in scales_of(net).items() if name in names and not scale.factor.any()]

    def without(chosen: Sequence[str]) -> nn.Module:
        smaller = deepcopy(net)
        for name in chosen:
            scale = scales_of(smaller).get(name)
            if scale is None:
                continue  # It went with a branch around it.
            branch = _Branch(smaller, scale, example_inputs)
            for module, bypass in branch.bypasses():
                substitute(smaller, module, bypass)
            substitute(smaller, branch.end, Zeros())
        return smaller

    smaller, failed = most_that_work(zeros, without, outputs)
    reasons = {zeros[place]: reason for place, reason in failed.items()}

    def silenced(chosen: Sequence[str]) -> nn.Module:
        silent = deepcopy(smaller)
        for name in chosen:
            for layer, given in _Branch(silent, scales_of(silent)[name], example_inputs).layers():
                dim = channel_dim(layer, given)
                substitute(silent, layer, Scaled(layer, Scale(given.new_zeros(given.shape[dim]), dim), "input"))
        return silent

    smaller, _ = most_that_work(list(reasons), silenced, outputs)
    return smaller, {Channel(name, "through", 0): reason for name, reason in reasons.items()}


class _Branch:
    """
    A residual branch that ends in a multiplication by 0.

    :param net: the network.
    :param scale: the multiplication.
    :param example_inputs: what the network is called with.

    ``end`` is the outermost module that returns the product, or a multiple of it.
    """

    def __init__(self, net: nn.Module, scale: Scale, example_inputs: Any) -> None:
        self._net, self._scale, self._example_inputs = net, scale, example_inputs
        self._results: dict[nn.Module, Any] = {}
        self._inputs: dict[nn.Module, Any] = {}
        # Changes in place, such as of a residual sum, show in a tensor's version.
        versions: dict[nn.Module, int] = {}
        # A module that is called more than once may be in the branch, and outside.
        self._calls: Counter[nn.Module] = Counter()

        def note(module: nn.Module, args: Any, result: Any) -> None:
            self._calls[module] += 1
            self._results[module] = result
            self._inputs[module] = args[0] if args else None
            versions[module] = getattr(result, "_version", 0)

        self._run(note)
        product = self._results[scale], versions[scale]
        end = next(m for m in net.modules() if self._results.get(m) is product[0] and versions[m] == product[1])
        # What its units are multiplied with behind it multiplies zeros.
        behind = {m.module: m for m in net.modules() if isinstance(m, Scaled) and m.when == "output"}
        while end in behind:
            end = behind[end]
        self.end = end

    def bypasses(self) -> list[tuple[nn.Module, Bypass]]:
        """The outermost modules whose results nothing but the branch depends on, with what may stand in for them."""
        alone = self._alone()
        inside = {part for module in alone for part in module.modules() if part is not module}
        return [(module, _bypass(module, self._results[module])) for module in alone - inside]

    def layers(self) -> list[tuple[nn.Module, Tensor]]:
        """The layers with units whose results nothing but the branch depends on, with their inputs."""
        return [(m, self._inputs[m]) for m in self._alone() if layer_units(m) is not None]

    def _alone(self) -> set[nn.Module]:
        called = [m for m, count in self._calls.items() if count == 1 and self.end not in m.modules()]
        results = self._results_of()
        reached = {module: results[module] for module in called if module not in set(self.end.modules())}
        useless = {module for module, others in reached.items() if self._net not in others}
        return {module for module in useless if reached[module] <= useless | set(self.end.modules())}

    def _results_of(self) -> dict[nn.Module, set[nn.Module]]:
        """For each module the modules whose results depend on its own, past the multiplication by 0."""
        reached: dict[nn.Module, set[nn.Module]] = {module: set() for module in self._calls}

        def follow(module: nn.Module, args: Any, result: Any) -> Any:
            if module is self._scale:
                return torch.zeros_like(result)
            result = tree_map_only(Tensor, partial(lineage.begin, module), result)
            if self._calls[module] == 1:
                for source in lineage.of(result):
                    reached[source].add(module)
            return result

        with Lineage() as lineage:
            self._run(follow)
        return reached

    def _run(self, hook: Callable[[nn.Module, Any, Any], Any]) -> None:
        run(self._net, self._example_inputs, dict.fromkeys(self._net.modules(), hook))


def _bypass(module: nn.Module, result: Any) -> Bypass:
    num_results = len(result) if isinstance(result, tuple) else None
    return Bypass(num_results, getattr(module, "batch_first", False))

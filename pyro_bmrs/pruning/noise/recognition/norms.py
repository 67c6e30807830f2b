# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a layer's output comes to: a norm over its units, or a sum with a norm of something else."""

from __future__ import annotations

from torch import fx

from pyro_bmrs.pruning.layers import PASSIVE, is_channelwise, normalised_width
from pyro_bmrs.pruning.noise.graph import Flow, called_name, is_sum
from pyro_bmrs.pruning.noise.recognition.activations import is_activation

# Functions that are norms over units; over fewer units they are others.
_NORM_NAMES = frozenset("layer_norm group_norm rms_norm".split())


def behind_sum(flow: Flow, step: fx.Node) -> fx.Node | None:
    """
    The activation behind a sum in which the block's own input is normed, as in RepVGG: X. Ding et al. (2021),
    https://arxiv.org/abs/2101.03697.

    The norm gives something for a channel that is 0, so that a unit of the block is gone behind the activation alone.
    """
    has_normed = False
    for following in (step, *flow.steps(step)):
        module = flow.called(following)
        if is_activation(module):
            return following if has_normed else None
        if is_sum(following):
            has_normed = has_normed or any(_is_normed_input(flow, summand) for summand in following.all_input_nodes)
        elif not isinstance(module, PASSIVE):
            return None
    return None


def _is_normed_input(flow: Flow, node: fx.Node) -> bool:
    """Whether a step is a norm by channels of what no layer puts out."""
    before = node.all_input_nodes
    return is_channelwise(flow.called(node)) and len(before) == 1 and not flow.is_weighted(before[0])


def comes_to_norm(flow: Flow, node: fx.Node) -> bool:
    """Whether the next thing that happens to a value is a norm over its units."""
    for step in flow.steps(node):
        if is_over_units(flow, step):
            return True
        if not isinstance(flow.called(step), PASSIVE):
            return False
    return False


def is_over_units(flow: Flow, step: fx.Node) -> bool:
    """Whether a step is a norm over units, by module or by function."""
    module = flow.called(step)
    return called_name(step) in _NORM_NAMES if module is None else normalised_width(module) > 0

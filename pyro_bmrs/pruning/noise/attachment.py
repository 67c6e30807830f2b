# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Noise on a network as it is: attached by hooks, and taken off again.

The noise acts in a forward hook, on what a module returns, or in a forward pre-hook, on what a module is given, or on
the weight that this is multiplied with, where that is the same.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.examples import check_example_inputs, copy_network, real_parameter
from pyro_bmrs.pruning.layers import ATTENTION, linear_width
from pyro_bmrs.pruning.noise.hooks import (
    AttentionHook,
    ColumnsHook,
    ExpertsHook,
    NoiseHook,
    NormHook,
    RecurrentHook,
    WidthHook,
    noise_hooks_in,
    remove_hooks,
)
from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise
from pyro_bmrs.pruning.noise.placement import Placement, find_placements
from pyro_bmrs.pruning.noise.recognition.calls_by_weight import call_by_weight, multiply_by_weight
from pyro_bmrs.pruning.noise.recognition.recurrences import Part, why_without_noise
from pyro_bmrs.pruning.streams.experts import experts_of
from pyro_bmrs.pruning.streams.streams import NormPlace

Selection: TypeAlias = str | type[nn.Module]

KINDS = ("units", "heads", "width", "block")


@dataclass(frozen=True)
class NoiseSite:
    """
    Where noise acts in a network.

    :param name: name of the sample site.
    :param noise: the noise, with ``num_units``, ``unit_size``, ``dim`` and ``kept``.
    :param module: name of the layer whose outputs (for heads: whose heads; for a block: whose whole output) the units
        are. Empty for noise that the network calls itself.
    :param place: name of the module that is hooked; it may lie a few elementwise steps after ``module``: a batch norm,
        an activation, a pooling, a dropout.
    :param when: ``"output"`` if the noise multiplies what ``place`` returns, ``"input"`` if what it is given.
    :param kind: ``"units"`` of a layer (features, channels; behind a flattening, ``unit_size`` elements are one
        channel), ``"heads"`` of an attention (each ``unit_size`` features of what the output projection is given; for
        ``nn.MultiheadAttention``, which calls no projection, ``place`` is its ``out_proj`` nevertheless), or a
        ``"block"``, the whole residual branch that ends at ``place``, as one unit; or the ``"width"`` of a stream to
        which many layers add, ``module`` the first of them.
    :param norms: for a width, the norms that lead out of the stream, at all of which the noise acts.
    :param part: for hidden units of a recurrent layer, of which of its layers they are, in which direction.

    Example::

        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, noise_sites
        >>> site = noise_sites(attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))))["0"]
        >>> site.kind, site.module, site.place, site.noise.num_units
        ('units', '0', '1', 4)
    """

    name: str
    noise: MultiplicativeNoise
    module: str
    place: str
    when: str
    kind: str
    norms: tuple[NormPlace, ...] = ()
    part: Part | None = None


def attach_noise(
    net: nn.Module,
    modules: Selection | Iterable[Selection] | None = None,
    *,
    kinds: Collection[str] = ("units", "heads"),
    heads: Mapping[str, int] | None = None,
    example_inputs: Any = None,
    per_example: bool = False,
    low: float = math.exp(-20),
    high: float = 1.0,
) -> nn.Module:
    """
    Puts multiplicative noise on the units of a network, whose code stays as it is.

    Each linear or convolutional layer gets a noise variable for each feature or channel of its output, each recurrent
    layer one for each hidden unit, each attention one for each head, and, where asked for, each residual branch one for
    the whole of it. The sample site has the name of the layer. The layers that compute the network's output are left
    alone. A layer that is called more than once, as in two towers that share their weights, has one noise, the same in
    all its calls.

    The noise on a layer's units acts after the activation that follows (or else after the batch norm): on the output of
    the activation's module; on that of the pooling behind it, or on the weight of the convolution that comes next,
    where it is the same and costs less; where the activation is a function, or a module that other layers call too, on
    the input of the layer that takes its value (of its flattened pixels, all that are one channel's); where there is no
    one such layer, on what the batch norm or the layer itself puts out, so before the activation. The places are found
    by :mod:`torch.fx`; in parts of a network that it cannot trace, the noise acts on what the layer itself puts out.
    What a linear layer is given, and a batch norm puts out, is multiplied by way of their weights where these are
    smaller, so that nothing of a batch's size is kept for it.

    Without ``modules``, linear layers whose output goes into a residual sum, a layer norm or a reshape before any
    activation, or that belong to an attention, have no noise; they can be named. Nor have, in parts of a network that
    cannot be traced, layers of as many units as a layer norm is over.

    The ``"width"`` of a network are the channels to which many layers add and which many read through a norm: the
    embedding width of a transformer, say, or the channels of a stage of a ConvNeXt. The noise acts on what each of
    these norms puts out, and the mean and the variance of the norm are of the channels that are kept: over fewer it is
    another function, so that the network has to be trained with it. Streams that something reads past the norms have
    no noise, nor have those to which what the network is given, or numbers that it computes, are added. They are
    followed through one call of the network.

    Of ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` each layer has a noise in each direction, named after the ends of torch's
    parameters, as ``"lstm.l1_reverse"``, or after the module where there is only one. It multiplies hidden units as all
    others see them: what is put out, the final states, and what the next layer and the gates of the next step read, by
    one draw for all steps and all examples (Y. Gal and Z. Ghahramani (2016), https://arxiv.org/abs/1512.05287); not
    what a unit keeps for itself, such as the cell of an LSTM. What ``nn.LSTMCell`` and ``nn.RNNCell`` return has it
    too.

    Columns of an embedding are units where layers read them, as in a tagger or a recommender, and nothing is added to
    them before that and no norm comes; else they are of a stream, and its width. With ``max_norm`` there are none.

    Experts of a mixture whose weights are one parameter for all of them, as those of transformers, have a noise for
    each hidden unit that is the same for all experts, as the parameter has to stay a block. It acts on the weight that
    reads the units.

    Attentions are ``nn.MultiheadAttention``, and modules that hold a number of heads or the width of one, as
    ``num_heads`` or ``head_dim``, and linear layers under the names usual for queries, keys and values, with one more
    linear layer, the output projection, in them or beside them; others are added by
    :func:`~pyro_bmrs.pruning.register_attention`. Heads of queries that share a key and a value are one unit. The noise
    acts on what the output projection is given. On ``nn.MultiheadAttention`` it is one draw for all examples.

    :param net: the network; it is changed in place.
    :param modules: which layers: names, patterns (as ``"encoder.*"``; ``*`` matches dots too) or types of layers,
        attentions and blocks, or of modules that hold them. All by default.
    :param kinds: which kinds of units: ``"units"``, ``"heads"``, ``"width"``, ``"block"``.
    :param heads: for attentions that are not recognised, the name of the output projection and the number of heads.
    :param example_inputs: what the network is called with, which ``"width"`` needs: a tensor, a sequence of positional
        arguments, or a mapping of keyword ones. Layers that are not called on these, as their weights are used in some
        other way, have no noise unless they are named.
    :param per_example: whether each example has a draw of its own in training; see :class:`MultiplicativeNoise`.
    :param low: lower end of the prior of the noise.
    :param high: its upper end.
    :return: the network.
    :raises ReductionError: for noise attached twice, ``"width"`` without example inputs that fit, nothing to attach to,
        a name or type that matches nothing, or heads that do not divide what a projection is given. The network is
        then as it was.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, noise_sites
        >>> net = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 24 * 24, 10))
        >>> [(site.name, site.place, site.noise.num_units) for site in noise_sites(attach_noise(net)).values()]
        [('0', '1', 6)]
    """
    if any(noise_hooks_in(net)):
        raise ReductionError("the network has noise attached already; take it off with detach_noise(net) first")
    for kind in kinds:
        if kind not in KINDS:
            raise ReductionError(f"kinds are {', '.join(map(repr, KINDS))}, not {kind!r}")
    heads = dict(heads or {})
    _check_heads(net, heads)
    if example_inputs is not None:
        check_example_inputs(copy_network(net), example_inputs)
    elif "width" in kinds:
        raise ReductionError('kinds has "width", which is found by calling the network: pass example_inputs')
    found = find_placements(net, kinds, heads, example_inputs)
    chosen = _choose(net, found, modules, list(kinds))
    layers = dict(net.named_modules())
    hooks: list[NoiseHook] = []
    for placement in chosen:
        layer, place, part = layers[placement.module], layers[placement.place], placement.part
        is_attention = isinstance(layer, ATTENTION) and placement.kind == "heads"
        is_experts = placement.kind == "units" and experts_of(layer) is not None
        noise = MultiplicativeNoise(
            placement.num_units,
            dim=placement.dim,
            unit_size=placement.unit_size,
            per_example=per_example and not (is_attention or is_experts) and part is None,
            low=low,
            high=high,
            name=placement.name,
        )
        like = real_parameter(place, net)
        noise.to(like.device, like.dtype).train(place.training)
        if placement.norms:
            norms = enumerate(placement.norms)
            hooks += [WidthHook(noise, layer, layers[norm.name], norm, number) for number, norm in norms]
            continue
        if part is not None:
            hooks.append(RecurrentHook(noise, layer, place, placement.when, placement.kind, part))
            continue
        kinds_of_hooks = () if placement.kind == "block" else (ColumnsHook, NormHook)
        on_weights = next((kind for kind in kinds_of_hooks if kind.is_for(place, placement.when)), None)
        # One alone takes the place of a module's forward; others act on what that is given or returns.
        is_free = not any(isinstance(other, ColumnsHook | NormHook) and other.place is place for other in hooks)
        if is_experts:
            hooks.append(ExpertsHook(noise, layer, place, placement.when, placement.kind))
            continue
        hook = AttentionHook if is_attention else on_weights if on_weights and is_free else NoiseHook
        hooks.append(hook(noise, layer, place, placement.when, placement.kind))
    for attached in hooks:
        attached.attach()
        attached.encoders += [encoder for encoder in _nesting(net) if attached.place in set(encoder.modules())]
        for encoder in attached.encoders:
            encoder.use_nested_tensor = False
    call_by_weight(net, {hook.place for hook in hooks if not isinstance(hook, AttentionHook)})
    return net


def _nesting(net: nn.Module) -> list[nn.TransformerEncoder]:
    """Encoders that pack padded sequences into nested tensors, for speed in evaluation."""
    encoders = [module for module in net.modules() if isinstance(module, nn.TransformerEncoder)]
    return [encoder for encoder in encoders if encoder.use_nested_tensor]


def detach_noise(net: nn.Module) -> nn.Module:
    """
    Takes all the noise off a network that :func:`attach_noise` put there; the network is changed in place.

    Units that were pruned are whole again: what pruning decided is in the noise alone.

    :param net: the network.
    :return: the network.
    :raises ReductionError: for a network without noise attached.

    Example::

        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, detach_noise, noise_sites
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> noise_sites(detach_noise(attach_noise(net)))
        {}
    """
    hooks = set(noise_hooks_in(net))
    if not hooks:
        raise ReductionError("the network has no noise attached")
    multiply_by_weight(net)
    remove_hooks(net)
    for hook in hooks:
        for encoder in hook.encoders:
            encoder.use_nested_tensor = True
    return net


def _check_heads(net: nn.Module, heads: Mapping[str, int]) -> None:
    layers = dict(net.named_modules())
    for name, count in heads.items():
        width = linear_width(layers.get(name))
        if not width:
            linear = [key for key, module in layers.items() if linear_width(module)]
            raise ReductionError(
                f"heads names the output projection {name!r}, which is no linear layer{_near(name, linear)}"
            )
        if not isinstance(count, int) or count < 1 or width % count:
            raise ReductionError(
                f"the output projection {name!r} is given {width} features, which are not {count} heads"
            )


def _choose(
    net: nn.Module,
    found: list[Placement],
    modules: Selection | Iterable[Selection] | None,
    kinds: list[str],
) -> list[Placement]:
    if modules is None:
        chosen = [placement for placement in found if placement.is_default or placement.kind == "block"]
        if not chosen:
            other = f"; name one of {[placement.name for placement in found]}" if found else ""
            reasons = "".join(f"; {reason}" for reason in _reasons(net.modules()))
            raise ReductionError(
                f"the network has nothing to attach noise to, of the kinds {kinds}: no linear, convolutional or "
                f"recurrent layer before the last, no attention, no residual branch{other}{reasons}"
            )
        return chosen
    selections = [modules] if isinstance(modules, (str, type)) else list(modules)
    layers = dict(net.named_modules())
    chosen = []
    for selection in selections:
        matching = [placement for placement in found if _matches(selection, placement, layers)]
        if not matching:
            raise _no_match(selection, found, layers)
        chosen += matching
    return [placement for placement in found if placement in chosen]


def _matches(selection: Selection, placement: Placement, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a layer is meant: itself, or a module that holds it."""
    parts = placement.module.split(".")
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    if isinstance(selection, str):
        return any(fnmatchcase(name, selection) for name in [placement.name, *names])
    return any(isinstance(layers[name], selection) for name in names)


def _no_match(selection: Selection, found: list[Placement], layers: Mapping[str, nn.Module]) -> ReductionError:
    names = [placement.name for placement in found]
    if isinstance(selection, type):
        return ReductionError(f"no layer that can have noise is, or is in, a {selection.__name__}; there are {names}")
    if selection in layers:
        why = "; ".join(_reasons(layers[selection].modules()))
        return ReductionError(
            f"{selection!r} cannot have noise: "
            f"{why or 'it is, or holds, no layer but the last, or one of a kind not asked for'}; there are {names}"
        )
    return ReductionError(f"no layer is named, or matches, {selection!r}{_near(selection, names)}; there are {names}")


def _reasons(modules: Iterable[nn.Module]) -> list[str]:
    """Why modules have no noise for what they are, once each."""
    reasons = dict.fromkeys(map(why_without_noise, modules))
    return [reason for reason in reasons if reason]


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def noise_sites(net: nn.Module) -> dict[str, NoiseSite]:
    """
    The noise in a network, in the order in which its modules are registered.

    :param net: a network after :func:`attach_noise`, or one that calls :class:`MultiplicativeNoise` itself.
    :return: for each site name, where it acts.

    Example::

        >>> from torch import nn
        >>> from pyro_bmrs.pruning import attach_noise, noise_sites
        >>> list(noise_sites(attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))))
        ['0']
    """
    names = {module: name for name, module in net.named_modules()}
    hooks = [hook for hook in dict.fromkeys(noise_hooks_in(net)) if hook.place in names and hook.layer in names]
    norms: dict[MultiplicativeNoise, list[WidthHook]] = {}
    for hook in hooks:
        if isinstance(hook, WidthHook):
            norms.setdefault(hook.noise, []).append(hook)
    hooked = [
        NoiseSite(
            hook.noise.site_name,
            hook.noise,
            names[hook.layer],
            names[hook.place],
            hook.when,
            hook.kind,
            tuple(other.norm for other in sorted(norms.get(hook.noise, []), key=lambda other: other.position)),
            hook.part if isinstance(hook, RecurrentHook) else None,
        )
        for hook in hooks
        if not isinstance(hook, WidthHook) or hook.position == 0
    ]
    known = {site.noise for site in hooked}
    called = [
        NoiseSite(module.site_name, module, "", place, "output", "units")
        for module, place in names.items()
        if isinstance(module, MultiplicativeNoise) and module not in known
    ]
    return {site.name: site for site in [*hooked, *called]}

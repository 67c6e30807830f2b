# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The hooks through which noise acts on the modules of a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyro_bmrs.pruning.layers import has_channels_in_columns
from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise
from pyro_bmrs.pruning.noise.recognition.recurrences import Part, parts_of
from pyro_bmrs.pruning.streams.experts import reading_by
from pyro_bmrs.pruning.streams.norms import forward_of, normalise_kept
from pyro_bmrs.pruning.streams.streams import NormPlace


class NoiseHook:
    """
    The hook through which noise acts on a module; an object without a closure, so that it is copied with the network.

    :param noise: the noise.
    :param layer: the layer whose units they are.
    :param place: the module on whose output or input the noise acts.
    :param when: ``"output"`` or ``"input"``.
    :param kind: ``"units"``, ``"heads"`` or ``"block"``.
    """

    # Whether all examples meet the same noise, as it is on weights.
    is_shared = False

    def __init__(self, noise: MultiplicativeNoise, layer: nn.Module, place: nn.Module, when: str, kind: str) -> None:
        self.noise, self.layer, self.place, self.when, self.kind = noise, layer, place, when, kind
        # Those that made nested tensors before, which noise cannot multiply.
        self.encoders: list[nn.TransformerEncoder] = []

    def attach(self) -> None:
        """Hangs the hook on the module, and the noise below it."""
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        if self.when == "input":
            self.place.register_forward_pre_hook(self)
        else:
            self.place.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        """What a forward hook and a forward pre-hook do."""
        # Straight to forward: what Pyro does around the call of a module has no use here, and costs as much as a layer.
        noise = self.noise.forward
        if self.when == "input":
            return (noise(args[0]), *args[1:])
        # What an LSTMCell keeps for itself comes behind what it puts out.
        return (noise(output[0]), *output[1:]) if isinstance(output, tuple) else noise(output)


class ColumnsHook(NoiseHook):
    """
    Noise on what a layer of torch's is given: on its weight, which is the same, where that is smaller.

    It takes the place of the layer's ``forward``, so that the weight itself is never touched, whatever interrupts it.
    Where there is a draw for each example, it acts on what the layer is given. As a hook it does nothing; but where
    there are hooks, torch's transformers do not go past their linear layers.
    """

    @staticmethod
    def is_for(place: nn.Module, when: str) -> bool:
        """Whether noise on a module can be on its weight."""
        return when == "input" and (has_channels_in_columns(place) or type(place) is nn.Linear)

    def attach(self) -> None:
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        self.place.register_forward_pre_hook(self)
        vars(self.place)["forward"] = self

    def __call__(self, *given: Any) -> Any:
        """What the layer computes."""
        if len(given) > 1:
            return None
        place: Any = self.place
        input, weight = given[0], place.weight
        noise = self.noise.draw(len(input))
        # The units are columns if they are features, or channels of a batch of images.
        has_columns = noise.dim() == 1 and input.dim() >= weight.dim() and self._dim(input) == self._dim_of_columns
        if has_columns and weight.numel() < input.numel():
            weight = self.noise.multiply(weight, noise)
        else:
            input = self.noise.multiply(input, noise)
        if isinstance(self.place, nn.Linear):
            return nn.functional.linear(input, weight, place.bias)
        return place._conv_forward(input, weight, place.bias)

    def as_seen(self, name: str) -> Tensor:
        """The layer's weight or bias, for a function that takes them and is no layer: a draw for all examples."""
        tensor: Tensor = getattr(self.place, name)
        return tensor if name == "bias" else self.noise.multiply(tensor, self.noise.draw(1).flatten())

    def _dim(self, input: Tensor) -> int | None:
        """Which dimension of what the layer is given the noise is along, counted from the end."""
        dim = self.noise.dim
        return dim if dim is None or dim < 0 else dim - input.dim()

    @property
    def _dim_of_columns(self) -> int:
        place: Any = self.place
        return 1 - int(place.weight.dim())


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class NormHook(NoiseHook):
    """
    Noise on what a batch norm puts out: on its weight and bias, which is the same, and nothing has to be kept for it.

    It takes the place of the norm's ``forward``. Where there is a draw for each example, it acts on what is put out.
    """

    @staticmethod
    def is_for(place: nn.Module, when: str) -> bool:
        """Whether noise on a module can be on its weight and bias."""
        return when == "output" and type(place) in _BATCH_NORMS and isinstance(place.weight, Tensor)

    def attach(self) -> None:
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        vars(self.place)["forward"] = self

    def __call__(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """What the norm computes."""
        place: Any = self.place
        noise = self.noise.draw(len(input))
        # One whose weight is computed is of another class by now.
        if noise.dim() > 1 or self.noise.unit_size > 1 or self.noise.dim != 1 or type(place) not in _BATCH_NORMS:
            return self.noise.multiply(forward_of(place, input), noise)
        noise = self.noise.kept_part(noise)
        # What is found in the instance comes before its parameter, which stays as it is.
        attributes = vars(place)
        try:
            attributes.update(weight=_times(place.weight, noise), bias=_times(place.bias, noise))
            return forward_of(place, input)
        finally:
            for name in ("weight", "bias"):
                attributes.pop(name, None)


class WidthHook(NoiseHook):
    """
    Noise on the channels of a stream, at one of the norms that lead out of it: on what the norm puts out.

    Its mean and variance are of the channels that are kept, as they will be without the others. It takes the place of
    the norm's ``forward``. The noise is the same at all norms of the stream, and hangs on the first.

    :param norm: the norm, and which unit each of its channels is.
    :param position: which of the stream's norms it is.
    """

    def __init__(
        self, noise: MultiplicativeNoise, layer: nn.Module, place: nn.Module, norm: NormPlace, position: int
    ) -> None:
        super().__init__(noise, layer, place, "output", "width")
        self.norm, self.position = norm, position
        self._units = torch.tensor(norm.units)

    def attach(self) -> None:
        if self.position == 0:
            self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        vars(self.place)["forward"] = self

    def __call__(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """What the norm computes."""
        noise, units = self.noise.draw(len(input)), self._units.to(input.device)
        dim = input.dim() + self.norm.dim
        kept = self.noise.kept
        if not self.place.training and noise.dim() == 1:
            # Where no noise is drawn, a factor of 0 says that a channel is not there.
            kept = kept & (noise != 0)
        if kept is self.noise.kept and self.noise.is_whole or bool(kept.all()):
            output = forward_of(self.place, input)
        else:
            kept = kept[units]
            output = normalise_kept(self.place, input, kept.nonzero().flatten(), dim)
        noise = noise[..., units]
        batch = noise.shape[:-1]
        between = (1,) * (dim - 1) if batch else ()
        noise = noise.reshape(batch + between + noise.shape[-1:] + (1,) * (-1 - self.norm.dim))
        return (output * noise).to(output.dtype)


class AttentionHook(NoiseHook):
    """
    Noise on the heads of ``nn.MultiheadAttention``, which uses its output projection's weight and never calls it.

    While the attention runs, the columns of the weight that belong to a head are multiplied by the head's noise. As a
    hook it does nothing; but where there are hooks, torch's transformers do not go past their attentions.
    """

    is_shared = True

    def attach(self) -> None:
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        self.layer.register_forward_pre_hook(self)
        vars(self.layer)["forward"] = _WithNoise(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """What a forward pre-hook does."""


class _WithNoise:
    """The forward of an attention, with noise on the weight of its output projection."""

    def __init__(self, hook: AttentionHook) -> None:
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer, place = self.hook.layer, self.hook.place
        weight = self.hook.noise(place.weight)
        # What is found in the instance comes before its parameter, which stays as it is. No call stands between these
        # lines, at which an interrupt could come in.
        attributes = vars(place)
        try:
            attributes["weight"] = weight
            return type(layer).forward(layer, *args, **kwargs)
        finally:
            del attributes["weight"]


class ExpertsHook(NoiseHook):
    """
    Noise on the hidden units of experts, the same for all of them: on the weight that reads the units.

    It takes the place of the experts' ``forward``, which finds that weight in the module. As a hook it does nothing.
    """

    is_shared = True

    def attach(self) -> None:
        self.place.add_module(f"{self.kind}_noise_on_{self.when}", self.noise)
        vars(self.place)["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the experts compute."""
        place: Any = self.place
        with reading_by(place, self.noise(place.down_proj)):
            return type(place).forward(place, *args, **kwargs)


class RecurrentHook(NoiseHook):
    """
    Noise on the hidden units of one part of a recurrent layer, as all others see them.

    It multiplies what the layer puts out, the final state, what the next layer reads, and what the gates of all units
    read of the step before. What a unit keeps for itself, the cell of an LSTM and what a GRU leaves of its state, is
    not multiplied, as that would be done anew in each step; of a unit that is multiplied by 0 nobody sees it. The draw
    is one for all time steps (Y. Gal and Z. Ghahramani (2016), *A theoretically grounded application of dropout in
    recurrent neural networks*, https://arxiv.org/abs/1512.05287), and, as it is on weights, for all examples.

    As a hook it does nothing: the layer's ``forward`` does all its parts at once.

    :param part: which part.
    """

    is_shared = True

    def __init__(
        self, noise: MultiplicativeNoise, layer: nn.Module, place: nn.Module, when: str, kind: str, part: Part
    ) -> None:
        super().__init__(noise, layer, place, when, kind)
        self.part = part

    def attach(self) -> None:
        self.place.add_module(f"{self.kind}_noise_on_{self.part.name}", self.noise)
        self.place.register_forward_pre_hook(self)
        forward = vars(self.place).setdefault("forward", _RecurrentForward(self.place))
        forward.noise[self.part] = self.noise

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """What a forward pre-hook does."""


class _RecurrentForward:
    """The forward of a recurrent layer, with noise on the weights that read its units, and on what it returns."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.noise: dict[Part, MultiplicativeNoise] = {}

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def __call__(self, input: Any, hx: Any = None) -> Any:
        layer = self.layer
        factors = {part: noise.kept_part(noise.draw(1)) for part, noise in self.noise.items()}
        weights = {name: getattr(layer, name) for name in layer._flat_weights_names}
        of_layers = [self._of_layer(number, factors) for number in range(layer.num_layers)]
        for part in parts_of(layer):
            read = {"hh": factors.get(part), "ih": of_layers[part.layer - 1] if part.layer else None}
            for source, factor in read.items():
                if factor is not None:
                    name = f"weight_{source}_{part.name}"
                    weights[name] = _times(weights[name], factor)
        output, state = type(layer).forward(_with_weights(layer, list(weights.values())), input, hx)
        if of_layers[-1] is not None:
            is_packed = isinstance(output, PackedSequence)
            values = _times(output.data if is_packed else output, of_layers[-1])
            output = output._replace(data=values) if is_packed else values
        hidden = state[0] if isinstance(state, tuple) else state
        ones = hidden.new_ones(layer.hidden_size)
        by_part = torch.stack([factors.get(part, ones) for part in parts_of(layer)])
        hidden = _times(hidden, by_part.unsqueeze(1) if hidden.dim() == 3 else by_part)
        return output, (hidden, *state[1:]) if isinstance(state, tuple) else hidden

    def _of_layer(self, number: int, factors: dict[Part, Tensor]) -> Tensor | None:
        """The factors of all that a layer puts out, of both directions; None for no noise."""
        parts = [part for part in parts_of(self.layer) if part.layer == number]
        present = [factors[part] for part in parts if part in factors]
        if not present:
            return None
        ones = torch.ones_like(present[0])
        return torch.cat([factors.get(part, ones) for part in parts])


def _times(values: Tensor, factors: Tensor) -> Tensor:
    """A product in the precision of the layers, which may be less than that of noise."""
    return (values * factors).to(values.dtype)


def _with_weights(layer: Any, weights: list[Tensor]) -> Any:
    """The same recurrent layer with other weights; the layer stays as it is, whatever interrupts."""
    other = object.__new__(type(layer))
    # No names by which torch would look up the layer's own again.
    vars(other).update(vars(layer), _flat_weights=weights, _flat_weights_names=[], _flat_weight_refs=[])
    return other


def noise_hooks_in(net: nn.Module) -> Iterator[NoiseHook]:
    """The noise hooks on a network and its modules."""
    for module in net.modules():
        forward = vars(module).get("forward")
        for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values(), forward]:
            if isinstance(hook, NoiseHook):
                yield hook


def shares_noise(net: nn.Module) -> bool:
    """Whether there is noise that all examples share, in training too, so that each has to be run by itself."""
    return any(hook.is_shared for hook in noise_hooks_in(net))


def remove_hooks(net: nn.Module) -> None:
    """Takes the noise hooks, and the noise, off a network and its modules."""
    for hook in list(noise_hooks_in(net)):
        for module in (hook.place, hook.layer):
            for registry in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, other in registry.items() if other is hook]:
                    del registry[key]
            if isinstance(vars(module).get("forward"), NoiseHook | _WithNoise | _RecurrentForward):
                del vars(module)["forward"]
        for name in [name for name, child in hook.place.named_children() if child is hook.noise]:
            delattr(hook.place, name)

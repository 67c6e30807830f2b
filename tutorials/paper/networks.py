# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The networks of the paper's experiments, from random weights."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import attach_noise

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Network:
    """
    How to build a network, and where its noise is.

    :param build: given the shape of an image, ``(channels, height, width)``, and the number of classes.
    :param mend: what to do about images that it does not fit.
    :param ties_units: whether units can only go together, as in residual sums.
    :param noisy: the layers with noise; by default all that can have it.
    """

    build: Callable[[Shape, int], nn.Module]
    mend: str = ""
    ties_units: bool = False
    noisy: tuple[str, ...] | None = None

    def attach_noise(self, net: nn.Module, *, per_example: bool) -> nn.Module:
        """Puts noise on it."""
        return attach_noise(net, self.noisy, per_example=per_example)


def mlp(shape: Shape, num_classes: int, depth: int, width: int) -> nn.Module:
    """So many hidden layers of so many tanh units."""
    widths = [shape[0] * shape[1] * shape[2], *depth * [width]]
    layers = [module for sizes in itertools.pairwise(widths) for module in (nn.Linear(*sizes), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], num_classes))


def lenet5(shape: Shape, num_classes: int) -> nn.Module:
    """
    6C and 16C filters, 120C and 84C neurons for C channels, on 32x32 pixels.

    After Y. LeCun et al. (1998), *Gradient-based learning applied to document recognition*, with the rectifiers,
    maxima and widths of the BMRS paper's.
    """
    c = shape[0]
    return nn.Sequential(
        *(nn.Conv2d(c, 6 * c, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6 * c, 16 * c, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400 * c, 120 * c), nn.ReLU()),
        *(nn.Linear(120 * c, 84 * c), nn.ReLU(), nn.Linear(84 * c, num_classes)),
    )


def lenet5_caffe(shape: Shape, num_classes: int) -> nn.Module:
    """20 and 50 filters, which make 800 features, and 500 neurons, on 28x28 pixels: as Neklyudov et al. (2017) had."""
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, num_classes)),
    )


class Residual(nn.Module):
    """
    Convolutions with batch norms, beside a shortcut that is projected where its shape is another.

    K. He et al. (2016), *Deep residual learning for image recognition*, https://arxiv.org/abs/1512.03385.

    :param widths: channels, from the input's to the output's.
    :param kernels: the sizes of the kernels between them.
    :param stride: of the first convolution of more than one pixel.
    """

    def __init__(self, widths: list[int], kernels: list[int], stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        strided = next(number for number, kernel in enumerate(kernels) if kernel > 1)
        for number, (sizes, kernel) in enumerate(zip(itertools.pairwise(widths), kernels)):
            step = stride if number == strided else 1
            layers += [nn.Conv2d(*sizes, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(sizes[1]), nn.ReLU()]
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or widths[0] != widths[-1]:
            projection = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(widths[-1]))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The activation of the sum."""
        return self.activation(self.branch(x) + self.shortcut(x))


def _resnet(
    shape: Shape, num_classes: int, depths: tuple[int, ...], *, bottleneck: bool = False, width: int = 64
) -> nn.Module:
    channels, height, _ = shape
    # Small images keep their pixels until the first residual stage.
    stem: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    if height > 64:
        stem = [nn.Conv2d(channels, width, 7, 2, 3, bias=False), *stem[1:], nn.MaxPool2d(3, 2, 1)]
    blocks, first = [], width
    for stage, depth in enumerate(depths):
        inner = first * 2**stage
        for number in range(depth):
            stride = 2 if stage and not number else 1
            outer = 4 * inner if bottleneck else inner
            widths, kernels = ([inner, inner, outer], [1, 3, 1]) if bottleneck else ([inner, outer], [3, 3])
            blocks.append(Residual([width, *widths], kernels, stride))
            width = outer
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def resnet20(shape: Shape, num_classes: int) -> nn.Module:
    """Nine residual blocks of two convolutions, of 16, 32 and 64 channels, as He et al. had for CIFAR-10."""
    return _resnet(shape, num_classes, (3, 3, 3), width=16)


def resnet18(shape: Shape, num_classes: int) -> nn.Module:
    """Eight residual blocks of two convolutions."""
    return _resnet(shape, num_classes, (2, 2, 2, 2))


def resnet50(shape: Shape, num_classes: int) -> nn.Module:
    """Sixteen residual blocks of three convolutions."""
    return _resnet(shape, num_classes, (3, 4, 6, 3), bottleneck=True)


class Logits(nn.Module):
    """The logits of a network of transformers."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(n, classes)``."""
        return self.net(x).logits


def vit(shape: Shape, num_classes: int) -> nn.Module:
    """
    A vision transformer of six layers, 192 features and three heads, of the Transformers package.

    A. Dosovitskiy et al. (2021), *An image is worth 16x16 words*, https://arxiv.org/abs/2010.11929.
    """
    try:
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError as error:
        raise ReductionError("the network vit needs Transformers: pip install transformers") from error
    channels, height, width = shape
    patch = max(height // 8, 1)
    if height != width or height % patch:
        raise ReductionError(f"vit cuts square images into patches of {patch} pixels; these have {height}x{width}")
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=height,
        patch_size=patch,
        num_channels=channels,
        num_labels=num_classes,
    )
    return Logits(ViTForImageClassification(config))


def pretrained(shape: Shape, num_classes: int, source: str) -> nn.Module:
    """
    A network for images of the Transformers package with weights that it was trained to before, and a new last layer.

    :param shape: of the images; those of most such networks are of 224x224 pixels.
    :param num_classes: how many classes there are.
    :param source: a folder, or a name on the hub.
    :raises ReductionError: where there is no such network; without Transformers.
    """
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise ReductionError(f"the network {source} needs Transformers: pip install transformers") from error
    try:
        net = AutoModelForImageClassification.from_pretrained(
            source, num_labels=num_classes, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise ReductionError(f"Transformers have no network for images called {source!r}: {error}") from error
    return Logits(net)


# An MLP is called by its hidden layers and their units, as mlp-6x50.
_MLP = re.compile(r"mlp-([1-9]\d*)x([1-9]\d*)")
_NAMED = "mlp-6x50 (or other layers and units)"
# Of other packages' networks the source follows.
_PRETRAINED = "pretrained:"
NETWORKS = {
    "lenet5": Network(lenet5, "it is for 32x32 pixels: --data.size 32 pads smaller ones"),
    "lenet5_caffe": Network(lenet5_caffe, "it is for 28x28 pixels: --data.size 28 pads smaller ones"),
    "resnet20": Network(resnet20, ties_units=True),
    "resnet18": Network(resnet18, ties_units=True),
    "resnet50": Network(resnet50, ties_units=True),
    "vit": Network(vit, "it is for square images whose height 8 divides", noisy=("*.mlp.fc1",)),
}


def find_network(name: str) -> Network:
    """
    A network by name.

    :param name: one of ``NETWORKS``, ``mlp-DxW`` for an MLP of D hidden layers of W units, or ``pretrained:SOURCE`` for
        a network of the Transformers package, in a folder or on the hub.
    :raises ReductionError: for a name that is not known.
    """
    if match := _MLP.fullmatch(name):
        return Network(partial(mlp, depth=int(match[1]), width=int(match[2])))
    if name.startswith(_PRETRAINED):
        build = partial(pretrained, source=name.removeprefix(_PRETRAINED))
        return Network(build, "give --data.size 224 --data.fit resize, or what it was trained on", ties_units=True)
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, ["mlp", *NETWORKS], n=3, cutoff=0.4)
        near = ["mlp-6x50" if close == "mlp" else close for close in near]
        known = ", ".join([_NAMED, *NETWORKS])
        guess = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {known}"
        raise ReductionError(f"no network is called {name!r}; {guess}")
    return NETWORKS[name]


def build_network(name: str, image_shape: Shape, num_classes: int) -> nn.Module:
    """
    A network for images of some shape, tried on one.

    Its convolutions are in channels-last memory, which oneDNN and cuDNN are written for.

    :param name: as for :func:`find_network`.
    :param image_shape: channels, height and width.
    :param num_classes: how many classes there are.
    :raises ReductionError: for a name that is not known, or images that it does not fit.

    Example::

        >>> sum(parameter.numel() for parameter in build_network("lenet5", (1, 32, 32), 10).parameters())
        61706
    """
    network = find_network(name)
    net = network.build(image_shape, num_classes)
    was_training = net.training
    try:
        with torch.no_grad():
            output = net.eval()(torch.zeros(1, *image_shape))
    except RuntimeError as error:
        pixels = f"{image_shape[1]}x{image_shape[2]} pixels and {image_shape[0]} channels"
        mend = f"; {network.mend}" if network.mend else ""
        raise ReductionError(f"the network {name} does not fit images of {pixels}{mend} ({error})") from error
    if output.shape != (1, num_classes):
        raise ReductionError(f"the network {name} puts out {tuple(output.shape)} for an image, not (1, {num_classes})")
    return net.train(was_training).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What compression is compared with: torch-pruning, and noise whose divergence has a weight that is chosen by hand.

The loop is the same for all of them, with Adam, batches of 128 and, but for the paper's settings, a learning rate that
falls to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gaussian_nll_loss

from pyro_bmrs.pruning import (
    BMRS_N,
    AutoTruncatedLogNormal,
    Classification,
    NoiseELBO,
    WarmUp,
    attach_noise,
    compact,
    in_proportion_to_cost,
    parameter_groups,
    prune,
)

BATCH_SIZE = 128


class Part(NamedTuple):
    """
    Examples.

    :param x: inputs.
    :param y: targets.
    """

    x: Tensor
    y: Tensor


def loss(output: Tensor, y: Tensor) -> Tensor:
    """The mean negative log likelihood: of labels, or of real numbers with the variance that fits them best."""
    if not y.is_floating_point():
        return cross_entropy(output, y)
    variance = (output - y).square().mean().detach().clamp(min=1e-6)
    return gaussian_nll_loss(output, y, variance.expand_as(y), full=True)


def train(
    net: nn.Module,
    part: Part,
    epochs: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    *,
    objective: Callable[[Tensor, Tensor], Tensor] | None = None,
    groups: Any = None,
    lr: float = 1e-3,
    is_annealed: bool = True,
    part_of: range | None = None,
) -> None:
    """
    An ordinary loop with Adam.

    :param net: the network.
    :param part: what to train on.
    :param epochs: for how long.
    :param after_epoch: called with the number of each epoch when it is over.
    :param objective: what is minimised, of inputs and targets; by default the loss of the network's outputs.
    :param groups: of parameters, with learning rates; by default all of the network's.
    :param lr: the learning rate of those that have none.
    :param is_annealed: whether it falls to 0 along half a cosine.
    :param part_of: which of the epochs to do now; by default all.
    """
    net.train()
    part_of = range(epochs) if part_of is None else part_of
    objective = objective or (lambda x, y: loss(net(x), y))
    optimizer = torch.optim.Adam(groups or net.parameters(), lr=lr)
    rates = [group["lr"] for group in optimizer.param_groups]
    steps_per_epoch = -(-len(part.x) // BATCH_SIZE)
    steps, done = epochs * steps_per_epoch, part_of.start * steps_per_epoch
    for epoch in part_of:
        for batch in torch.randperm(len(part.x)).split(BATCH_SIZE):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * done / steps)) if is_annealed else rate
            optimizer.zero_grad()
            objective(part.x[batch], part.y[batch]).backward()
            optimizer.step()
            done += 1
        before = list(net.parameters())
        after_epoch(epoch)
        # Those that torch-pruning has put in the place of others.
        if any(new is not old for new, old in zip(net.parameters(), before)):
            optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    net.eval()


@torch.no_grad()
def measure(net: nn.Module, part: Part) -> tuple[float, float]:
    """Accuracy (NaN for real numbers) and mean log likelihood."""
    output = torch.cat([net.eval()(x) for x in part.x.split(1000)])
    right = float("nan") if part.y.is_floating_point() else float((output.argmax(-1) == part.y).float().mean())
    return right, -float(loss(output, part.y))


def size_of(net: nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in net.parameters())


def prune_by_torch_pruning(
    net: nn.Module, part: Part, size: int, epochs: int, importance: str, lr: float = 3e-3
) -> nn.Module:
    """
    A network of a given size, by torch-pruning: units go epoch by epoch in the first third of a training.

    Both ways of torch-pruning are tried, one share of all layers and the least important units of the whole network
    (which can leave next to nothing of a layer): that with the lower loss after the second third is trained to its end.
    The rate falls from as high a one as that to which ``compress`` lets it rise.

    :param net: the whole network, trained.
    :param part: what to train on.
    :param size: how many parameters it may have.
    :param epochs: of the training.
    :param importance: ``"norm"`` or ``"taylor"``.
    :param lr: the learning rate at first.
    """
    num_steps = max(1, epochs // 3)
    candidates = [deepcopy(net) for _ in range(2)]
    for candidate, is_global in zip(candidates, (False, True)):
        prune = _torch_pruner(candidate, part, size, num_steps, importance, is_global)
        train(candidate, part, epochs, prune, lr=lr, part_of=range(min(2 * num_steps, epochs)))
    best = max(candidates, key=lambda candidate: measure(candidate, part)[1])
    train(best, part, epochs, lr=lr, part_of=range(2 * num_steps, epochs))
    return best


def _torch_pruner(
    net: nn.Module, part: Part, size: int, num_steps: int, importance: str, is_global: bool
) -> Callable[[int], None]:
    kinds = {
        "norm": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    attentions = {module: module.num_heads for module in net.modules() if isinstance(module, nn.MultiheadAttention)}
    pruner = torch_pruning.pruner.BasePruner(
        net,
        part.x[:1],
        importance=kinds[importance](),
        global_pruning=is_global,
        pruning_ratio=1.0,
        max_pruning_ratio=0.99,
        iterative_steps=400,
        ignored_layers=[last],
        num_heads=attentions,
    )
    whole = size_of(net)

    def prune(epoch: int) -> None:
        if epoch >= num_steps:
            return
        target = whole * (size / whole) ** ((epoch + 1) / num_steps)
        while size_of(net) > target and pruner.current_step < pruner.iterative_steps:
            if importance == "taylor":
                net.zero_grad()
                loss(net(part.x[:1000]), part.y[:1000]).backward()
            pruner.step()

    return prune


class Setting(NamedTuple):
    """
    How to train with noise, and to prune by its evidence, where the weight of the divergence is chosen by hand.

    :param kl_weight: of the divergence, for each noise site, given the network and its kind.
    :param criterion: decides which units go, after each epoch.
    :param noise_lr: the learning rate of the noise.
    :param is_annealed: whether learning rates fall in the course of training.
    :param start: the share of the epochs with noise after which units go.
    :param warm_up: the share of them in which the weight rises from 0.
    :param with_noise: the share of all epochs.
    :param end_lr: the learning rate of the weights in the others; there the network has no noise any more.
    """

    kl_weight: Callable[[nn.Module, str], Any]
    criterion: BMRS_N
    noise_lr: float
    is_annealed: bool
    start: float
    warm_up: float
    with_noise: float
    end_lr: float


# Those of the code released with the paper, and those of tutorials/paper/configs/recommended.yaml.
SETTINGS = {
    "paper settings": Setting(lambda net, kind: "layer_mean", BMRS_N.paper(), 1e-3, False, 0, 0, 50 / 60, 1e-3),
    "tuned settings": Setting(
        lambda net, kind: in_proportion_to_cost(net, mean=58.0 if kind == "mlp" else 100.0, power=0.5),
        *(BMRS_N(), 1e-2, True, 8 / 13, 5 / 13, 13 / 22, 2e-3),
    ),
}


def prune_by_setting(net: nn.Module, kind: str, part: Part, epochs: int, setting: Setting) -> nn.Module:
    """
    A network that is trained with noise and pruned epoch by epoch, from scratch, and then trained on without.

    :param net: the whole network.
    :param kind: of network, by its name.
    :param part: what to train on.
    :param epochs: in all.
    :param setting: the setting.
    """
    with_noise = round(setting.with_noise * epochs)
    noisy = attach_noise(net, per_example=True)
    weight = setting.kl_weight(noisy, kind)
    if setting.warm_up:
        weight = WarmUp(round(setting.warm_up * with_noise * len(part.x) / BATCH_SIZE), weight)
    model = Classification(noisy, len(part.x), kl_weight=weight)
    guide = AutoTruncatedLogNormal(model)
    make: Any = NoiseELBO
    elbo = make()(model, guide)

    def after_epoch(epoch: int) -> None:
        if epoch + 1 > setting.start * with_noise:
            prune(noisy, guide, setting.criterion)

    groups = parameter_groups(elbo, lr=1e-3, noise_lr=setting.noise_lr)
    train(elbo, part, with_noise, after_epoch, objective=elbo, groups=groups, is_annealed=setting.is_annealed)
    small = compact(noisy, guide, part.x[:1])
    train(small, part, epochs - with_noise, lr=setting.end_lr, is_annealed=setting.is_annealed)
    return small

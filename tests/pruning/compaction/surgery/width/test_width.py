# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels of a stream go from all that is on their way, and what is left computes what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import transformers
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import (
    AutoTruncatedLogNormal,
    Classification,
    NoiseELBO,
    attach_noise,
    compact,
    compact_gated,
    compaction_report,
    detach_noise,
    load_compact,
    noise_sites,
    prune,
    save_compact,
    unit_costs,
)

TOKENS = {"input_ids": torch.arange(10).reshape(2, 5)}
WIDTH = 16


def tiny(kind: str) -> tuple[nn.Module, Any]:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
    tokens = {"vocab_size": 20, "max_position_embeddings": 10, "bos_token_id": 1, "eos_token_id": 2}
    images = {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    torch.manual_seed(0)
    match kind:
        case "norms behind":
            return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **tokens)), TOKENS
        case "shared weight":
            config = transformers.GPT2Config(vocab_size=20, n_embd=WIDTH, n_layer=1, n_head=4, n_positions=10)
            return transformers.GPT2LMHeadModel(config), TOKENS
        case "loose parameters":
            return transformers.ViTForImageClassification(
                transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
            ), images
        case "groups of channels":
            # Of groups of five, two or three are left.
            first, second = nn.Conv2d(3, WIDTH - 1, 3), nn.Conv2d(WIDTH - 1, 6, 3)
            norm = nn.GroupNorm(3, WIDTH - 1)
            return nn.Sequential(first, norm, nn.ReLU(), second, nn.Flatten(), nn.Linear(96, 5)), images["pixel_values"]
        case "a norm that no weight multiplies":
            layers = nn.Linear(5, 8), nn.GELU(), ResponseNorm(8), nn.Linear(8, 4), nn.Flatten(), nn.Linear(12, 5)
            return nn.Sequential(*layers), torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
        case "width as an attribute":
            return Reshaping(), torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
        case _:
            config = transformers.SwinConfig(
                image_size=8, patch_size=2, embed_dim=WIDTH, depths=[1, 1], num_heads=[2, 2], window_size=2
            )
            return transformers.SwinForImageClassification(config), images


class Reshaping(nn.Module):
    """A residual network that has its width in its code, by an attribute or as a number."""

    def __init__(self, *, is_constant: bool = False) -> None:
        super().__init__()
        self.hidden_dim, self.is_constant = WIDTH, is_constant
        self.embed, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Sequential(nn.Linear(8, WIDTH), Multiplied())
        self.last_norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        width = WIDTH if self.is_constant else self.hidden_dim
        x = self.embed(x).reshape(-1, width)
        return self.head(self.last_norm(x + self.down(self.up(self.norm(x)).relu())))


class Multiplied(nn.Module):
    """A factor for each channel, whose shape the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.scale = (WIDTH, 1), nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.shape).squeeze(-1)


class ResponseNorm(nn.Module):
    """As in ConvNeXt V2: the strength of each channel beside the mean of all, and the channel itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        strength = x.norm(dim=1, keepdim=True)
        return x + self.bias + self.weight * x * strength / (strength.mean(-1, keepdim=True) + 1e-6)


def halved(net: nn.Module) -> dict[str, Tensor]:
    """Gates of which every other is 0."""
    gates = {}
    for name, site in noise_sites(net).items():
        gates[name] = torch.linspace(0.5, 1.0, site.noise.num_units)
        gates[name][::2] = 0.0
        site.noise.kept[::2] = False
    return gates


@pytest.mark.parametrize(
    "kind",
    ["norms behind", "shared weight", "loose parameters", "two stages", "width as an attribute", "groups of channels"]
    + ["a norm that no weight multiplies"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_left_computes_what_was_trained(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    net, inputs = tiny(kind)
    net, is_mapping = net.to(dtype).eval(), isinstance(inputs, dict)
    inputs = (
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()} if is_mapping else inputs.to(dtype)
    )
    whole = copy.deepcopy(net)
    attach_noise(net, kinds=["width"], example_inputs=inputs)
    gates = halved(net)
    small = compact_gated(net, gates, noise_sites(net), inputs)
    assert set(compaction_report(small).units["fate"]) == {"kept", "removed"}
    assert len(gates) == (2 if kind == "two stages" else 1)

    def logits(network: nn.Module) -> Tensor:
        output = network(**inputs) if is_mapping else network(inputs)
        return output.logits if is_mapping else output

    # What the network computes in training, where the noise has these values.
    with pyro.condition(data={name: gate.to(dtype) for name, gate in gates.items()}), torch.no_grad():
        expected = logits(net)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert ((logits(small) - expected).abs().max() < bound * expected.abs().max()).item()
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in whole.parameters())
    if kind == "shared weight":
        assert small.lm_head.weight is small.transformer.wte.weight and small.lm_head.in_features == WIDTH // 2
    save_compact(small, tmp_path / "small")
    torch.testing.assert_close(logits(load_compact(tmp_path / "small", whole)), logits(small), rtol=0, atol=0)


def test_it_is_trained_pruned_and_trained_on() -> None:
    net, inputs = tiny("norms behind")
    attach_noise(net, kinds=["units", "heads", "width"], example_inputs=inputs)
    model = Classification(net, num_examples=20)
    guide = AutoTruncatedLogNormal(model)
    elbo = NoiseELBO()(model, guide)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=1e-2)
    for _ in range(2):
        loss = elbo({**inputs, "labels": torch.tensor([0, 1])})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    prune(net, guide, fraction=0.5, example_inputs=inputs)
    (width,) = [site for site in noise_sites(net).values() if site.kind == "width"]
    width.noise.kept[:4] = False
    elbo({**inputs, "labels": torch.tensor([0, 1])}).backward()
    # Nothing is learned of what is gone.
    kept = width.noise.kept
    gradient = net.bert.embeddings.LayerNorm.weight.grad
    assert not gradient[~kept].any() and gradient[kept].all()
    small = compact(net, guide, inputs)
    assert set(compaction_report(small).units["fate"]) == {"kept", "removed"}
    assert small.bert.embeddings.word_embeddings.embedding_dim == int(kept.sum())
    small.train()(**inputs).logits.sum().backward()
    assert set(unit_costs(net, inputs)) == set(noise_sites(net))
    detach_noise(net)
    assert not noise_sites(net) and net(**inputs).logits.isfinite().all()


def test_a_factor_of_0_is_a_channel_that_is_not_there() -> None:
    inputs = torch.randn(2, WIDTH)
    net = attach_noise(Reshaping(), kinds=["width"], example_inputs=inputs).eval()
    (name,) = noise_sites(net)
    gates = halved(net)[name]
    with pyro.condition(data={name: gates}):
        pruned = net(inputs)
        noise_sites(net)[name].noise.kept[:] = True
        torch.testing.assert_close(net(inputs), pruned, rtol=0, atol=0)


def test_a_width_that_is_a_number_in_the_code_is_left_and_named() -> None:
    net = attach_noise(Reshaping(is_constant=True), kinds=["width"], example_inputs=torch.randn(2, WIDTH))
    small = compact_gated(net, halved(net), noise_sites(net), torch.randn(2, WIDTH))
    units = compaction_report(small).units
    assert set(units["fate"]) == {"kept", "masked"}
    assert units["reason"].str.contains("does not run without them")[::2].all()


def test_the_best_of_all_stays() -> None:
    net = attach_noise(Reshaping(), kinds=["width"], example_inputs=torch.randn(2, WIDTH))
    (name,) = noise_sites(net)
    importance = {name: torch.arange(float(WIDTH))}
    inputs = torch.randn(2, WIDTH)
    small = compact_gated(net, {name: torch.zeros(WIDTH)}, noise_sites(net), inputs, importance=importance)
    assert small.up.in_features == 1 and (compaction_report(small).units["fate"] == "removed").sum() == WIDTH - 1


def test_width_needs_inputs() -> None:
    with pytest.raises(ReductionError, match="pass example_inputs"):
        attach_noise(Reshaping(), kinds=["width"])
    with pytest.raises(ReductionError, match="does not run on example_inputs"):
        attach_noise(Reshaping(), kinds=["width"], example_inputs=torch.ones(2, 3))
    with pytest.raises(ReductionError, match="nothing to attach noise to"):
        attach_noise(nn.Linear(2, 2), kinds=["width"], example_inputs=torch.ones(2, 2))

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Heads go with their rows of the projections, and the attention counts those that are left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from pyro_bmrs.pruning import (
    attach_noise,
    compact_gated,
    compaction_report,
    detach_noise,
    load_compact,
    noise_sites,
    save_compact,
)
from pyro_bmrs.pruning.compaction.coupling.ties import Channel
from pyro_bmrs.pruning.compaction.modules.attention import Attention
from pyro_bmrs.pruning.compaction.modules.scaling import Scale, Scaled
from pyro_bmrs.pruning.compaction.surgery.heads import HeadPlace, remove_heads
from pyro_bmrs.pruning.compaction.surgery.removal import LAST
from pyro_bmrs.pruning.examples import Outputs
from tests.pruning.networks import SelfAttention

WIDTH, HEADS, SIZE = 12, 3, 4


class Counted(nn.Module):
    """Attention that holds the width of all heads together, in the reshape back from them."""

    def __init__(self, *, counts_heads: bool = True) -> None:
        super().__init__()
        self.n_heads, self.all_head_size, self.proj = HEADS, WIDTH, nn.Linear(WIDTH, WIDTH)
        self.query, self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.counts_heads = counts_heads

    def forward(self, tokens: Tensor) -> Tensor:
        num_heads = self.n_heads if self.counts_heads else 3
        split = [
            layer(tokens).unflatten(-1, (num_heads, SIZE)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        heads = F.scaled_dot_product_attention(*split)
        return self.proj(heads.transpose(1, 2).reshape(*tokens.shape[:2], self.all_head_size))


class Wrapped(nn.Module):
    """Torch's own attention in the form that can lose heads."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(WIDTH, HEADS, SIZE, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, tokens, tokens)[0]


def without(net: nn.Module, place: str, *pruned: int) -> tuple[nn.Module, dict[Channel, str]]:
    """The network without some of its heads, which computes the same."""
    net = net.double().eval()
    parent, _, name = place.rpartition(".")
    factor = torch.ones(HEADS, SIZE, dtype=torch.float64)
    factor[list(pruned)] = 0.0
    projection = getattr(net.get_submodule(parent), name)
    setattr(net.get_submodule(parent), name, Scaled(projection, Scale(factor.flatten(), -1), "input"))
    tokens = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    merits = {f"{place}.scale": torch.arange(WIDTH).double()}
    heads = {f"{place}.scale": HeadPlace(SIZE, parent)}
    smaller, left = remove_heads(net, heads, tokens, Outputs(net, tokens), merits)
    torch.testing.assert_close(smaller(tokens), net(tokens), rtol=1e-12, atol=1e-12)
    return smaller, left


def test_rows_of_one_layer_for_queries_keys_and_values() -> None:
    net = SelfAttention(WIDTH, HEADS)
    weight = net.qkv.weight.detach().double().unflatten(0, (3, HEADS, SIZE))
    smaller, left = without(net, "proj", 1)
    assert not left and smaller.num_heads == 2
    assert torch.equal(smaller.qkv.weight, weight[:, [0, 2]].flatten(0, 2))
    assert smaller.proj.module.in_features == 2 * SIZE


def test_the_width_of_all_heads_is_counted_too() -> None:
    smaller, left = without(Counted(), "proj", 0, 2)
    assert not left
    assert (smaller.n_heads, smaller.all_head_size) == (1, SIZE)
    assert smaller.query.out_features == smaller.key.out_features == smaller.value.out_features == SIZE


def test_torchs_own() -> None:
    smaller, left = without(Wrapped(), "attention.out_proj", 2)
    assert not left and smaller.attention.num_heads == 2 and smaller.attention.q_proj.out_features == 2 * SIZE


def test_the_best_of_all_stays() -> None:
    smaller, left = without(SelfAttention(WIDTH, HEADS), "proj", 0, 1, 2)
    assert smaller.num_heads == 1
    assert left == {Channel("proj.scale", "through", element): LAST for element in range(8, 12)}


@pytest.mark.parametrize("pruned", [(), (0,)])
def test_a_number_of_heads_in_the_code_is_left_and_named(pruned: tuple[int, ...]) -> None:
    smaller, left = without(Counted(counts_heads=False), "proj", *pruned)
    assert smaller.query.out_features == WIDTH
    assert [channel.position for channel in left] == list(range(4 * len(pruned)))
    assert all("does not run without them" in reason for reason in left.values())


GROUPED = ("grouped queries", "counts of the network")


def tiny(kind: str) -> nn.Module:
    """Transformers as their users have them, of one layer with four heads of four features."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
    tokens = {"vocab_size": 20, "max_position_embeddings": 10, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    match kind:
        case "output beside":
            return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **tokens))
        case "Conv1D":
            return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=4))
        case "fused":
            return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, **tokens))
        case "counts of the network":
            config = transformers.Phi3Config(**sizes, **tokens, num_key_value_heads=2, pad_token_id=0)
            return transformers.Phi3ForCausalLM(config)
        case "grouped queries":
            config = transformers.LlamaConfig(**sizes, **tokens, num_key_value_heads=2)
            return transformers.LlamaForCausalLM(config)
        case _:
            config = transformers.SwinConfig(
                image_size=8, patch_size=2, embed_dim=16, depths=[1], num_heads=[4], window_size=4
            )
            return transformers.SwinForImageClassification(config)


@pytest.mark.parametrize("kind", [*"Conv1D fused".split(), "output beside", *GROUPED, "table of positions"])
def test_published_transformers(kind: str, tmp_path: Path) -> None:
    net = tiny(kind).double().eval()
    size = sum(parameter.numel() for parameter in net.parameters())
    tokens = {"input_ids": torch.arange(10).reshape(2, 5)}
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8).double()} if kind == "table of positions" else tokens
    attach_noise(net, kinds=["heads"])
    ((name, site),) = noise_sites(net).items()
    assert (site.noise.num_units, site.noise.unit_size) == ((2, 8) if kind in GROUPED else (4, 4))
    gates = torch.linspace(0.5, 1.0, site.noise.num_units).double()
    gates[1::2] = 0.0
    small = compact_gated(net, {name: gates}, {name: site}, inputs)
    assert set(compaction_report(small).units["fate"]) == {"kept", "removed"}
    # Half of four matrices; two of them are half as large where there are half as many keys. Then biases and tables.
    weights = (3 if kind in GROUPED else 4) * 16 * 16 // 2
    assert 0 <= size - weights - sum(parameter.numel() for parameter in small.parameters()) < 130
    tables = [parameter for key, parameter in small.named_parameters() if "bias_table" in key]
    assert all(table.shape == (49, 2) for table in tables) and bool(tables) == (kind == "table of positions")
    save_compact(small, tmp_path / "small")
    loaded = load_compact(tmp_path / "small", detach_noise(net))
    assert torch.equal(loaded(**inputs).logits, small(**inputs).logits)
    small.train()(**inputs).logits.sum().backward()


def test_a_cache_of_fewer_heads_goes_on() -> None:
    net = attach_noise(tiny("grouped queries").eval(), kinds=["heads"])
    ((name, site),) = noise_sites(net).items()
    tokens = {"input_ids": torch.arange(10).reshape(2, 5)}
    small = compact_gated(net, {name: torch.tensor([0.0, 1.0])}, {name: site}, tokens)
    written = [
        small.generate(**tokens, max_new_tokens=4, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    ]
    assert torch.equal(*written) and written[0].shape == (2, 9)

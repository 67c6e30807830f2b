# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Layers of T5 that share a bias of positions lose different heads."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import attach_noise, compact_gated, compaction_report, load_compact, noise_sites, save_compact
from pyro_bmrs.pruning.compaction.architecture import rebuild
from pyro_bmrs.pruning.compaction.modules.shared_positions import SharedPositions

TOKENS = {"input_ids": torch.arange(10).reshape(2, 5), "decoder_input_ids": torch.arange(6).reshape(2, 3)}


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=20, d_model=12, d_kv=3, num_heads=4, num_layers=2, d_ff=8, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    return transformers.T5ForConditionalGeneration(config).double().eval()


@pytest.fixture(scope="module")
def small(whole: nn.Module) -> nn.Module:
    sites = noise_sites(attach_noise(copy.deepcopy(whole), kinds=["heads"]))
    # Other heads in each layer.
    gates = {name: torch.ones(4).double() for name in sites}
    for place, gate in enumerate(gates.values()):
        gate[place % 4] = gate[(place + 2) % 4] = 0.0
    return compact_gated(whole, gates, sites, TOKENS)


def test_all_go(whole: nn.Module, small: nn.Module) -> None:
    assert set(compaction_report(small).units["fate"]) == {"kept", "removed"}
    layers = [module for module in small.modules() if isinstance(module, SharedPositions)]
    assert len(layers) == 6 and all(layer.q.out_features == layer.o.in_features == 6 for layer in layers)
    assert {layer.position_heads for layer in layers} == {(1, 3), (0, 2)}
    # What all share stays as it is.
    first = small.encoder.block[0].layer[0].SelfAttention
    assert torch.equal(
        first.relative_attention_bias.weight,
        whole.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight,
    )


@pytest.mark.parametrize("use_cache", [True, False])
def test_writes_with_and_without_a_cache(small: nn.Module, use_cache: bool) -> None:
    tokens = {"input_ids": TOKENS["input_ids"]}
    written = small.generate(**tokens, max_new_tokens=4, do_sample=False, use_cache=use_cache, min_new_tokens=4)
    for length in range(1, 5):
        logits = small(**tokens, decoder_input_ids=written[:, :length], use_cache=False).logits[:, -1]
        # The end is not allowed before the least length.
        logits[:, small.config.eos_token_id] = -torch.inf
        assert torch.equal(logits.argmax(-1), written[:, length])


def test_keeps_its_place_in_files_copies_and_training(whole: nn.Module, small: nn.Module, tmp_path: Path) -> None:
    expected = small(**TOKENS).logits
    save_compact(small, tmp_path / "small")
    for other in (load_compact(tmp_path / "small", whole), copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        torch.testing.assert_close(other(**TOKENS).logits, expected, rtol=0, atol=0)
    other.train()(**TOKENS).logits.sum().backward()
    assert other.decoder.block[1].layer[0].SelfAttention.k.weight.grad.abs().sum() > 0


def test_of_nothing_else(small: nn.Module) -> None:
    assert not SharedPositions.is_for(nn.MultiheadAttention(4, 2))
    with pytest.raises(ReductionError, match="an attention with a shared bias, not a Linear"):
        rebuild(nn.Linear(2, 2), {"shared_positions": True})
    with pytest.raises(AttributeError, match="nowhere"):
        _ = small.encoder.block[0].layer[0].SelfAttention.nowhere

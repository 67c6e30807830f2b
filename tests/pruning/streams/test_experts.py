# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Experts whose weights are one parameter lose hidden units, all experts the same, and the width that goes through."""

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
    WeightNorm,
    attach_noise,
    compact_gated,
    compaction_report,
    load_compact,
    noise_sites,
    prune,
    save_compact,
    unit_costs,
)
from pyro_bmrs.pruning.streams.experts import experts_of, rows_of_hidden_units, set_implementation, take_out_of_experts

SIZES = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16, "num_experts_per_tok": 2}
INPUTS = {"input_ids": torch.arange(1, 15).reshape(2, 7), "use_cache": False}


def tiny(kind: str) -> nn.Module:
    torch.manual_seed(0)
    match kind:
        case "Mixtral":
            config: Any = transformers.MixtralConfig(**SIZES, num_local_experts=3)
        case "GptOss":  # Transposed, with biases, and each gate before what it is for.
            rope = {"rope_type": "default", "rope_theta": 10000.0}
            sizes = {**SIZES, "num_local_experts": 3, "head_dim": 8, "rope_parameters": rope}
            config = transformers.GptOssConfig(**sizes)
        case _:  # With an expert that all tokens come to, and a gate of one number for it.
            sizes = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 12, "num_experts": 3}
            config = transformers.Qwen2MoeConfig(**SIZES, **sizes)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def gates_of(net: nn.Module) -> dict[str, Tensor]:
    """Every other unit at 0, of heads none."""
    gates = {}
    for name, site in noise_sites(net).items():
        gates[name] = torch.linspace(0.5, 1.0, site.noise.num_units)
        gates[name][::2] *= float(site.kind == "heads")
    return gates


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss", "Qwen2Moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_that_is_pruned_goes(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    net = tiny(kind).to(dtype)
    if dtype == torch.float64:  # For which torch has no products of groups.
        net.set_experts_implementation("eager")
    whole = copy.deepcopy(net)
    attach_noise(net, kinds=["units", "heads", "width"], example_inputs=INPUTS)
    (experts,) = [site for site in noise_sites(net).values() if site.name.endswith("experts")]
    assert experts.noise.num_units == 24 and not any("router" in name for name in noise_sites(net))
    gates = gates_of(net)
    small = compact_gated(net, gates, noise_sites(net), INPUTS)
    assert set(compaction_report(small).units["fate"]) == {"kept", "removed"}
    assert {p.dim() for p in small.parameters() if 12 in p.shape[1:]} >= {3} and small.config.hidden_size == 16
    with pyro.condition(data={name: gate.to(dtype) for name, gate in gates.items()}), torch.no_grad():
        for site in noise_sites(net).values():
            site.noise.kept &= gates[site.name] != 0
        expected = net(**INPUTS).logits
        found = small(**INPUTS).logits
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert ((found - expected).abs().max() < bound * expected.abs().max()).item()
    save_compact(small, tmp_path / "small")
    assert torch.equal(load_compact(tmp_path / "small", whole)(**INPUTS).logits, found)
    if kind == "Mixtral" and dtype == torch.float32:
        exported = torch.export.export(small, (), kwargs=INPUTS).module()
        torch.testing.assert_close(exported(**INPUTS).logits, found)


def test_most_of_a_mixture_can_be_pruned() -> None:
    net = tiny("Mixtral")
    number = sum(p.numel() for p in net.parameters())
    attach_noise(net, kinds=["units", "heads", "width"], example_inputs=INPUTS)
    zeros = {name: torch.zeros(site.noise.num_units) for name, site in noise_sites(net).items()}
    small = compact_gated(net, zeros, noise_sites(net), INPUTS)
    assert sum(p.numel() for p in small.parameters()) < 0.2 * number


def test_training_scores_and_rounding() -> None:
    net = tiny("Mixtral")
    attach_noise(net, example_inputs=INPUTS)
    model = Classification(net, num_examples=20, next_token=True)
    guide = AutoTruncatedLogNormal(model)
    NoiseELBO()(model, guide)({**INPUTS, "labels": INPUTS["input_ids"]}).backward()
    (name,) = [name for name in noise_sites(net) if name.endswith("experts")]
    assert all(parameter.grad.any() for parameter in guide.parameters())
    with torch.no_grad():
        guide.noise_locs[:3] = -20.0
    # Of each unit a gate, and what it is for, of all experts.
    assert unit_costs(net)[name] == 2 * 3 * 16 and unit_costs(net, INPUTS)[name] > 0
    experts = net.get_submodule(name)
    rows = experts.gate_up_proj.reshape(3, 2, 24, 16)[:, :, 5].flatten()
    torch.testing.assert_close(rows_of_hidden_units(experts)[5].sort().values, rows.sort().values)
    prune(net, guide, WeightNorm(), fraction=0.5)
    kept = noise_sites(net)[name].noise.kept
    assert 0 < int(kept.sum()) < 24
    gates = {other: site.noise.kept.float() for other, site in noise_sites(net).items()}
    small = compact_gated(net, gates, noise_sites(net), INPUTS, round_to=8)
    # At such sizes the kernels are those that there were.
    assert small.get_submodule(name).down_proj.shape[2] % 8 == 0
    assert small.config._experts_implementation == net.config._experts_implementation


class Mixture(nn.Module):
    """One as people write it, of all experts or of the best two."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.router = kind, nn.Linear(16, 3)
        self.first, self.second = nn.Parameter(0.2 * torch.randn(3, 16, 24)), nn.Parameter(0.2 * torch.randn(3, 24, 16))
        self.bias = nn.Parameter(torch.randn(3, 24))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        if self.kind == "einsum":
            hidden = (torch.einsum("btd,edh->bteh", x, self.first) + self.bias).relu()
            return torch.einsum("bted,bte->btd", torch.einsum("bteh,ehd->bted", hidden, self.second), shares)
        rows, (weights, best) = x.flatten(0, 1), shares.flatten(0, 1).topk(2)
        if self.kind == "bmm":
            hidden = torch.baddbmm(self.bias.unsqueeze(1), rows.expand(3, -1, -1), self.first).relu()
            return (torch.bmm(hidden, self.second) * shares.flatten(0, 1).T.unsqueeze(-1)).sum(0).view_as(x)
        output = torch.zeros_like(rows)
        for expert in range(3):
            row, place = (best == expert).nonzero(as_tuple=True)
            hidden = (rows[row] @ self.first[expert] + self.bias[expert]).relu()
            output.index_add_(0, row, hidden @ self.second[expert] * weights[row, place, None])
        return output.view_as(x)


class Mixing(nn.Module):
    """A mixture of experts in a residual stream."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.norm, self.mixture = nn.Embedding(20, 16), nn.LayerNorm(16), Mixture(kind)
        self.last_norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.last_norm(x + self.mixture(self.norm(x))))


@pytest.mark.parametrize("kind", ["einsum", "bmm", "best two"])
def test_a_width_goes_through_parameters_of_three_dimensions(kind: str) -> None:
    torch.manual_seed(0)
    net, tokens = Mixing(kind).double(), torch.arange(14).reshape(2, 7)
    attach_noise(net, kinds=["units", "width"], example_inputs=tokens)
    small = compact_gated(net, gates_of(net), noise_sites(net), tokens)
    assert list(noise_sites(net)) == ["embed.width"]
    assert set(compaction_report(small).units["fate"]) == {"kept", "removed"}
    assert small.mixture.first.shape == (3, 8, 24) and small.mixture.second.shape == (3, 24, 8)


class Loose(nn.Module):
    """Parameters by the names of experts."""

    def __init__(self, up: tuple[int, ...], down: tuple[int, ...], **attributes: Any) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.ones(up)), nn.Parameter(torch.ones(down))
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("module", "dims"),
    [
        (Loose((2, 12, 5), (2, 5, 6)), ((2, 1), (2, 1))),
        (Loose((2, 5, 12), (2, 6, 5)), ((1, 2), (1, 2))),
        # Without a gate, as wide inside as outside, nothing tells but what the module says.
        (Loose((2, 5, 5), (2, 5, 5), has_gate=False), None),
        (Loose((2, 5, 5), (2, 5, 5), has_gate=False, is_transposed=True), ((1, 2), (1, 2))),
        (Loose((12, 5), (5, 6)), None),
        (Loose((2, 12, 5), (2, 5, 7)), None),
        (nn.Linear(2, 3), None),
    ],
)
def test_what_dimensions_are(module: nn.Module, dims: Any) -> None:
    found = experts_of(module)
    assert (None if found is None else (found.up_dims, found.down_dims)) == dims


def test_gates_that_alternate_go_in_pairs() -> None:
    module = Loose((1, 6, 2), (1, 2, 3), is_concatenated=False, intermediate_size=3)
    module.gate_up_proj.data[0, :, 0] = torch.arange(6.0)
    take_out_of_experts(module, "hidden", [1])
    assert module.gate_up_proj[0, :, 0].tolist() == [0, 1, 4, 5] and module.intermediate_size == 2
    with pytest.raises(ReductionError, match="no implementation"):
        set_implementation(module, "eager")

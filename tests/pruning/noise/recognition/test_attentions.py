# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Attentions are found by what they hold: a number of heads or their width, projections, and where these lead."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning import AttentionKind, attach_noise, noise_sites, register_attention
from pyro_bmrs.pruning.noise.recognition import attentions
from pyro_bmrs.pruning.noise.recognition.attentions import Heads, attention_of, recognised_heads


class Holder(nn.Module):
    """Holds what it is given, and computes nothing."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)


def found(net: nn.Module) -> list[Heads]:
    return recognised_heads(dict(net.named_modules()))


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs)


def test_one_layer_for_queries_keys_and_values() -> None:
    net = Holder(attn=Holder(num_heads=3, qkv=linear(12, 36), proj=linear(12, 12)))
    assert found(net) == [Heads("attn", ("attn.qkv",), "attn.proj", 3, 4)]


def test_the_width_of_a_head_says_their_number() -> None:
    net = Holder(head_dim=4, q_proj=linear(5, 8), k_proj=linear(5, 8), v_proj=linear(5, 8), o_proj=linear(8, 5))
    assert found(net) == [Heads("", ("q_proj", "k_proj", "v_proj"), "o_proj", 2, 4)]


@pytest.mark.parametrize(
    "projections",
    [
        {"q_proj": linear(8, 16), "k_proj": linear(8, 8), "v_proj": linear(8, 8)},
        {"q_proj": linear(8, 16), "kv_proj": linear(8, 16)},
        {"qkv_proj": linear(8, 32)},
    ],
)
def test_heads_of_queries_that_share_a_key_are_one_unit(projections: dict[str, nn.Module]) -> None:
    (heads,) = found(Holder(head_dim=4, **projections, o_proj=linear(16, 8)))
    assert (heads.num_units, heads.unit_size) == (2, 8)


def test_heads_of_keys_and_values_that_a_narrow_layer_makes() -> None:
    made = {"q_a_proj": linear(8, 4), "q_b_proj": linear(4, 24), "kv_a_proj_with_mqa": linear(8, 6)}
    net = Holder(num_heads=2, head_dim=2, **made, kv_b_proj=linear(4, 20), o_proj=linear(8, 8))
    assert found(net) == [Heads("", (*made, "kv_b_proj"), "o_proj", 2, 4)]


def test_an_output_projection_in_the_module_beside() -> None:
    inner = Holder(num_attention_heads=2, query=linear(8, 8), key=linear(8, 8), value=linear(8, 8))
    around = Holder(inner=inner, output=Holder(dense=linear(8, 8)))
    (heads,) = found(Holder(attention=around, intermediate=linear(8, 16)))
    assert (heads.attention, heads.output) == ("attention.inner", "attention.output.dense")


def test_projections_of_positions_are_no_output() -> None:
    names = ("query_proj", "key_proj", "value_proj", "pos_query_proj", "pos_key_proj")
    inner = Holder(num_attention_heads=2, **{name: linear(8, 8) for name in names})
    (heads,) = found(Holder(attention=Holder(inner=inner, output=Holder(dense=linear(8, 8)))))
    assert heads.output == "attention.output.dense" and len(heads.projections) == 5


def test_the_innermost_of_two_that_count_heads() -> None:
    inner = Holder(num_heads=2, to_qkv=linear(8, 24), to_out=nn.Sequential(linear(8, 8), nn.Dropout()))
    net = Holder(heads=2, attention=inner)
    (heads,) = found(net)
    assert (heads.attention, heads.output) == ("attention", "attention.to_out.0")
    assert attention_of(dict(net.named_modules()), "attention.to_out.0") == "attention"


@pytest.mark.parametrize(
    "held",
    [
        {"num_heads": 5, "qkv": linear(12, 36), "proj": linear(12, 12)},
        {"qkv": linear(12, 36), "proj": linear(12, 12)},
        {"num_heads": 3, "qkv": linear(12, 36)},
        {"num_heads": 3, "one": linear(12, 12), "other": linear(12, 12)},
        {"num_heads": 3, "qkv": linear(12, 36), "one": linear(12, 12), "other": linear(12, 12)},
        {"num_heads": True, "qkv": linear(12, 36), "proj": linear(12, 12)},
    ],
)
def test_what_is_no_attention(held: dict[str, Any]) -> None:
    assert not found(Holder(**held))


def test_others_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentions, "_KINDS", [])

    class Other(Holder):
        pass

    net = Holder(other=Other(parts=4, groups=2, make=linear(8, 16), join=linear(8, 8)), head=linear(8, 2))
    assert not found(net)
    kind = AttentionKind((Other,), ("make",), "join", heads="parts", groups="groups")
    assert register_attention(kind) is kind
    assert found(net) == [Heads("other", ("other.make",), "other.join", 2, 4)]
    net.other.groups = 3
    assert not found(net)


@pytest.mark.parametrize(("types", "projections"), [((), ("make",)), ((int,), ("make",)), ((nn.Module,), ())])
def test_kinds_that_are_none(types: Any, projections: tuple[str, ...]) -> None:
    with pytest.raises(ReductionError):
        AttentionKind(types, projections, "join", "parts")


def test_layers_of_an_attention_have_no_noise_unless_they_are_named() -> None:
    def net() -> nn.Module:
        attn = Holder(num_heads=3, qkv=linear(12, 36), proj=linear(12, 12))
        return Holder(attn=attn, last=linear(12, 2))

    assert {site.kind for site in noise_sites(attach_noise(net())).values()} == {"heads"}
    named = noise_sites(attach_noise(net(), "attn.qkv", kinds=["units"]))
    assert named["attn.qkv"].noise.num_units == 36


def test_heads_that_read_each_other_have_no_noise_unless_they_are_named() -> None:
    def net() -> nn.Module:
        attn = Holder(num_heads=3, qkv=linear(12, 36), scores=linear(3, 3), proj=linear(12, 12))
        return Holder(first=linear(5, 12), attn=attn, last=linear(12, 2))

    assert "attn" not in noise_sites(attach_noise(net()))
    assert noise_sites(attach_noise(net(), "attn"))["attn"].kind == "heads"

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Networks of other libraries, with random weights, and small inputs for them.

They are named after where they are from: ``torchvision/resnet18``, ``timm/vit_tiny_patch16_224``,
``transformers/llama``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from tests.networks.torchvision_without_cuda import torchvision


@dataclass(frozen=True)
class Entry:
    """
    A network.

    :param name: the library, and its name there.
    :param make: makes it.
    :param inputs: makes what it is called with.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]


# Left out: what detects, whose outputs are boxes that an operator for CUDA chooses; what is quantised; and of each
# family the largest, which say nothing that the smaller do not.
TORCHVISION = """
alexnet convnext_tiny convnext_small convnext_base deeplabv3_mobilenet_v3_large deeplabv3_resnet50 densenet121
densenet161 densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4
efficientnet_v2_s fcn_resnet50 fcn_resnet101 googlenet inception_v3 lraspp_mobilenet_v3_large maxvit_t mc3_18
mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small mvit_v1_b mvit_v2_s
r2plus1d_18 r3d_18 raft_small raft_large regnet_x_16gf regnet_x_1_6gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf
regnet_x_8gf regnet_y_1_6gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18
resnet34 resnet50 resnext50_32x4d resnext101_32x8d s3d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin3d_t swin3d_s swin_t swin_s swin_b swin_v2_t swin_v2_s vgg11
vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 wide_resnet50_2 wide_resnet101_2 vit_l_32
regnet_y_16gf
""".split()
TIMM = """
resnet26d resnetv2_50x1_bit ecaresnet26t res2net50_26w_4s dla34 efficientnet_lite0 regnetx_002 repvgg_a0 gernet_s
mobilenetv4_conv_small ghostnet_100 tf_efficientnet_b0 nfnet_f0 dm_nfnet_f0 cspresnet50 selecsls42b hardcorenas_a
lcnet_050 convnextv2_atto vit_tiny_patch16_224 deit_tiny_patch16_224 beit_base_patch16_224 eva02_tiny_patch14_224
pvt_v2_b0 mobilevit_xxs cait_xxs24_224 mixer_s32_224 resmlp_12_224 poolformer_s12 edgenext_xx_small mobileone_s0
fastvit_t8
""".split()

# Sizes of square images, where those of the others, 64, are not enough or not allowed.
_SIZES = {
    "s3d": 224,
    # Its auxiliary head, which it has in training alone, takes no smaller ones.
    "inception_v3": 299,
    "raft_small": 128,
    "raft_large": 128,
    "vit_b_16": 224,
    "vit_b_32": 224,
    "vit_l_32": 224,
    "maxvit_t": 224,
    "mvit_v1_b": 64,
    "mvit_v2_s": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "beit_base_patch16_224": 224,
    "eva02_tiny_patch14_224": 224,
    "cait_xxs24_224": 224,
    "mixer_s32_224": 224,
    "resmlp_12_224": 224,
}
_VIDEOS = {
    "mc3_18": 8,
    "r2plus1d_18": 8,
    "r3d_18": 8,
    "s3d": 13,
    "swin3d_t": 4,
    "swin3d_s": 4,
    "mvit_v1_b": 16,
    "mvit_v2_s": 16,
}


def _images(name: str) -> Any:
    size = _SIZES.get(name, 64)
    examples = 1 if name == "s3d" else 2
    shape = (examples, 3, _VIDEOS[name], size, size) if name in _VIDEOS else (examples, 3, size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Of the iterations, each of which magnifies what is off by rounding, two.
    return (images, images.flip(0), 2) if name.startswith("raft") else images


def _torchvision(name: str) -> nn.Module:
    options: dict[str, Any] = {"weights": None}
    if name.startswith(("deeplab", "fcn", "lraspp")):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    mvit: Any = torchvision().models.video.mvit
    # Of smaller videos than those that it takes otherwise.
    with patch.object(mvit, "MViT", partial(_small_mvit, mvit.MViT)):
        net: nn.Module = torchvision().models.get_model(name, **options)
    return net


def _small_mvit(kind: type[nn.Module], **settings: Any) -> nn.Module:
    return kind(**{**settings, "spatial_size": (64, 64)})


def _timm(name: str) -> nn.Module:
    torchvision()  # timm asks for it.
    import timm

    net: nn.Module = timm.create_model(name, pretrained=False)
    return net


def _tokens(**more: Any) -> dict[str, Any]:
    return {"input_ids": torch.arange(24).reshape(2, 12) % 90 + 3, **more}


def _of_transformers(kind: str, config: dict[str, Any]) -> nn.Module:
    torchvision()  # Those of images ask for it.
    import transformers

    settings = getattr(transformers, f"{kind.partition('For')[0].removesuffix('LMHeadModel')}Config")(**config)
    net: nn.Module = getattr(transformers, kind)(settings)
    return net


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_TEXT = {"vocab_size": 97, "max_position_embeddings": 64, **_SMALL}
_DISTIL = {"vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
_CAUSAL = {**_TEXT, "use_cache": False}
_GROUPED = {**_CAUSAL, "num_key_value_heads": 2}
_GPT = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
_T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False}
_BART = {
    **{"vocab_size": 97, "d_model": 32, "max_position_embeddings": 64, "use_cache": False},
    **{
        f"{side}_{what}": value
        for side in ("encoder", "decoder")
        for what, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
    },
}
_IMAGES = {"image_size": 32, "patch_size": 8, **_SMALL}


def _pixels() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def _pairs() -> dict[str, Any]:
    tokens = _tokens()["input_ids"]
    return {"input_ids": tokens, "decoder_input_ids": tokens[:, :8]}


TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "bert": ("BertForSequenceClassification", _TEXT, _tokens),
    "roberta": ("RobertaForSequenceClassification", _TEXT, _tokens),
    "distilbert": ("DistilBertForSequenceClassification", _DISTIL, _tokens),
    "electra": ("ElectraForSequenceClassification", {**_TEXT, "embedding_size": 16}, _tokens),
    "albert": ("AlbertForSequenceClassification", {**_TEXT, "embedding_size": 16}, _tokens),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
        _tokens,
    ),
    "gpt2": ("GPT2LMHeadModel", _GPT, _tokens),
    "gpt_neox": ("GPTNeoXForCausalLM", _CAUSAL, _tokens),
    "opt": (
        "OPTForCausalLM",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
            "use_cache": False,
        },
        _tokens,
    ),
    "llama": ("LlamaForCausalLM", _GROUPED, _tokens),
    "mistral": ("MistralForCausalLM", _GROUPED, _tokens),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED, _tokens),
    "gemma": ("GemmaForCausalLM", {**_GROUPED, "head_dim": 8}, _tokens),
    "phi": ("PhiForCausalLM", _GROUPED, _tokens),
    "phi3": ("Phi3ForCausalLM", {**_GROUPED, "pad_token_id": 0}, _tokens),
    "bloom": (
        "BloomForCausalLM",
        {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
        _tokens,
    ),
    "t5": ("T5ForConditionalGeneration", _T5, _pairs),
    "bart": ("BartForConditionalGeneration", _BART, _pairs),
    "vit": ("ViTForImageClassification", _IMAGES, _pixels),
    "deit": ("DeiTForImageClassification", _IMAGES, _pixels),
    "beit": ("BeitForImageClassification", _IMAGES, _pixels),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"image_size": 32, "depth_multiplier": 0.35}, _pixels),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1], "image_size": 32, "patch_size": 2},
        _pixels,
    ),
    "mixtral": ("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, _tokens),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {**_GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        _tokens,
    ),
    "gpt_oss": ("GptOssForCausalLM", {**_GROUPED, "head_dim": 8, "num_local_experts": 4}, _tokens),
}


def catalogue() -> Iterator[Entry]:
    """All of them."""
    for name in TORCHVISION:
        yield Entry(f"torchvision/{name}", partial(_torchvision, name), partial(_images, name))
    for name in TIMM:
        yield Entry(f"timm/{name}", partial(_timm, name), partial(_images, name))
    for name, (kind, config, inputs) in TRANSFORMERS.items():
        yield Entry(f"transformers/{name}", partial(_of_transformers, kind, config), inputs)

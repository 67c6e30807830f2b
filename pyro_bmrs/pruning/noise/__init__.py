# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Noise on the units of a network: where it goes, how it acts, and the guide of its posterior."""

from pyro_bmrs.pruning.noise.attachment import NoiseSite, attach_noise, detach_noise, noise_sites
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.noise.multiplicative_noise import MultiplicativeNoise
from pyro_bmrs.pruning.noise.recognition.attentions import AttentionKind, register_attention

__all__ = [
    "AttentionKind",
    "AutoTruncatedLogNormal",
    "MultiplicativeNoise",
    "NoiseSite",
    "attach_noise",
    "detach_noise",
    "noise_sites",
    "register_attention",
]

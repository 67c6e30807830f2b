# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
torchvision beside a torch for the CPU.

The wheels of registries are built for CUDA: beside a torch without it their operators are not loaded, and the import
fails where the first of them is described. Declared first, they are there and cannot be called; no network here does.
"""

from __future__ import annotations

from typing import Any

import torch

_OPERATORS = ("nms", "qnms")
# The declarations last as long as this does.
_DECLARED: list[torch.library.Library] = []


def torchvision() -> Any:
    """The package, which is optional."""
    if not _DECLARED:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
    import torchvision

    return torchvision

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Transforms as a flat list."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributions.transforms import AffineTransform, ComposeTransform, IndependentTransform, Transform


def flat_transforms(transforms: Sequence[Transform]) -> list[Transform]:
    """The transforms one by one: out of compositions and independent views, and without those that do nothing."""
    flat: list[Transform] = []
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            flat += flat_transforms(transform.parts)
        elif isinstance(transform, IndependentTransform):
            flat += flat_transforms([transform.base_transform])
        elif not _is_identity(transform):
            flat.append(transform)
    return flat


def _is_identity(transform: Transform) -> bool:
    if not isinstance(transform, AffineTransform):
        return False
    return bool((torch.as_tensor(transform.loc) == 0).all() and (torch.as_tensor(transform.scale) == 1).all())

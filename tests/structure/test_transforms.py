# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch.distributions import transforms

from pyro_bmrs.structure.transforms import flat_transforms

EXP, STRETCH = transforms.ExpTransform(), transforms.AffineTransform(1.0, 2.0)


def test_compositions_and_independent_views_are_taken_apart_in_order() -> None:
    inner = transforms.ComposeTransform([STRETCH, transforms.IndependentTransform(EXP, 1)])
    whole = transforms.ComposeTransform([EXP, transforms.IndependentTransform(inner, 1)])
    flat = flat_transforms([whole, STRETCH])
    assert flat == [EXP, STRETCH, EXP, STRETCH]
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    value = x
    for transform in flat:
        value = transform(value)
    torch.testing.assert_close(value, STRETCH(whole(x)))


def test_what_does_nothing_is_left_out() -> None:
    nothing = transforms.AffineTransform(torch.zeros(3), 1.0), transforms.identity_transform
    assert flat_transforms(nothing) == []
    # Of a batch, one element that is stretched is enough to keep the whole.
    some = transforms.AffineTransform(0.0, torch.tensor([1.0, 2.0]))
    assert flat_transforms([some, *nothing]) == [some]

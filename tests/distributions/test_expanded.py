# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs.distributions.expanded import unexpanded


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        (torch.tensor(2.0).expand(4, 3), (1, 1)),
        (torch.randn(3).expand(4, 3), (1, 3)),
        (torch.randn(4, 1).expand(4, 3), (4, 1)),
        (torch.randn(4, 3), (4, 3)),
        (torch.randn(4, 3).mT, (3, 4)),
        (torch.tensor(1.0), ()),
    ],
)
def test_one_element_stands_for_all_its_copies(tensor, shape) -> None:
    compact = unexpanded(tensor)
    assert compact.shape == shape
    assert torch.equal(compact.expand(tensor.shape), tensor)
    assert compact.data_ptr() == tensor.data_ptr()


def test_gradients_reach_what_was_expanded() -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    unexpanded(scale.expand(1000)).square().sum().backward()
    assert scale.grad == 4.0

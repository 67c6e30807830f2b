# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from pyro_bmrs.pruning.noise.steps.precision import at_least_single, full_precision, single_at_least


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_less_than_single_precision_becomes_single(dtype):
    assert single_at_least(dtype) == torch.float32
    assert at_least_single(torch.ones(2, dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("values", [torch.ones(2).double(), torch.ones(2).long(), torch.ones(2) > 0])
def test_other_values_are_left(values):
    assert at_least_single(values) is values


def test_products_without_autocast():
    a = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
    with full_precision(a.device):
        assert not torch.is_autocast_enabled("cpu")

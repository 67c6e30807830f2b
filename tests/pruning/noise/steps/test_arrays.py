# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_bmrs.pruning.noise.steps import arrays

DOUBLES = np.linspace(-2.0, 2.0, 5)


@pytest.mark.parametrize("array", [DOUBLES, torch.from_numpy(DOUBLES)], ids=["NumPy", "torch"])
def test_arrays_of_both_libraries(array):
    like = arrays.cast(array, torch.ones(1) if isinstance(array, torch.Tensor) else np.ones(1, np.float32))
    assert type(like) is type(array) and arrays.tensor(like).dtype == torch.float32
    both = arrays.pair(array, 2 * array, like)
    assert type(both) is type(array)
    assert torch.equal(arrays.tensor(both), torch.tensor([[-2.0, -1, 0, 1, 2], [-4.0, -2, 0, 2, 4]]))
    expected = torch.erf(torch.from_numpy(DOUBLES))
    assert torch.equal(arrays.tensor(arrays.special(torch.erf, array)), expected)
    assert arrays.library(array).exp(array)[2] == 1


@pytest.mark.parametrize("count", [5, 5000])
@pytest.mark.parametrize("library", ["NumPy", "torch"])
def test_exponentials_in_their_place(count, library):
    exponents = torch.linspace(-700.0, 700.0, count, dtype=torch.float64)
    place = exponents.clone()
    arrays.exponentiate(place.numpy() if library == "NumPy" else place)
    torch.testing.assert_close(place, exponents.exp(), rtol=1e-15, atol=0.0)


def test_where_numpy_computes():
    cpu, other = torch.device("cpu"), torch.device("cuda")
    assert arrays.is_numpys(cpu, torch.float32) and arrays.is_numpys(cpu, torch.float64)
    assert not arrays.is_numpys(cpu, torch.bfloat16) and not arrays.is_numpys(other, torch.float32)

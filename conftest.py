# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator

# On its first import of the day arviz 0.23 writes a stamp file, over which two workers that start at once would
# stumble. Imported here, it is written before they start.
import arviz  # noqa: F401
import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def from_a_clean_slate() -> Iterator[None]:
    """Each test and each docstring's example starts from the same seed and an empty parameter store, on one thread."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(20180518)
    pyro.clear_param_store()
    default_dtype = torch.get_default_dtype()
    with pyro.validation_enabled():
        yield
    torch.set_default_dtype(default_dtype)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What no test and no docstring's example may leave behind."""

import pytest
import torch


@pytest.fixture(autouse=True)
def default_dtype():
    """Puts torch's default dtype back, which some examples set."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)

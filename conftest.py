# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What no test and no docstring's example may leave behind."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def clean_slate():
    """Empties Pyro's parameter store, and puts torch's default dtype back, which some examples set."""
    before = torch.get_default_dtype()
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(before)

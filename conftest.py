# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What no test and no docstring's example may leave behind."""

import pyro
import pytest
import torch


# Read once, as fixtures of wider scope run before that of a test and may set it.
DEFAULT_DTYPE = torch.get_default_dtype()


@pytest.fixture(autouse=True)
def clean_slate():
    """Empties Pyro's parameter store, and puts torch's default dtype back, which some tests and examples set."""
    _clean()
    yield
    _clean()


def _clean() -> None:
    pyro.clear_param_store()
    torch.set_default_dtype(DEFAULT_DTYPE)

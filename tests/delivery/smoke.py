# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Whether what was installed works by itself: a program for an environment with the package and no checkout.

It imports every module with the extras that it was installed with and no others, and runs the code of the README, which
it takes from the metadata of what is installed, as PyPI shows it. Run it from elsewhere, with ``python -I``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import re
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_bmrs

FOLDER = Path(pyro_bmrs.__file__).parent
# Of the second door the README shows a line, for a network and data of the reader's.
FEW_DIGITS = 400


def check_what_is_installed() -> None:
    """It is the wheel, with its types and its licence, not a checkout that lies about."""
    metadata = importlib.metadata.metadata("pyro_bmrs")
    assert FOLDER.is_relative_to(sys.prefix), f"{FOLDER} is not of this environment"
    assert (FOLDER / "py.typed").exists()
    assert metadata["Version"] == pyro_bmrs.__version__
    assert any(path.name == "LICENSE" for path in importlib.metadata.files("pyro_bmrs") or ())


def import_all() -> int:
    """How many modules there are, but for those that say of which extra they are."""
    modules = [module.name for module in pkgutil.walk_packages([str(FOLDER)], "pyro_bmrs.")]
    without = 0
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            if "pip install pyro_bmrs[" not in str(error):
                raise
            without += 1
    return len(modules) - without


def reader() -> dict[str, object]:
    """What a reader of the README has: a network, and data."""
    images, digits = load_digits(return_X_y=True)
    data = torch.tensor(images[:FEW_DIGITS] / 16, dtype=torch.float32), torch.tensor(digits[:FEW_DIGITS])
    return {"net": nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), "train_data": data}


def run_readme() -> int:
    """How many pieces of Python the README has; each runs by itself."""
    readme = str(importlib.metadata.metadata("pyro_bmrs").get_payload())
    pieces = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    for number, piece in enumerate(pieces, start=1):
        torch.manual_seed(0)
        exec(compile(piece, f"README.md, piece {number}", "exec"), reader())
    return len(pieces)


def main() -> None:
    """Ends with an error where anything is amiss."""
    check_what_is_installed()
    print(f"{import_all()} modules of pyro_bmrs {pyro_bmrs.__version__} imported from {FOLDER}")
    pieces = run_readme()
    assert pieces >= 2, "the README shows no code for one of its two doors"
    print(f"{pieces} pieces of the README run")


if __name__ == "__main__":
    main()

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Without Lightning there is all of pruning but what needs it, and the absence is named where it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("lightning")

WITHOUT_LIGHTNING = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric"):
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
"""


def run(code: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not process.returncode, process.stderr
    return process.stdout


def test_all_names_can_be_imported_without_lightning() -> None:
    code = WITHOUT_LIGHTNING + (
        "from pyro_bmrs.pruning import *\n"
        "print(attach_noise.__name__, compact.__name__, prune.__name__)\n"
        "for name in ('PruningCallback', 'agree_on_kept'):\n"
        "    assert name not in globals()\n"
        "    try:\n"
        "        exec(f'from pyro_bmrs.pruning import {name}')\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    hint = "PruningCallback needs Lightning: pip install pyro_bmrs[lightning]"
    assert run(code).splitlines() == ["attach_noise compact prune", hint, hint]


def test_with_lightning_its_names_are_among_all_and_not_loaded_before() -> None:
    code = (
        "import sys\n"
        "from pyro_bmrs import pruning\n"
        "print('lightning' in sys.modules, {'PruningCallback', 'agree_on_kept'} <= set(pruning.__all__))\n"
    )
    assert run(code) == "False True\n"

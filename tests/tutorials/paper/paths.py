# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Where the program of the paper's experiments and its settings are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "tutorials" / "paper" / "configs"
QUICK = CONFIGS / "quick.yaml"

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from pathlib import Path

import pyro
import pytest

README = Path(__file__).parents[2] / "README.md"
NUMBER = re.compile(r"-?\d+\.\d+")


def test_the_code_of_the_readme_prints_what_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    code, promised = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", README.read_text(), re.DOTALL).groups()
    with pyro.settings.context(bmrs_automatic_check=True):
        exec(compile(code, README, "exec"), {})
    printed = capsys.readouterr().out
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", promised).split()
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed, promised)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.011)

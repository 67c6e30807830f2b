# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Against values that this project did not compute.

``reference/truncated_log_normal.csv``: 200 truncated log-normal posteriors on [e^-20, 1], of log-location ``mu`` and
log-scale ``sigma``, against the log-uniform prior there, in 60-digit arithmetic. ``delta_n`` and ``delta_n_scale1``
reduce to a truncated log-normal of log-location -20 and log-scale 1e-6 or 1 on the same interval, ``delta_u8`` and
``delta_u4`` to a log-uniform on [2^-23, 2^-8] and [2^-23, 2^-4].
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.evidence import log_evidence_change

REFERENCE = Path(__file__).parents[1] / "reference"


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def log_uniform(low: float, high: float) -> LogUniform:
    return LogUniform(double(low), double(high))


def truncated_log_normal(loc: Tensor, scale: Tensor) -> TruncatedLogNormal:
    return TruncatedLogNormal(loc, scale, double(math.exp(-20)), double(1.0))


REDUCED_PRIORS = {
    "delta_n": truncated_log_normal(double(-20.0), double(1e-6)),
    "delta_n_scale1": truncated_log_normal(double(-20.0), double(1.0)),
    "delta_u8": log_uniform(2**-23, 2**-8),
    "delta_u4": log_uniform(2**-23, 2**-4),
}


@pytest.mark.parametrize(("column", "reduced_prior"), REDUCED_PRIORS.items(), ids=REDUCED_PRIORS)
def test_truncated_log_normals_to_ten_digits(column: str, reduced_prior: Distribution) -> None:
    with (REFERENCE / "truncated_log_normal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    loc, scale, expected = (
        torch.tensor([float(row[name]) for row in rows], dtype=torch.float64) for name in ("mu", "sigma", column)
    )
    prior = log_uniform(math.exp(-20), 1.0)
    value = log_evidence_change(truncated_log_normal(loc, scale), prior, reduced_prior)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)

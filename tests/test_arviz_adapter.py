# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from pyro_bmrs.arviz_adapter import smooth_log_weights


def light_tailed(zeros: float, of_zeros: float = -np.inf) -> np.ndarray:
    """20,000 log weights around -30, a share of them zeros; smoothing so light a tail moves the mean little."""
    log_weights = 0.3 * np.random.default_rng(0).standard_normal(20_000) - 30.0
    log_weights[: int(zeros * len(log_weights))] = of_zeros
    return log_weights


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 0.99, 0.995])
def test_smoothing_a_light_tail_keeps_the_mean_weight_however_many_are_zero(zeros: float) -> None:
    log_weights = light_tailed(zeros)
    smoothed, k = smooth_log_weights(log_weights)
    assert k < 0.5
    assert logsumexp(smoothed) == pytest.approx(logsumexp(log_weights), abs=2 / np.sqrt((1 - zeros) * len(log_weights)))
    assert (smoothed[log_weights == -np.inf] == -np.inf).all()


@pytest.mark.parametrize("tiny", [-1e3, -1e10, -1e300])
def test_a_weight_next_to_nothing_is_as_good_as_none(tiny: float) -> None:
    smoothed, k = smooth_log_weights(light_tailed(1e-4, tiny))
    without, k_without = smooth_log_weights(light_tailed(1e-4))
    assert smoothed[2:] == pytest.approx(without[2:], abs=1e-10)
    assert (smoothed[:2] == tiny).all()
    assert k == pytest.approx(k_without, abs=1e-12)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch

from pyro_bmrs.pruning import SNR, PosteriorMean, prune
from tests.pruning.criteria.guided import fitted


def test_snr_and_mean_are_those_of_the_posterior():
    net, guide = fitted()
    guide.noise["2"].kept[0] = False
    snr, mean = SNR().scores(net, guide), PosteriorMean().scores(net, guide)
    for name in ("0", "2"):
        posterior, kept = guide.noise_posterior(name), guide.noise[name].kept
        torch.testing.assert_close(snr[name][kept], (posterior.mean / posterior.stddev).detach()[kept])
        torch.testing.assert_close(mean[name][kept], posterior.mean.detach()[kept])
        assert (snr[name][~kept] == 0).all() and (mean[name][~kept] == 0).all()


def test_snr_decides_at_its_threshold():
    net, guide = fitted()
    snr = SNR().scores(net, guide)
    result = prune(net, guide, SNR())
    for name, removed in result.removed.items():
        assert torch.equal(removed, snr[name] <= 1)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import Classification, Regression
from pyro_bmrs.pruning.compression.course.held_out import held_out


def test_labels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9))
    x, y = torch.randn(10, 3), torch.randint(4, (10,))
    found = held_out(Classification(net, 10), [(x[:7], y[:7]), (x[7:], y[7:])])
    probabilities = net[0](x).softmax(-1)
    expected = probabilities[torch.arange(10), y].log().double()
    torch.testing.assert_close(found.log_likelihoods, expected.detach(), rtol=1e-5, atol=1e-6)
    assert found.right.tolist() == (probabilities.argmax(-1) == y).double().tolist()
    assert found.accuracy == pytest.approx(float(found.right.mean()))
    assert net.training


def test_real_numbers():
    net = nn.Linear(2, 2)
    x, y = torch.randn(5, 2), torch.randn(5, 2)
    found = held_out(Regression(net, 5, scale=0.5), [(x, y)])
    expected = norm(net(x).detach().numpy(), 0.5).logpdf(y.numpy()).sum(1)
    assert found.log_likelihoods.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.right is None and math.isnan(found.accuracy)


def test_pixels():
    """Each image is one example, and places without a label are none."""
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 2, 2), torch.randint(4, (3, 2, 2))
    labels[0, 0, 0] = -100
    found = held_out(Classification(nn.Identity(), 3), [(logits, labels)])
    expected = -nn.functional.cross_entropy(logits, labels, reduction="none").sum((1, 2))
    assert found.log_likelihoods.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    right = (logits.argmax(1) == labels).sum((1, 2)) / torch.tensor([3, 4, 4])
    assert found.right.tolist() == pytest.approx(right.tolist())


def test_targets_that_do_not_fit():
    with pytest.raises(ReductionError, match="shape"):
        held_out(Regression(nn.Linear(2, 1), 5), [(torch.randn(5, 2), torch.randn(5))])

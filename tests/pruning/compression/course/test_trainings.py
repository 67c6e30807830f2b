# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from pyro_bmrs import ReductionError
from pyro_bmrs.pruning import BMRS_N, Occam, Regression, attach_noise, occam_prices
from pyro_bmrs.pruning.compression.course.data import read_data
from pyro_bmrs.pruning.compression.course.trainings import Course, NoisyCourse

ADAM = partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture
def course():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    data = read_data((x, x[:, :1].sin()))
    return Course(data, Regression, ADAM, 0, lambda: None)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 1))


def test_what_a_likelihood_has_learned_goes_on(course):
    model = course.model_of(network())
    model.log_scale.data.fill_(-0.7)
    assert course.model_of(network(), model).log_scale.item() == pytest.approx(-0.7)


def test_the_scale_of_observations_arrives_with_the_network():
    """As far from 1 as a hundred times, within some steps that take a network's weights hardly anywhere."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    course = Course(read_data((x, 0.01 * torch.randn(400, 1, generator=generator))), Regression, ADAM, 0, lambda: None)
    model, slow = course.model_of(network()), nn.Parameter(torch.zeros(2, 2))
    with torch.no_grad():
        for parameter in model.net[2].parameters():
            parameter.zero_()
    course.train(model, 200, stage=1)
    assert model.log_scale.exp().item() == pytest.approx(0.01, rel=0.2)
    # A matrix is no such number, and goes with the network; without numbers of its own there is one optimiser.
    model.matrix = slow
    with_network, own = course.optimizers_of(model, list(model.parameters()))
    assert [len(group["params"]) for part in (with_network, own) for group in part.param_groups] == [5, 1]
    assert len(course.optimizers_of(model, list(model.net.parameters()))) == 1
    assert len(course.optimizers_of(model, [model.log_scale])) == 1


def test_a_training_is_the_same_again_whatever_came_before(course):
    first, second = (course.model_of(network()) for _ in range(2))
    course.train(first, 6, stage=1)
    torch.randn(7)
    course.train(second, 6, stage=1)
    assert torch.equal(first.net[0].weight, second.net[0].weight)
    before = course.measure(course.model_of(network()), {}).held_out.log_likelihoods.mean()
    assert course.measure(first, {}).held_out.log_likelihoods.mean() > before


def test_dear_units_go_and_what_is_left_computes_the_same(course):
    noisy = NoisyCourse(course, course.model_of(attach_noise(network())), BMRS_N())
    prices = occam_prices(noisy.model, course.data.train)
    for stage in range(4):
        noisy.train(Occam(prices, 30.0), 30, stage)
    decisions = noisy.prune()
    small = noisy.compact(decisions)
    assert 0 < decisions.num_kept < 20
    assert small.net[0].out_features == decisions.num_kept == int(noisy.kept["0"].sum())
    step = course.measure(small, noisy.kept, 30.0, prices, decisions)
    assert step.parameters == 5 * decisions.num_kept + 1 and step.macs == 4 * decisions.num_kept


def test_units_on_their_way_out_are_those_whose_noise_is_louder_than_its_signal(course):
    noisy = NoisyCourse(course, course.model_of(attach_noise(network())), BMRS_N())
    assert noisy.share_leaving == 0
    with torch.no_grad():
        # A log-normal's ratio is 1 at a scale of the root of log 2. Nobody asks for the noise of units that are gone.
        noisy.guide.noise_locs.fill_(-8.0)
        noisy.guide.noise_log_scales.fill_(math.log(0.5 * math.sqrt(math.log(2))))
        noisy.guide.noise_log_scales[:8] = math.log(1.1 * math.sqrt(math.log(2)))
        noisy.kept["0"][4:8] = False
    assert noisy.share_leaving == 4 / 16


def test_what_was_held_out_is_trained_on_only_where_that_is_said(course):
    seen = []
    model = course.model_of(network())
    model.net.register_forward_hook(lambda module, args, output: seen.extend(args[0][:, 0].tolist()))
    held_out = {value for x, _ in course.data.validation for value in x[:, 0].tolist()}
    course.train(model, len(course.data.train), stage=1)
    assert len(set(seen)) == 320 and not held_out & set(seen)
    course.train(model, len(course.data.all), stage=1, loader=course.data.all)
    assert len(set(seen)) == 400 and held_out <= set(seen)


def test_nothing_to_train(course):
    model = course.model_of(network().requires_grad_(False))
    model.log_scale.requires_grad_(False)
    with pytest.raises(ReductionError, match="requires a gradient"):
        course.train(model, 1, stage=1)

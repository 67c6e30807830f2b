# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What tables call the elements of a site, and what they say of them."""

from __future__ import annotations

import copy
import math
import pickle

import arviz
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import torch
from matplotlib import pyplot
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs import ReductionError, reduce_model, search_models
from pyro_bmrs.arviz_adapter import to_arviz
from pyro_bmrs.tables import counted, element_labels, moments, read_labels


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_labels_are_those_of_arviz(shape):
    draws = torch.randn(2, 50, *shape).numpy()
    table = arviz.summary(to_arviz({"posterior": {"w": draws}}), kind="stats")
    assert element_labels("w", torch.Size(shape)) == list(table.index)


DRUGS = {"w": {"drug": ["placebo", "verum"], "week": [1, 2, 4]}}


def test_labels_with_names_are_those_of_arviz():
    draws = torch.randn(2, 50, 2, 3).numpy()
    labels = read_labels(DRUGS, {"w": torch.Size([2, 3])})["w"]
    table = arviz.summary(to_arviz({"posterior": {"w": draws}}, {"w": labels}), kind="stats")
    assert element_labels("w", torch.Size([2, 3]), labels) == list(table.index)


@pytest.mark.parametrize("names", [["age", "dose"], np.array(["age", "dose"]), pd.Index(["age", "dose"])])
@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 1)])
def test_a_list_names_the_one_dimension_that_a_site_has(names, shape):
    labels = read_labels({"w": names}, {"w": torch.Size(shape)})["w"]
    assert labels.shape == shape
    found = element_labels("w", torch.Size(shape), labels)
    assert [label.strip("w[]").replace("0", "").strip(", ") for label in found] == ["age", "dose"]


def test_of_a_site_whose_events_cannot_be_parted_the_batch_is_named():
    labels = read_labels(DRUGS, {"w": torch.Size([2, 3])})["w"]
    assert element_labels("w", torch.Size([2]), labels) == ["w[placebo]", "w[verum]"]


def test_places_without_a_name_are_counted():
    shape = torch.Size([2, 3])
    assert element_labels("w", shape, counted("w", shape)) == element_labels("w", shape)


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"v": ["a", "b"]}, "no latent site 'v'"),
        ({"w": ["a", "b"]}, "2 names for site 'w', of shape \\(3,\\)"),
        ({"w": "abc"}, "a list of names for one dimension"),
        ({"w": ["a", "b", "a"]}, "names two places along 'w_dim_0' of site 'w' alike"),
        ({"m": ["a", "b"]}, "site 'm', of shape \\(2, 2\\), must be a list of names for one dimension, or a mapping"),
        ({"m": {"row": ["a", "b"], "col": ["c"]}}, "2 x 1 names for site 'm'"),
        ({"s": ["a"]}, "1 names for site 's', of shape \\(\\)"),
        ({"w": {"row": ["a", "b", "c"]}, "m": {"row": ["a", "b"], "col": [1, 2]}}, "'row' otherwise at site 'm'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    shapes = {"w": torch.Size([3]), "m": torch.Size([2, 2]), "s": torch.Size([])}
    with pytest.raises(ReductionError, match=message):
        read_labels(labels, shapes)


def model():
    pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0).to_event(1))


@pytest.fixture
def named():
    """A guide, and the names of the elements of its site."""
    guide = AutoNormal(model, init_scale=0.1)
    guide()
    return guide, {"slopes": {"feature": ["age", "bmi", "dose"]}}


def test_names_go_through_tables_figures_and_arviz(named):
    guide, labels = named
    reduction = reduce_model(guide, {"slopes": dist.Normal(0.0, 0.1)}, labels=labels)
    expected = ["slopes[age]", "slopes[bmi]", "slopes[dose]"]
    for twin in (reduction, copy.deepcopy(reduction), pickle.loads(pickle.dumps(reduction))):
        assert list(twin.summary().index) == expected
    assert [label.get_text() for label in reduction.plot().get_yticklabels()] == expected
    assert list(reduction.to_arviz(20).posterior["slopes"].sel(feature="bmi").dims) == ["chain", "draw"]
    pyplot.close("all")


def test_names_go_through_a_search(named):
    guide, labels = named
    groups = {"lipids": {"slopes": ["age", "dose"]}, "rest": {"slopes": "bmi"}}
    space = search_models(guide, {"slopes": dist.Normal(0.0, 0.1)}, labels=labels, groups=groups)
    assert list(space.summary().index) == ["slopes[age]", "slopes[bmi]", "slopes[dose]"]
    assert list(space.summary()["group"]) == ["lipids", "rest", "lipids"]
    assert list(space.best.summary().index) == list(space.summary().index)
    assert list(space.to_arviz(20).posterior["slopes"].coords["feature"].values) == ["age", "bmi", "dose"]


def test_an_empty_site_has_no_labels():
    assert element_labels("w", torch.Size([0, 3])) == []


def test_moments_in_closed_form_are_of_the_shape_of_the_elements():
    gamma = dist.Gamma(torch.tensor([2.0, 3.0]), 4.0).expand([5, 2]).to_event(1)
    mean, sd = moments(gamma, torch.Size([5, 2]))
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.75]).expand(5, 2))
    torch.testing.assert_close(sd, torch.tensor([2**0.5 / 4, 3**0.5 / 4]).expand(5, 2))


def test_moments_without_a_closed_form_are_those_of_draws():
    squashed = dist.TransformedDistribution(dist.Normal(torch.tensor([0.3]), 0.8), [dist.transforms.SigmoidTransform()])
    with pytest.raises(NotImplementedError):
        squashed.mean  # noqa: B018

    def moment(power):
        def integrand(x):
            return (
                (1 + math.exp(-x)) ** -power * math.exp(-0.5 * ((x - 0.3) / 0.8) ** 2) / (0.8 * math.sqrt(2 * math.pi))
            )

        return scipy.integrate.quad(integrand, -8, 8)[0]

    exact = moment(1), math.sqrt(moment(2) - moment(1) ** 2)
    mean, sd = moments(squashed, torch.Size([1]))
    # Five standard errors of 4,000 draws.
    assert mean.item() == pytest.approx(exact[0], abs=5 * exact[1] / math.sqrt(4000))
    assert sd.item() == pytest.approx(exact[1], rel=5 / math.sqrt(2 * 4000))


def test_what_has_no_elements_of_that_shape_has_no_moments():
    for nothing in (None, dist.Dirichlet(torch.ones(3)), dist.Normal(0.0, 1.0)):
        mean, sd = moments(nothing, torch.Size([2]))
        assert mean.shape == sd.shape == (2,) and mean.isnan().all() and sd.isnan().all()

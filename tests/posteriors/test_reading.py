# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What stands for a posterior, and what does not."""

from __future__ import annotations

import copy
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)

from pyro_bmrs import ReductionError, log_evidence, reduce_model
from pyro_bmrs.posteriors import read_guide
from tests.programs import NARROW, Y, model


@pytest.mark.parametrize(
    "guide_type", [AutoNormal, AutoMultivariateNormal, AutoNormalMessenger, AutoLaplaceApproximation]
)
def test_a_guide_not_fitted(guide_type):
    with pytest.raises(ReductionError, match="has not been fitted"):
        reduce_model(guide_type(model), {"bias": NARROW}, args=(Y,))


def test_a_list_of_guides_not_fitted():
    guide = AutoGuideList(model)
    guide.append(AutoNormal(model))
    with pytest.raises(ReductionError, match="has not been fitted"):
        reduce_model(guide, {"bias": NARROW}, args=(Y,))


def test_a_hand_written_guide_without_its_model():
    with pytest.raises(ReductionError, match="pass model="):
        reduce_model(lambda: None, NARROW)


def test_what_is_no_guide():
    with pytest.raises(ReductionError, match="guide is a str"):
        reduce_model("guide", NARROW)
    with pytest.raises(ReductionError, match="guide is a dict.*a mapping from site to draws"):
        reduce_model({"z": "guide"}, NARROW)


def test_arguments_that_the_model_does_not_take():
    def needs_data(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoNormalMessenger(needs_data)
    guide(Y)
    with pytest.raises(ReductionError, match="args="):
        reduce_model(guide, NARROW)
    assert reduce_model(guide, NARROW, args=(Y,)).method == "exact"


def regression(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_an_autoguide_remembers_its_arguments() -> None:
    guide = AutoNormal(regression)
    guide(Y)
    assert read_guide(guide).args[0] is Y


def test_a_guide_may_remember_its_arguments_by_an_attribute() -> None:
    def guide(y) -> None:
        pyro.sample("mean", dist.Normal(0.5, 0.5))

    guide.default_arguments = ((), {"y": Y})
    assert read_guide(guide, regression).kwargs["y"] is Y


def test_a_structured_guide_which_forgets_them_has_to_be_given_them() -> None:
    guide = AutoStructured(regression)
    guide(Y)
    with pytest.raises(ReductionError, match="cannot be called with the arguments given"):
        read_guide(guide)
    fitted = read_guide(guide, args=(Y,))
    assert fitted.sites == {"mean"}


KINDS = [
    AutoNormal,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
    AutoLaplaceApproximation,
]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
@pytest.mark.parametrize("guide_type", KINDS)
@pytest.mark.filterwarnings("ignore:The Laplace approximation was made away")  # none of these guides is fitted
def test_a_guide_that_lost_its_model_asks_for_it_and_reduces(guide_type, how) -> None:
    guide = guide_type(model)
    guide(Y)
    pyro.set_rng_seed(0)
    expected = reduce_model(guide, {"weights": NARROW}, args=(Y,))
    twin = how(guide)
    for one in (guide, twin):
        with pytest.raises(ReductionError, match=r"does not know its model any more.*pass model="):
            reduce_model(one, {"weights": NARROW}, args=(Y,))
        pyro.set_rng_seed(0)
        reduction = reduce_model(one, {"weights": NARROW}, model=model, args=(Y,))
        torch.testing.assert_close(reduction.delta_evidence, expected.delta_evidence)
        assert reduction.guide(Y)["weights"].shape == (3,)


@torch.no_grad()
def test_a_copy_is_read_where_it_was_taken_beside_the_original_in_the_store() -> None:
    guide = AutoNormal(model)
    guide(Y)
    twin = copy.deepcopy(guide)
    kept = twin.locs.weights.clone()
    guide.locs.weights.add_(5.0)
    guide(Y)
    reduction = reduce_model(twin, {"bias": NARROW}, model=model, args=(Y,))
    torch.testing.assert_close(reduction.posterior["weights"].mean, kept)
    nodes = pyro.poutine.trace(reduction.guide).get_trace(Y).nodes
    torch.testing.assert_close(nodes["weights_unconstrained"]["fn"].mean, kept)


def test_a_laplace_approximation_away_from_the_mode_is_named():
    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=y)

    y = torch.tensor(1.0)
    guide = AutoLaplaceApproximation(model)
    guide(y)
    for distance, warns in ((0.0, False), (0.03, False), (0.2, True)):
        with torch.no_grad():
            guide.loc.fill_(0.8 + distance)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reduce_model(guide, {"z": dist.Normal(0.0, 0.5)}, args=(y,))
        # The decrement of a quadratic is what it lacks at its top: precision times distance squared, halved.
        assert any(f"would gain {5 * distance**2 / 2:.2g} nats" in str(one.message) for one in caught) == warns


def test_a_laplace_approximation_is_read_where_gradients_are_switched_off():
    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=y)

    guide = AutoLaplaceApproximation(model)
    guide(torch.tensor(1.0))
    with torch.no_grad():
        guide.loc.fill_(0.8)
        (factor,) = read_guide(guide, args=(torch.tensor(1.0),)).factors
    assert factor.distribution.stddev.item() == pytest.approx(0.2**0.5)


def test_a_laplace_approximation_at_no_mode_is_refused():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("two tops", 4 * z**2 - z**4)

    guide = AutoLaplaceApproximation(model)
    guide()
    with torch.no_grad():
        guide.loc.fill_(0.0)
    with pytest.raises(ReductionError, match="not curved downwards"):
        reduce_model(guide, {"z": dist.Normal(0.0, 0.5)})


def test_a_funnel_has_no_mode_and_the_site_is_named():
    """Effects that shrink together with their scale make the density rise."""

    def model(y):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("groups", 8):
            effect = pyro.sample("effect", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(effect, 5.0), obs=y)

    y = torch.zeros(8)
    guide = AutoLaplaceApproximation(model)
    guide(y)
    with torch.no_grad():
        guide.loc.fill_(2.0)
        guide.loc[0] = 0.0  # the logarithm of the scale
    for ask in (lambda: reduce_model(guide, {"scale": dist.HalfNormal(0.1)}), lambda: log_evidence(None, guide)):
        with pytest.raises(ReductionError, match="least along site 'effect', so it is no mode; .*standardised effects"):
            ask()


@pytest.mark.parametrize("args", [torch.ones(3), "ab", {"y": Y}])
def test_the_one_argument_itself_is_no_tuple_of_them(args):
    guide = AutoNormal(model)
    guide(Y)
    with pytest.raises(ReductionError, match=f"args is a {type(args).__name__}; give .* as a tuple"):
        reduce_model(guide, {"bias": NARROW}, args=args)
    with pytest.raises(ReductionError, match="kwargs is a tuple; give a mapping"):
        reduce_model(guide, {"bias": NARROW}, kwargs=(Y,))
    assert reduce_model(guide, {"bias": NARROW}, args=[Y]).method == "exact"


@pytest.mark.parametrize("guide_type", [AutoNormal, AutoMultivariateNormal, AutoNormalMessenger])
def test_a_guide_that_has_diverged_says_so(guide_type):
    guide = guide_type(model)
    guide(Y)
    with torch.no_grad():
        next(guide.parameters()).reshape(-1)[0] = torch.nan
    with pytest.raises(ReductionError, match="guide's parameter 'loc.*' is NaN at 1 of .*diverged"):
        reduce_model(guide, {"bias": NARROW}, args=(Y,))


def test_a_function_guide_that_has_diverged_says_so():
    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc"), 1.0))

    pyro.param("loc", torch.tensor(torch.nan))
    with pytest.raises(ReductionError, match="guide's parameter 'loc' is NaN at 1 of 1"):
        reduce_model(guide, NARROW, model=lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))

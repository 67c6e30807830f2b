# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is checked without being asked for, what is not, and that it says so."""

from __future__ import annotations

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model
from pyro_bmrs.arviz_adapter import to_arviz
from pyro_bmrs.reduction import automatic
from tests import conjugate

X, Y = conjugate.data()
PRIOR = conjugate.prior(4)


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with pyro.settings.context(bmrs_automatic_check=True):
        yield


def change(at: slice, loc: float, scale: float) -> float:
    """The exact change in log evidence where some slopes take another normal prior."""
    reduced = [values.clone() for values in PRIOR]
    reduced[0][at], reduced[1][at] = loc, scale
    full, now = (float(conjugate.log_evidence(X, Y, *prior)) for prior in (PRIOR, reduced))
    return now - full


def test_a_wrong_answer_says_so_by_itself_and_gives_the_models(exact_guide):
    """The best mean field is narrower than the posterior."""
    guide, x, y = exact_guide(AutoNormal)
    with pytest.warns(ReductionWarning, match="the posterior is off.*Go by the model's value"):
        reduction = reduce_model(guide, {"first": dist.Delta(x.new_tensor(0.0))}, args=(x, y))
    exact = change(slice(0, 2), 0.0, 1e-9)
    assert abs(reduction.delta_evidence.item() - exact) > 1.0
    assert reduction.delta_evidence.requires_grad
    assert reduction.checked.delta_evidence == pytest.approx(exact, abs=max(0.05, 3 * reduction.checked.standard_error))
    assert f"{reduction.checked.delta_evidence:.2f}" in repr(reduction)
    assert "the posterior is off" in reduction.summary().attrs["check"]


def test_a_right_answer_has_no_warning(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    reduction = reduce_model(guide, {"rest": dist.Normal(x.new_tensor(0.0), 0.1)}, args=(x, y))
    assert reduction.checked.agrees
    assert reduction.checked.delta_evidence == pytest.approx(change(slice(2, 4), 0.0, 0.1), abs=0.1)
    assert "agrees" in repr(reduction)
    assert "not checked" not in repr(reduction)


def test_it_draws_no_random_numbers_of_the_users_and_leaves_no_parameters(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    pyro.set_rng_seed(1)
    reduce_model(guide, {"rest": dist.Normal(x.new_tensor(0.0), 0.1)}, args=(x, y), check=False)
    names, numbers = set(pyro.get_param_store()), torch.rand(3)
    pyro.set_rng_seed(1)
    first = reduce_model(guide, {"rest": dist.Normal(x.new_tensor(0.0), 0.1)}, args=(x, y))
    assert torch.equal(torch.rand(3), numbers)
    assert set(pyro.get_param_store()) == names
    # Nor does it depend on them.
    again = reduce_model(guide, {"rest": dist.Normal(x.new_tensor(0.0), 0.1)}, args=(x, y))
    assert again.checked.delta_evidence == first.checked.delta_evidence


def regression(count=1, data=3):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(count), 1.0).to_event(1))
        with pyro.plate("data", data):
            pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.zeros(data))

    return model


def discrete():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    pyro.sample("y", dist.Normal(z + which, 1.0), obs=torch.tensor(0.3))


def subsampled():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample_size=2):
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(2))


def long():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal((z * torch.ones(100, 100)).mean(), 1.0), obs=torch.tensor(0.3))


def branching():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z if z > 0 else 2 * z, 1.0), obs=torch.tensor(0.3))


def random():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(torch.nn.functional.dropout(z + torch.ones(9), 0.5).sum(), 1.0), obs=torch.tensor(0.3))


def brittle():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(torch.linalg.inv((z > 2.0).float().reshape(1, 1) - 1).sum(), 1.0), obs=torch.zeros(()))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (regression(count=21), "it has 21 coordinates"),
        (regression(data=6000), "it has many data"),
        (discrete, "it has discrete sites"),
        (subsampled, "it subsamples"),
        (long, "one evaluation of its density is long"),
        (branching, "its code is run one draw at a time"),
        (random, "its density is random"),
        (brittle, "the model cannot be evaluated at all draws"),
    ],
)
def test_what_is_dear_or_cannot_be_done_says_that_it_is_not_checked(model, why):
    guide = AutoNormal(pyro.poutine.block(model, expose=["z"]), init_scale=0.1)
    guide()
    reduction = reduce_model(guide, {"z": dist.Normal(0.0, 0.5)}, model=model)
    assert reduction.checked is None
    assert re.search(f"not checked against the model: {why}", repr(reduction))
    assert "not checked" in reduction.summary().attrs["check"]


def test_a_reduced_prior_that_is_being_optimised_is_not_checked_at_each_step():
    guide = AutoNormal(regression())
    guide()
    scale = torch.tensor(0.5, requires_grad=True)
    reduction = reduce_model(guide, {"z": dist.Normal(0.0, scale)})
    assert reduction.unchecked == "its reduced prior is being optimised"
    reduction.delta_evidence.backward()
    assert scale.grad is not None


def test_all_checks_of_a_fit_together_cost_no_more_than_the_fit(exact_guide, monkeypatch):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    monkeypatch.setattr(automatic, "MOST_EVALUATIONS", 1)

    def own(x, y):
        return conjugate.model(x, y)

    first, second = (
        reduce_model(guide, {"rest": dist.Normal(x.new_tensor(0.0), scale)}, model=own, args=(x, y))
        for scale in (0.5, 0.4)
    )
    assert first.checked is not None
    assert second.unchecked == "checks of this fit have cost enough"
    assert second.check().agrees


def test_draws_are_checked_too():
    posterior = conjugate.exact_posterior(X, Y, *PRIOR)
    drawn = posterior.sample((4, 250))
    data = to_arviz({"posterior": {"first": drawn[..., :2].numpy(), "rest": drawn[..., 2:].numpy()}})
    reduction = reduce_model(data, {"rest": dist.Normal(X.new_tensor(0.0), 1.0)}, model=conjugate.model, args=(X, Y))
    assert reduction.method == "importance"
    assert reduction.checked.agrees
    assert reduction.checked.guide_pareto_k is None
    assert "agrees" in repr(reduction)


def test_draws_of_other_data_are_told_though_the_answer_is_right():
    drawn = conjugate.exact_posterior(X, Y, *PRIOR).sample((1000,))
    draws = {"first": drawn[:, :2], "rest": drawn[:, 2:]}
    others = Y + 3 * X[:, 0]
    question = {"rest": dist.Normal(X.new_tensor(0.0), 1.2)}
    with pytest.warns(ReductionWarning, match="is not the posterior of this model.*: the mean of site 'first'"):
        reduction = reduce_model(draws, question, model=conjugate.model, args=(X, others))
    assert reduction.checked.shift.deviations > 2 and "See that model=, args=" in reduction.checked.advice
    assert "not the posterior of this model" in repr(reduction)


def test_a_bad_fit_is_named_to_who_asks_and_a_right_answer_is_not_doubted_by_itself(exact_guide):
    """Half as wide as the posterior in a direction that the question has nothing to do with."""
    guide, x, y = exact_guide(AutoMultivariateNormal)
    with torch.no_grad():
        guide.scale_tril = torch.eye(4) @ guide.scale_tril
        guide.loc[0] += 0.4
    question = {"rest": dist.Uniform(x.new_tensor(-9.0), 9.0)}
    assert reduce_model(guide, question, args=(x, y)).checked.agrees
    with pytest.warns(
        ReductionWarning, match=r"far from the posterior \(Pareto k .*more steps of SVI, or a richer guide"
    ):
        reduction = reduce_model(guide, question, args=(x, y), check=True)
    assert reduction.checked.guide_pareto_k > 0.7
    assert "far from the posterior" in repr(reduction)


def test_what_is_off_by_too_little_to_decide_anything_is_shown_and_no_more(exact_guide):
    """A guide beside the posterior by some of its width."""
    guide, x, y = exact_guide(AutoMultivariateNormal)
    with torch.no_grad():
        guide.loc[3] += 0.07
    question = {"rest": dist.Normal(x.new_tensor(0.0), 0.3)}
    reduction = reduce_model(guide, question, args=(x, y))
    off = abs(reduction.checked.delta_evidence - reduction.delta_evidence.item())
    share = 0.05 * reduction.checked.delta_evidence
    assert 0.1 + share < off < 0.2 + share
    assert "the posterior is off" in repr(reduction)
    with pytest.warns(ReductionWarning, match="the posterior is off"):
        reduce_model(guide, question, args=(x, y), check=True)


def test_it_can_be_switched_off():
    guide = AutoNormal(regression())
    guide()
    with pyro.settings.context(bmrs_automatic_check=False):
        assert reduce_model(guide, {"z": dist.Normal(0.0, 0.5)}).checked is None
    assert reduce_model(guide, {"z": dist.Normal(0.0, 0.5)}, check=False).checked is None


def test_a_check_of_another_kind():
    guide = AutoNormal(regression())
    guide()
    with pytest.raises(ReductionError, match="check must be 'auto', True or False, not 'always'"):
        reduce_model(guide, {"z": dist.Normal(0.0, 0.5)}, check="always")

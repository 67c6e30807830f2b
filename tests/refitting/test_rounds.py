# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A round as a step from one state to the next."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_bmrs.refitting import reduce_iteratively, rounds
from pyro_bmrs.refitting.training import Schedule
from pyro_bmrs.structure.vectorised import own_random_numbers
from tests import conjugate

DATA = torch.tensor([2.0, 0.1])
ZERO = dist.Delta(torch.tensor(0.0))
SCHEDULE = Schedule(num_particles=5, window=10, max_steps=20)


def model() -> None:
    """One observation of each weight, so that the posterior is that of AutoNormal: N(y / 2, 1 / 2)."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(weights, 1.0).to_event(1), obs=DATA)


def change(value: torch.Tensor) -> torch.Tensor:
    """log N(y; 0, 1) - log N(y; 0, 2) of fixing a weight at 0."""
    return dist.Normal(0.0, 1.0).log_prob(value) - dist.Normal(0.0, 2.0**0.5).log_prob(value)


@pytest.fixture
def guide() -> AutoNormal:
    fitted = AutoNormal(model, init_scale=0.5**0.5)
    fitted()
    with torch.no_grad():
        fitted.locs.weights.copy_(DATA / 2)
    return fitted


@pytest.fixture
def begun(guide):
    return rounds.read_task(model, guide, ZERO, (), None, "element", 0.0, SCHEDULE)


def test_it_chooses_what_the_evidence_lets_go(begun) -> None:
    task, state, space = begun
    choice = rounds.choose(state, space)
    assert choice.groups.tolist() == [False, True]
    assert task.names(choice.groups) == ("weights[1]",)
    assert choice.delta_evidence == pytest.approx(float(change(DATA[1])), abs=1e-5)


def test_a_step_leaves_the_state_before_it_as_it_is(begun) -> None:
    task, state, space = begun
    parameters = [value.detach().clone() for value in state.current.parameters()]
    with own_random_numbers():
        after, _ = rounds.advance(task, state, rounds.choose(state, space), lambda training: None, None)
    assert not state.reduced.any() and not state.rounds
    assert all(map(torch.equal, parameters, state.current.parameters()))
    assert after.reduced.tolist() == [False, True]
    assert [done.reduced for done in after.rounds] == [("weights[1]",)]
    # The point has a density again, in the posterior that the next round reads; it has none in the guide.
    opened = after.opened.factor_of["weights"].posterior("weights")
    torch.testing.assert_close(opened.stddev[1], torch.tensor(0.5**0.5))
    assert after.current.guide()["weights"][1] == 0
    assert rounds.choose(after, rounds.search(task, after)) is None


def test_a_round_is_done_again_without_the_fit(begun) -> None:
    task, state, space = begun
    with own_random_numbers():
        fitted, done = rounds.advance(task, state, rounds.choose(state, space), lambda training: None, None)
    again = rounds.repeat(task, state, done)
    assert again.reduced.tolist() == fitted.reduced.tolist()
    assert all(map(torch.equal, again.current.parameters(), fitted.current.parameters()))
    assert again.rounds[0].refit.delta_elbo == fitted.rounds[0].refit.delta_elbo


def test_where_there_is_nothing_to_reduce_the_models_are_searched_once(guide, monkeypatch) -> None:
    searched = []

    def search_models(*args, **kwargs):
        searched.append(args)
        return search(*args, **kwargs)

    search = rounds.search_models
    monkeypatch.setattr(rounds, "search_models", search_models)
    result = reduce_iteratively(model, guide, ZERO, prior_log_odds=-100.0, num_particles=2)
    assert result.rounds == ()
    assert len(searched) == 1


def test_where_nothing_is_left_nothing_is_searched(begun) -> None:
    task, state, _ = begun
    everything = rounds.State(state.current, state.opened, torch.ones_like(state.reduced))
    assert rounds.search(task, everything) is None
    assert rounds.choose(everything, None) is None


POINT = dist.Delta(torch.tensor(0.0, dtype=torch.float64))


def exact_change(reduced):
    """The exact change in log evidence of the conjugate regression without some coefficients."""
    prior = conjugate.prior(4)
    narrow = [torch.where(reduced, value, own) for value, own in zip((0.0, 1e-9), prior)]
    now, full = (float(conjugate.log_evidence(*conjugate.data(), *at)) for at in (narrow, prior))
    return now - full


@pytest.mark.filterwarnings("ignore::pyro_bmrs.ReductionWarning")
@pytest.mark.parametrize("odds", [0.0, 40.0])
def test_only_what_the_model_bears_out_is_reduced(exact_guide, odds):
    guide, *data = exact_guide(AutoNormal)
    priors = {"first": POINT, "rest": POINT}
    task, first, _ = rounds.read_task(conjugate.model, guide, priors, tuple(data), None, "element", odds, Schedule())
    everything = torch.ones(4, dtype=torch.bool)
    promised = rounds.Choice(everything, 99.0, torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.double))
    assert rounds.confirm(task, first, first, promised) is promised  # where the model is not asked
    with pyro.settings.context(bmrs_automatic_check=True):
        found = rounds.confirm(task, first, first, promised)
    kept = next((count for count in (4, 2, 1) if exact_change(torch.arange(4) < count) + count * odds >= 0), 0)
    if not kept:
        assert found is None
    else:
        assert torch.equal(found.groups, torch.arange(4) < kept)
        assert found.delta_evidence == pytest.approx(exact_change(found.groups), abs=0.1)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Iterated reduction: what it finds, that it can be interrupted anywhere, and what it does with broken files."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal, AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model
from pyro_bmrs.refitting.iterated import reduce_iteratively
from pyro_bmrs.refitting.training import Training
from tests import conjugate
from tests.processes import PATIENCE, needs_posix
from tests.refitting.sparse_regression import QUICK, ZERO, fitted, in_two_sites, model, regression

SHORT = {"num_particles": 5, "seed": 1}
NARROW = dist.Normal(torch.tensor(0.0), 0.01)


def numbers(result):
    """All that a result says."""
    x, y, _ = regression()
    pyro.set_rng_seed(0)
    drawn = result.guide(x, y)
    rounds = [(done.reduced, done.refit.delta_evidence, done.refit.delta_elbo) for done in result.rounds]
    more = [(done.refit.divergence, done.refit.num_steps, done.refit.standard_error) for done in result.rounds]
    return rounds, more, result.kept, [value.tolist() for value in result.reduced.values()], drawn


def assert_same(one, other):
    assert one[:-1] == other[:-1]
    assert one[-1].keys() == other[-1].keys()
    assert all(torch.equal(one[-1][name], other[-1][name]) for name in one[-1])


@pytest.fixture(scope="module")
def whole():
    """A run from beginning to end."""
    pyro.clear_param_store()
    return reduce_iteratively(model, fitted(), ZERO, **QUICK)


def test_the_whole_is_held_against_the_model(exact_guide):
    guide, *data = exact_guide(AutoNormal)
    point = dist.Delta(torch.tensor(0.0, dtype=torch.float64))
    with pyro.settings.context(bmrs_automatic_check=True):
        result = reduce_iteratively(
            conjugate.model, guide, {"rest": point}, args=tuple(data), prior_log_odds=1000.0, **SHORT
        )
    assert not result.kept and "by the model" in repr(result)
    scale = conjugate.prior(4)[1].clone()
    scale[2:] = 1e-9
    loc = conjugate.prior(4)[0].clone()
    loc[2:] = 0.0
    exact = conjugate.log_evidence(*data, loc, scale) - conjugate.log_evidence(*data, *conjugate.prior(4))
    assert result.checked.delta_evidence == pytest.approx(float(exact), abs=0.1)
    assert result.delta_evidence == pytest.approx(float(exact), abs=0.1)


# --- what it finds ----------------------------------------------------------------------------------------------------


def test_a_refit_lets_mean_field_reduce_what_it_could_not_before(whole):
    guide, result = fitted(), whole
    first, second = result.rounds
    assert first.reduced == ("weights[1]", "weights[3]", "weights[5]")
    assert second.reduced == ("weights[4]",)
    assert result.kept == ("weights[0]", "weights[2]")
    assert result.reduced["weights"].tolist() == [False, True, False, True, True, True]
    assert first.refit.delta_evidence == pytest.approx(
        float(reduce_model(guide, ZERO).elementwise["weights"].detach()[[1, 3, 5]].sum()), rel=1e-9
    )
    assert result.delta_elbo == first.refit.delta_elbo + second.refit.delta_elbo
    assert result.delta_evidence == first.refit.delta_evidence + second.refit.delta_evidence
    assert result.converged
    # The guide draws from the reduced posterior, and the model accepts it.
    x, y, _ = regression()
    trace = pyro.poutine.trace(result.guide).get_trace(x, y)
    assert (trace.nodes["weights"]["value"][result.reduced["weights"]] == 0).all()
    replayed = pyro.poutine.trace(pyro.poutine.replay(result.model, trace=trace)).get_trace(x, y)
    assert replayed.log_prob_sum().isfinite()


@pytest.mark.parametrize(
    ("kind", "reduced_prior"),
    [
        pytest.param(AutoNormal, ZERO, id="AutoNormal, point"),
        pytest.param(AutoDiagonalNormal, NARROW, id="AutoDiagonalNormal, narrow"),
        pytest.param(AutoMultivariateNormal, ZERO, id="AutoMultivariateNormal, point"),
        pytest.param(AutoMultivariateNormal, NARROW, id="AutoMultivariateNormal, narrow"),
    ],
)
@pytest.mark.no_cover
def test_every_kind_of_guide_finds_the_true_zeros_and_the_exact_evidence_where_it_can_be_exact(kind, reduced_prior):
    x, y, posterior = regression()
    result = reduce_iteratively(model, fitted(kind), reduced_prior, **QUICK)
    assert result.kept == ("weights[0]", "weights[2]")
    assert result.rounds[0].refit.divergence.keys() == {"weights"}

    def log_evidence(scale):
        return dist.MultivariateNormal(torch.zeros(40).double(), (x * scale**2) @ x.T + 0.25 * torch.eye(40)).log_prob(
            y
        )

    narrow = 0.0 if isinstance(reduced_prior, dist.Delta) else 0.01
    ones = torch.ones(6).double()
    truth = log_evidence(torch.where(result.reduced["weights"], narrow * ones, ones)) - log_evidence(ones)
    # A mean-field ELBO is below the evidence by its divergence, before by more than after.
    precision = posterior.precision_matrix
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    gap = 0.0 if kind is AutoMultivariateNormal else float(gap)
    assert float(truth) - 0.3 < result.delta_elbo < float(truth) + gap + 0.5


@pytest.mark.no_cover
def test_two_sites_one_in_a_plate_and_named_groups():
    groups = {"pair": {"first": 1, "rest": 1}, "fifth": {"rest": 2}, "sixth": {"rest": 3}}
    result = reduce_iteratively(
        in_two_sites, fitted(model=in_two_sites), {"first": ZERO, "rest": ZERO}, groups=groups, **QUICK
    )
    assert result.kept == ()
    assert result.reduced["first"].tolist() == [False, True]
    assert result.reduced["rest"].tolist() == [False, True, True, True]
    assert {name for done in result.rounds for name in done.reduced} == set(groups)


@pytest.mark.no_cover
def test_a_whole_site_at_a_point_and_the_rest_after_it():
    groups = {"first": "first", "sixth": {"rest": 3}}
    prior = {"first": dist.Delta(torch.zeros(2), event_dim=1), "rest": ZERO}
    odds = torch.tensor([1000.0, -1.0])  # the first whatever it costs
    result = reduce_iteratively(
        in_two_sites, fitted(model=in_two_sites), prior, groups=groups, prior_log_odds=odds, **QUICK
    )
    assert result.rounds[0].reduced[0] == "first"
    assert result.rounds[0].refit.delta_evidence < -10
    drawn = result.guide(*regression()[:2])
    assert (drawn["first"] == 0).all()


@pytest.mark.no_cover
def test_points_and_narrow_priors_together():
    prior = {"first": ZERO, "rest": NARROW}
    result = reduce_iteratively(in_two_sites, fitted(model=in_two_sites), prior, **QUICK)
    assert result.kept == ("first[0]", "rest[0]")


def test_prior_odds_against_reduction_keep_everything():
    guide = fitted()
    result = reduce_iteratively(model, guide, ZERO, prior_log_odds=-100.0, **QUICK)
    assert result.rounds == () and len(result.kept) == 6
    assert result.guide is guide and result.model is model
    assert result.delta_elbo == result.delta_evidence == 0
    assert len(result.summary()) == 0
    assert "0 of 6 groups" in repr(result)


def test_everything_can_go():
    result = reduce_iteratively(model, fitted(), ZERO, prior_log_odds=1e4, **QUICK)
    assert result.kept == () and len(result.rounds) == 1


@pytest.mark.no_cover
def test_it_stays_in_single_precision():
    result = reduce_iteratively(model, fitted(dtype=torch.float32), ZERO, **QUICK)
    assert result.kept == ("weights[0]", "weights[2]")
    assert all(value.dtype == torch.float32 for value in result.guide.parameters())


def test_the_guide_given_and_the_random_numbers_are_left_alone():
    guide = fitted()
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.warns(ReductionWarning):
        reduce_iteratively(model, guide, ZERO, max_steps=10, **SHORT)
    assert all(torch.equal(value, before[name]) for name, value in guide.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_the_summary_has_a_row_for_each_round(whole):
    result = whole
    table = result.summary()
    assert list(table.index) == [1, 2]
    assert list(table["num_reduced"]) == [3, 1]
    assert table["delta_elbo"].sum() == pytest.approx(result.delta_elbo)
    assert table.loc[1, "reduced"] == "weights[1], weights[3], weights[5]"
    assert "4 of 6 groups reduced in 2 rounds" in repr(result)
    assert "<table" in result._repr_html_()


def test_a_refit_that_is_not_done_warns():
    with pytest.warns(ReductionWarning, match="not converged after 10 steps"):
        result = reduce_iteratively(model, fitted(), ZERO, max_steps=10, **SHORT)
    assert not result.converged and "not converged" in repr(result)


def test_progress_is_shown_where_asked(capsys):
    with pytest.warns(ReductionWarning):
        reduce_iteratively(model, fitted(), ZERO, progress=True, max_steps=10, **SHORT)
    assert "reducing iteratively" in capsys.readouterr().err


# --- interrupted and resumed ------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, after):
    """Lets so many windows of training through, and none after."""
    advance, count = Training.advance, 0

    def limited(self):
        nonlocal count
        if count == after:
            raise Interrupted
        count += 1
        return advance(self)

    monkeypatch.setattr(Training, "advance", limited)


@pytest.fixture(scope="module")
def uninterrupted(whole):
    return numbers(whole)


@pytest.mark.parametrize("windows", [3, 7])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch, uninterrupted, windows):
    path = tmp_path / "state.pt"
    steps = sum(more[1] for more in uninterrupted[1])
    assert windows * 50 < steps
    with monkeypatch.context() as patch:
        interrupt(patch, windows)
        with pytest.raises(Interrupted):
            reduce_iteratively(model, fitted(), ZERO, checkpoint=path, **QUICK)
    assert path.exists()
    pyro.clear_param_store()
    result = reduce_iteratively(model, fitted(), ZERO, checkpoint=path, **QUICK)
    assert_same(numbers(result), uninterrupted)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    # A finished run is told again without any training.
    with monkeypatch.context() as patch:
        interrupt(patch, 0)
        again = reduce_iteratively(model, fitted(), ZERO, checkpoint=path, **QUICK)
    assert_same(numbers(again), uninterrupted)
    assert torch.load(path, weights_only=True)["state"]["finished"]


@needs_posix
def test_a_killed_process_can_be_resumed(tmp_path, uninterrupted):
    path = tmp_path / "state.pt"
    script = f"""
import os, signal, pyro
from pyro_bmrs.refitting.iterated import reduce_iteratively
from pyro_bmrs.refitting.training import Training
from tests.refitting.sparse_regression import QUICK, ZERO, fitted, model

advance, count = Training.advance, []

def deadly(self):
    if len(count) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    count.append(1)
    return advance(self)

Training.advance = deadly
pyro.settings.set(bmrs_automatic_check=False)  # as it is in this process
reduce_iteratively(model, fitted(), ZERO, checkpoint={str(path)!r}, **QUICK)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert path.exists()
    result = reduce_iteratively(model, fitted(), ZERO, checkpoint=path, **QUICK)
    assert_same(numbers(result), uninterrupted)


@pytest.fixture(scope="module")
def kept_state(tmp_path_factory):
    """What is kept of a run that was interrupted."""
    path = tmp_path_factory.mktemp("kept") / "state.pt"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(Interrupted):
            reduce_iteratively(model, fitted(), ZERO, checkpoint=path, **QUICK)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_says_so_and_is_left_as_it_is(tmp_path, kept_state, share):
    path = tmp_path / "state.pt"
    path.write_bytes(kept_state[: int(share * len(kept_state))])
    broken = path.read_bytes()
    with pytest.raises(ReductionError, match=r"state\.pt cannot be read: it is truncated"):
        reduce_iteratively(model, fitted(), ZERO, checkpoint=path, **QUICK)
    assert path.read_bytes() == broken


def test_a_foreign_file_says_so_and_is_left_as_it_is(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    before = path.read_bytes()
    with pytest.raises(ReductionError, match=r"weights\.pt is no checkpoint"):
        reduce_iteratively(model, fitted(), ZERO, checkpoint=path, **QUICK)
    text = tmp_path / "notes.txt"
    text.write_text("not a checkpoint")
    with pytest.raises(ReductionError, match=r"notes\.txt cannot be read"):
        reduce_iteratively(model, fitted(), ZERO, checkpoint=text, **QUICK)
    assert path.read_bytes() == before and text.read_text() == "not a checkpoint"
    with pytest.raises(ReductionError, match="cannot be read"):
        reduce_iteratively(model, fitted(), ZERO, checkpoint=tmp_path, **QUICK)
    with pytest.raises(ReductionError, match="there is no folder"):
        reduce_iteratively(model, fitted(), ZERO, checkpoint=tmp_path / "none" / "state.pt", **QUICK)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"seed": 2}, "settings"),
        ({"learning_rates": (0.05,)}, "settings"),
        ({"groups": "site"}, "groups"),
        ({"prior_log_odds": 0.5}, "prior log odds"),
        ({"reduced_prior": dist.Delta(torch.tensor(0.1))}, "model, guide or reduced priors"),
        ({"guide": "another"}, "model, guide or reduced priors"),
        ({"args": "more data"}, "model, guide or arguments"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_task_says_so_and_is_left_as_it_is(tmp_path, kept_state, change, what):
    path = tmp_path / "state.pt"
    path.write_bytes(kept_state)
    guide = fitted(seed=0) if change.get("guide") else fitted()
    x, y, _ = regression()
    args = (x, y + 1) if change.get("args") else (x, y)
    options = {key: value for key, value in change.items() if key not in ("reduced_prior", "guide", "args")}
    prior = change.get("reduced_prior", ZERO)
    with pytest.raises(ReductionError, match=rf"state\.pt was kept for another task: its {what} differ"):
        reduce_iteratively(model, guide, prior, args=args, checkpoint=path, **{**QUICK, **options})
    assert path.read_bytes() == kept_state


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_mistakes_are_named():
    guide = fitted()
    with pytest.raises(ReductionError, match="no latent site"):
        reduce_iteratively(model, guide, {"wieghts": ZERO})
    with pytest.raises(ReductionError, match="learning_rates must be positive"):
        reduce_iteratively(model, guide, ZERO, learning_rates=(-1.0,))
    with pytest.raises(ReductionError, match="groups is 'elements'"):
        reduce_iteratively(model, guide, ZERO, groups="elements")
    with pytest.raises(ReductionError, match="prior_log_odds has shape"):
        reduce_iteratively(model, guide, ZERO, prior_log_odds=torch.zeros(2))
    torch.set_default_dtype(torch.float64)
    flow = AutoIAFNormal(model)
    flow(*regression()[:2])
    with pytest.raises(ReductionError, match="no known density"):
        reduce_iteratively(model, flow, ZERO)
    x, y, _ = regression()
    draws = reduce_model(flow, {"weights": dist.Normal(torch.zeros(6), 0.999)}, num_samples=200).guide
    with pytest.raises(ReductionError, match="weighted draws cannot be fitted further"):
        reduce_iteratively(model, draws, ZERO)

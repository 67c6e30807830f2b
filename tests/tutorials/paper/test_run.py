# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import signal
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bmrs.pruning import load_compact
from tests.processes import needs_posix
from tests.tutorials.paper.paths import QUICK

for package in ("lightning", "jsonargparse", "sklearn", "torch_pruning"):
    pytest.importorskip(package)
pytestmark = pytest.mark.filterwarnings("ignore")

from tutorials.paper.cli import PaperCLI, main  # noqa: E402
from tutorials.paper.data import Images  # noqa: E402
from tutorials.paper.networks import build_network  # noqa: E402
from tutorials.paper.results import read_rows, run_folder  # noqa: E402
from tutorials.paper.sweep import Job  # noqa: E402

QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
SHORT = ["--trainer.max_epochs=3", "--start=1", "--fine_tune_epochs=1"]


def run(folder: Path, *options: str) -> int:
    return main(["run", f"--config={QUICK}", f"--results={folder}", *QUIET, *options])


def saved_network(folder: Path, key: str) -> nn.Module:
    """The compact network of a run, as it was saved."""
    data = Images("digits")
    whole = build_network("mlp-2x50", data.image_shape, data.num_classes)
    return load_compact(run_folder(folder, key) / "compact.pt", whole)


def saved_accuracy(folder: Path, key: str) -> float:
    data, net = Images("digits"), saved_network(folder, key)
    x, y = data.test[torch.arange(len(data.test))]
    return float((net.eval()(x).argmax(-1) == y).double().mean())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A run of each experiment."""
    folder = tmp_path_factory.mktemp("results")
    assert run(folder) == 0
    assert run(folder, "--experiment=post_training", "--fine_tune=masked", "--num_points=5") == 0
    return folder, {row["experiment"]: row for row in read_rows(folder)}


@pytest.mark.parametrize("experiment", ["continuous", "post_training"])
def test_the_row_tells_of_the_network_that_was_saved(rows, experiment):
    folder, row = rows[0], rows[1][experiment]
    assert row["accuracy"] == pytest.approx(saved_accuracy(folder, row["key"]), abs=1e-12)
    # Half the units go and more of the parameters, and the digits are read nearly as well as with all.
    assert row["units"] == 100 and sum(left for _, left in row["sites"].values()) == row["units_left"] < 75
    first, second = (left for _, left in row["sites"].values())
    assert row["parameters_left"] == 64 * first + first + first * second + second + 10 * second + 10
    assert row["parameters"] == 6310 and row["macs"] == 6200
    assert row["macs_left"] == 64 * first + first * second + 10 * second
    assert row["accuracy"] > 0.93 and row["accuracy_unpruned"] > 0.93


def test_units_go_in_training_after_the_start(rows):
    units = [left for _, left, _ in rows[1]["continuous"]["history"]]
    assert len(units) == 25 and units == sorted(units, reverse=True)
    assert units[9] == 100 > units[10] and units[-1] == rows[1]["continuous"]["units_left"]


def test_units_do_not_go_in_training_for_post_training(rows):
    units = [left for _, left, _ in rows[1]["post_training"]["history"]]
    # Trained on as it is, the masked network gets none of them back.
    assert units[:20] == 20 * [100] and set(units[20:]) == {rows[1]["post_training"]["units_left"]}


def test_curves(rows):
    row = rows[1]["post_training"]
    assert len(row["curves"]) == 8
    for curve in row["curves"].values():
        assert curve["share_removed"][0] == 0 and curve["share_removed"][-1] == 0.98
        for name in ("share_removed", "parameters_removed"):
            assert curve[name] == sorted(curve[name])
        assert curve["accuracy"][0] == pytest.approx(row["accuracy_unpruned"], abs=1e-12)
        # One unit a layer tells few digits from each other.
        assert curve["accuracy"][-1] < 0.6
    stops = {name: curve["stop"] for name, curve in row["curves"].items()}
    assert [name for name, stop in stops.items() if stop] == ["BMRS_N", "BMRS_U-8", "BMRS_U-4", "SNR"]
    assert stops["BMRS_N"]["accuracy"] == pytest.approx(row["accuracy_pruned"], abs=1e-12)
    assert stops["BMRS_N"]["units_removed"] == pytest.approx(1 - row["units_left"] / row["units"])


def test_what_the_odds_do(rows):
    row = rows[1]["post_training"]
    stops = [stop["units_removed"] for stop in row["odds_stops"]]
    # 0, then 0.919, then 1 nat: the larger the odds for removal, the more is removed.
    assert [stop["rule"] for stop in row["odds_stops"]] == ["exact, even odds", "paper's code", "1 nat"]
    assert stops == sorted(stops) and stops[0] < stops[2]
    assert stops[2] == row["curves"]["BMRS_N"]["stop"]["units_removed"]
    assert [entry["p1"] for entry in row["p1"]] == list(range(1, 21))
    # By either rule those go whose evidence says so, but for the last of a layer.
    evidence = [value for of_site in row["delta_evidence"].values() for value in of_site]
    assert len(evidence) == row["units"]
    for stop, odds in ((stops[0], 0.0), (stops[2], 1.0)):
        going = sum(value >= -odds for value in evidence)
        assert going - len(row["sites"]) <= round(stop * row["units"]) <= going


def test_rank_correlations(rows):
    matrix = rows[1]["post_training"]["rank_correlations"]
    for name, line in matrix.items():
        assert line[name] == pytest.approx(1)
        for other, value in line.items():
            assert value == pytest.approx(matrix[other][name]) and -1 <= value <= 1 + 1e-9
    assert matrix["BMRS_N"]["BMRS_U-8"] > 0.9


def test_what_is_done_is_not_done_again(rows, capsys):
    folder, before = rows[0], read_rows(rows[0])
    assert run(folder) == 0
    assert capsys.readouterr().out.startswith("done: ")
    assert read_rows(folder) == before


def test_other_settings_under_the_same_key(rows, capsys):
    folder, key = rows[0], rows[1]["continuous"]["key"]
    assert run(folder, "--model.kl_weight=2", f"--key={key}") == 1
    assert "model.kl_weight" in capsys.readouterr().err


@needs_posix
def test_a_killed_run_ends_as_an_uninterrupted_one(finish, tmp_path):
    options = [*SHORT, "--trainer.max_epochs=6"]
    death = '[{"class_path": "tests.tutorials.paper.witnesses.Death", "init_args": {"epoch": 4}}]'
    assert run(tmp_path, "--key=whole", *options) == 0
    assert finish("--key=killed", *options, f"--trainer.callbacks={death}")[0] == -signal.SIGKILL
    assert [row["key"] for row in read_rows(tmp_path)] == ["whole"]
    assert run(tmp_path, "--key=killed", *options) == 0
    whole, killed = read_rows(tmp_path)
    for name in ("accuracy", "accuracy_unpruned", "accuracy_pruned", "history", "sites", "parameters_left"):
        assert whole[name] == killed[name], name
    states = [saved_network(tmp_path, key).state_dict() for key in ("whole", "killed")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_killed_in_fine_tuning(tmp_path):
    """Fine-tuning is taken up where it was; training is not done again."""
    assert run(tmp_path, *SHORT, "--key=whole", "--fine_tune=masked") == 0
    whole = read_rows(tmp_path)[0]
    (tmp_path / "results.jsonl").unlink()
    folder = run_folder(tmp_path, "whole")
    written = (folder / "train.ckpt").stat().st_mtime_ns
    assert run(tmp_path, *SHORT, "--key=whole", "--fine_tune=masked") == 0
    again = read_rows(tmp_path)[0]
    assert (folder / "train.ckpt").stat().st_mtime_ns == written
    for name in ("accuracy", "accuracy_unpruned", "accuracy_pruned", "history", "sites", "parameters_left"):
        assert whole[name] == again[name], name


@pytest.mark.parametrize("odds", ["paper", "parameters", "macs", "0.5"])
def test_odds(tmp_path, odds):
    assert run(tmp_path, *SHORT, f"--odds={odds}", "--mean_odds=0.5") == 0
    expected = {"paper": "paper", "0.5": 0.5}.get(odds, f"{odds}, mean 0.5")
    assert read_rows(tmp_path)[0]["odds"] == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.kl_weight=layer_mean"], "layer_mean"),
        (["--model.kl_weight=3", "--model.kl_weight_by=parameters"], "3 by parameters"),
        (["--model.kl_weight=3", "--model.kl_weight_by=macs", "--model.warm_up_epochs=0"], "3 by macs"),
        (
            ["--model.kl_weight=3", "--model.kl_weight_by=parameters", "--model.kl_weight_power=0.5"],
            "3 by parameters^0.5",
        ),
    ],
)
def test_weights_of_the_divergence(tmp_path, options, told):
    assert run(tmp_path, *SHORT, *options) == 0
    assert read_rows(tmp_path)[0]["kl_weight"] == told


@pytest.mark.parametrize("criterion", ["BMRS_U-8", "PosteriorMean"])
def test_criteria_that_decide(tmp_path, criterion):
    # By the paper's rules, of which a threshold of the posterior mean is one.
    assert run(tmp_path, *SHORT, f"--criterion={criterion}", "--odds=paper") == 0
    assert read_rows(tmp_path)[0]["criterion"] == criterion


@pytest.mark.parametrize("criterion", ["WeightNorm", "Saliency-fisher"])
def test_criteria_that_are_told_how_many(tmp_path, criterion):
    assert run(tmp_path, *SHORT, f"--criterion={criterion}", "--fraction=0.4") == 0
    assert read_rows(tmp_path)[0]["units_left"] == 60


def test_without_noise(tmp_path):
    assert run(tmp_path, *SHORT, "--criterion=null") == 0
    row = read_rows(tmp_path)[0]
    assert row["criterion"] is None and row["parameters_left"] == row["parameters"] == 6310
    assert row["accuracy"] > 0.8 and row["units_left"] == row["units"] and row["accuracy_pruned"] is None


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["run", f"--config={QUICK}", f"--results={tmp_path}", *SHORT, "--key=a", QUIET[1]]) == 0
    assert dist.is_validation_enabled() is __debug__, "as it was before the run"
    events = EventAccumulator(str(run_folder(tmp_path, "a") / "train"))
    events.Reload()
    assert {"loss", "validation_accuracy", "units"} <= set(events.Tags()["scalars"])
    logged = [event.value for event in events.Scalars("validation_accuracy")]
    history = read_rows(tmp_path)[0]["history"]
    assert logged == pytest.approx([accuracy for _, _, accuracy in history[: len(logged)]])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data.name=digit"], "did you mean 'digits'"),
        (["--model.network=lenet5"], "--data.size 32"),
        (["--model.network=mpl"], "did you mean 'mlp-6x50'"),
        (["--criterion=BMRS"], "BMRS_N, BMRS_U-8"),
        (["--criterion=WeightNorm"], "--fraction"),
        (["--model.kl_weight=layer_mean", "--model.kl_weight_by=macs"], "layer_mean is for all units"),
        (["--model.lr=-1"], "positive"),
        (["--every=0"], "every_n_epochs"),
        (["--model.lr=1e38"], "the loss is nan in epoch 0"),
    ],
)
def test_mistakes(tmp_path, capsys, options, says):
    assert run(tmp_path, *SHORT, *options) == 1
    assert says in capsys.readouterr().err
    assert read_rows(tmp_path) == []


@pytest.mark.parametrize("options", [["--odds=large"], ["--model.schedule=linear"], ["--nonsense=1"]])
def test_options_that_are_none(tmp_path, capsys, options):
    with pytest.raises(SystemExit):
        run(tmp_path, *options)
    assert options[0].removeprefix("--").split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["walk"]])
def test_usage(capsys, arguments):
    assert main(arguments) == (0 if arguments == ["--help"] else 2)
    assert "sweep" in capsys.readouterr().out


@pytest.mark.parametrize("settings", ["paper", "compress", "recommended", "released", "released_images", "quick"])
def test_a_run_is_known_by_the_key_that_sweeps_give(settings):
    path = QUICK.with_name(f"{settings}.yaml")
    overrides = (("trainer.max_epochs", 7), ("model.lr", 0.5))
    job = Job("post_training", path, "cifar10", "lenet5", "SNR", 3, overrides)
    _, _, _, _, *options = job.command(Path("results"))
    key = options.index("--key")
    assert PaperCLI(options).key == PaperCLI(options[:key]).key == job.key


def test_the_papers_settings():
    config = PaperCLI([f"--config={QUICK.with_name('paper.yaml')}"]).config
    assert (config.model.lr, config.model.noise_lr, config.model.kl_weight) == (8.5e-4, 8.5e-4, "layer_mean")
    assert (config.data.batch_size, config.trainer.max_epochs, config.fine_tune_epochs) == (128, 50, 10)
    assert config.model.per_example and config.odds == "paper" and math.isclose(config.data.validation_share, 0.2)
    assert (config.tested, config.start, config.every) == ("best", 0, 1)


def test_as_many_units_go_as_by_another_criterion_and_the_best_epoch_is_tested(tmp_path, capsys):
    options = ["--trainer.max_epochs=14", "--fine_tune=masked", "--fine_tune_epochs=3", "--tested=best"]
    followed = [*options, "--criterion=WeightNorm", "--as_many_as=BMRS_N"]
    assert run(tmp_path, *followed) == 1
    assert "no row yet" in capsys.readouterr().err
    assert run(tmp_path, *options) == 0
    assert run(tmp_path, *followed) == 0
    first, second = read_rows(tmp_path)
    assert [units for _, units, _ in first["history"]] == [units for _, units, _ in second["history"]]
    assert first["units_left"] == second["units_left"] < 100 and first["sites"] != second["sites"]
    for row in (first, second):
        validation = [accuracy for epoch, _, accuracy in row["history"] if epoch >= 14]
        assert row["validation_accuracy"] == pytest.approx(max(validation), abs=1e-6)


def test_the_project_s_own_default(tmp_path):
    assert run(tmp_path, "--criterion=compress", "--trainer.max_epochs=3") == 0
    [row] = read_rows(tmp_path)
    first, second = (left for _, left in row["sites"].values())
    assert row["parameters_left"] == 64 * first + first + first * second + second + 10 * second + 10 <= 6310
    assert row["units_left"] == first + second and row["lr"] is None and row["epochs"] == 3
    assert row["accuracy"] > 0.5 and row["cpu_seconds"] > 0


def test_curves_with_training_after_each_removal(tmp_path):
    options = ["--experiment=post_training", "--num_points=4", '--compared=["SNR", "WeightNorm"]']
    for epochs in (0, 1):
        assert run(tmp_path, *SHORT, *options, f"--epochs_between={epochs}") == 0
    without, tuned = (row["curves"] for row in read_rows(tmp_path))
    assert list(without) == list(tuned) == ["SNR", "WeightNorm"]
    for name, curve in tuned.items():
        assert curve["share_removed"] == pytest.approx([0, 0.33, 0.65, 0.98])
        assert curve["accuracy"][0] == without[name]["accuracy"][0]
        # Two thirds of the units are gone.
        assert curve["accuracy"][2] > without[name]["accuracy"][2]
    assert tuned["WeightNorm"]["stop"] is None


@pytest.mark.parametrize("options", [["--criterion=SNR"], ["--experiment=post_training"], ["--fraction=0.5"]])
def test_what_cannot_follow_another_run(tmp_path, options):
    assert run(tmp_path, *SHORT, "--as_many_as=BMRS_N", *options) == 1
    assert read_rows(tmp_path) == []

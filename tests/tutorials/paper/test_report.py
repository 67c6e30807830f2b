# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

import statistics

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pyro_bmrs import ReductionError
from tests.tutorials.paper.paths import CONFIGS
from tutorials.paper import report as report_module
from tutorials.paper.cli import main
from tutorials.paper.figures import (
    accuracy_by_bits,
    accuracy_by_bits_in_training,
    accuracy_by_size,
    accuracy_curves,
    rank_correlation_map,
)
from tutorials.paper.networks import build_network
from tutorials.paper.released import COUNT, released_count, released_table
from tutorials.paper.report import missing_parts, report
from tutorials.paper.results import append_row
from tutorials.paper.sweep import read_jobs, sweep
from tutorials.paper.table1 import BMRS, PUBLISHED, agreement, domination_table, paper_table
from tutorials.paper.tables import (
    Unpruned,
    continuous_table,
    correlation_table,
    decision_table,
    evidence_table,
    markdown,
    ordered,
    stop_table,
    time_table,
)

CRITERIA = ["SNR", "BMRS_N", "WeightNorm"]
ACCURACIES = {0: 0.95, 1: 0.96, 2: 0.985}


def continuous_row(seed, *, criterion="BMRS_N", settings="released", data="mnist", network="mlp-6x50", **values):
    return {
        "schema": 1,
        "key": f"continuous-{settings}-{data}-{network}-{criterion}-{seed}",
        "experiment": "continuous",
        "settings": settings,
        "data": data,
        "network": network,
        "criterion": criterion,
        "seed": seed,
        "epochs": 50,
        "fine_tune_epochs": 10,
        "odds": "paper",
        "units": 300,
        "units_left": 60 + seed,
        "sites": {**{name: [50, 50] for name in "13579"}, "11": [50, 25]},
        "parameters": 1000,
        "parameters_left": 400,
        "macs": 800,
        "macs_left": 200,
        "accuracy": ACCURACIES[seed],
        **values,
    }


def curve(name, seed):
    shares = np.linspace(0, 0.98, 8)
    accuracy = (0.9 - 0.01 * seed) * (1 - shares**4)
    stop = {"units_removed": 0.7 + 0.1 * seed, "parameters_removed": 0.5, "accuracy": 0.8}
    return {"share_removed": shares, "accuracy": accuracy, "stop": None if name == "WeightNorm" else stop}


def post_training_row(seed, **values):
    rules = {"exact, even odds": 0.02, "paper's code": 0.7, "1 nat": 0.71}
    stop = {"parameters_removed": 0.5, "accuracy": 0.8}
    correlations = {a: {b: 1.0 if a == b else 0.1 * (seed + 1) for b in CRITERIA} for a in CRITERIA}
    return continuous_row(seed) | {
        "key": f"post_training-{seed}",
        "experiment": "post_training",
        "accuracy_unpruned": 0.97 + 0.01 * seed,
        "curves": {name: curve(name, seed) for name in CRITERIA},
        "rank_correlations": correlations,
        "p1": [{"p1": p1, "units_removed": 0.9 - p1 / 100, **stop} for p1 in range(1, 21)],
        "odds_stops": [{"rule": rule, "units_removed": removed, **stop} for rule, removed in rules.items()],
        "delta_evidence": {"1": [-0.05, -0.05, 0.0, -2.0], "3": [-0.5, -30.0, -31.0, -1e3 - seed]},
        **values,
    }


def rows():
    return [
        *(continuous_row(seed, criterion=criterion) for criterion in ("SNR", "BMRS_N") for seed in range(3)),
        continuous_row(0, settings="recommended"),
        *(post_training_row(seed) for seed in range(2)),
    ]


def test_means_and_deviations_over_seeds():
    table = continuous_table(rows())
    assert list(table["criterion"]) == ["BMRS_N", "SNR", "BMRS_N"]
    assert list(table["settings"]) == ["released", "released", "recommended"]
    assert list(table["seeds"]) == [3, 3, 1]
    assert set(table["epochs"]) == {"50 + 10"}
    first, alone = table.iloc[0], table.iloc[2]
    percents = [100 * accuracy for accuracy in ACCURACIES.values()]
    assert first["accuracy"] == pytest.approx(statistics.mean(percents))
    assert first["accuracy sd"] == pytest.approx(statistics.stdev(percents))
    assert first["units removed"] == pytest.approx(100 * (1 - 61 / 300))
    assert first["units removed sd"] == pytest.approx(100 / 300)
    assert (first["parameters removed"], first["parameters removed sd"]) == (pytest.approx(60), 0)
    assert first["MACs removed"] == pytest.approx(75)
    assert alone["accuracy"] == pytest.approx(95) and pd.isna(alone["accuracy sd"])
    # There is no run without noise.
    assert pd.isna(first["unpruned"]) and pd.isna(alone["unpruned"])


def test_runs_of_other_setups_are_not_averaged():
    table = continuous_table([continuous_row(0), continuous_row(1, epochs=20), continuous_row(2, kl_weight=30.0)])
    assert list(table["seeds"]) == [1, 1, 1]


def test_missing_values_are_no_zeros():
    table = continuous_table([continuous_row(0, accuracy=None, macs=None), continuous_row(1, macs=None)])
    assert table.loc[0, "accuracy"] == pytest.approx(96)
    assert pd.isna(table.loc[0, "MACs removed"])
    assert "| – |" in markdown(table, ["criterion", "MACs removed", "accuracy"])


def test_the_accuracy_without_pruning_is_that_of_runs_without_noise():
    after = [post_training_row(seed) for seed in range(2)]
    assert Unpruned(after).means == {}
    without = [continuous_row(seed, criterion=None, accuracy=accuracy) for seed, accuracy in enumerate((0.98, 1.0))]
    unpruned = Unpruned([*after, *without])
    assert unpruned.means == {("mnist", "mlp-6x50", "released"): pytest.approx(99)}
    # Of the same images; the paper's own networks see others.
    assert unpruned.get(("mnist", "mlp-6x50", "recommended")) == pytest.approx(99)
    assert unpruned.get(("mnist", "mlp-6x50", "paper")) is None
    table = continuous_table([*rows(), *without])
    assert list(table["criterion"]) == ["BMRS_N", "SNR", "none", "BMRS_N"]
    assert list(table["unpruned"]) == pytest.approx([99, 99, 99, 99])


def test_where_criteria_and_rules_stop():
    stops = stop_table(rows())
    assert list(stops["criterion"]) == ["BMRS_N", "SNR"]
    assert stops.loc[0, "units removed"] == pytest.approx(75)
    assert stops.loc[0, "units removed sd"] == pytest.approx(100 * 0.1 / np.sqrt(2))
    decisions = decision_table(rows())
    assert list(decisions["rule"]) == ["paper's code", "1 nat", "exact, even odds"]
    assert list(decisions["units removed"]) == pytest.approx([70, 71, 2])


def test_units_are_counted_by_their_evidence():
    table = evidence_table([*rows(), post_training_row(0, network="lenet5")])
    counts = {"below −30": 2, "−30 to −1": 2, "−1 to −0.1": 1, "−0.1 to 0": 2, "0 or more": 1}
    assert list(table["network"]) == ["mlp-6x50", "lenet5"] and list(table["seeds"]) == [2, 1]
    assert table.loc[0, list(counts)].to_dict() == {name: 2 * count for name, count in counts.items()}
    assert table.loc[1, list(counts)].to_dict() == counts
    assert evidence_table([continuous_row(0)]).empty


def mask_as_released(net, sites):
    """Sets the weights to 0 that the released code does, and counts zeros, and the noise's parameters."""
    layers = {name: layer for name, layer in net.named_modules() if hasattr(layer, "weight")}
    names = list(layers)
    for layer in layers.values():
        torch.nn.init.ones_(layer.weight)
    for name, (units, left) in sites.items():
        layers[name].weight.data[left:] = 0
        after = layers[names[names.index(name) + 1]].weight.data
        if after.shape[1] == units:
            after[:, left:] = 0
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers.values())
    total = sum(parameter.numel() for parameter in net.parameters())
    noise = [2 * sum(counts) for counts in zip(*((units - left, units) for units, left in sites.values()))]
    return 100 * (zeros + noise[0]) / (total + noise[1])


@pytest.mark.parametrize(
    ("network", "left"),
    [
        ("mlp-6x50", [24, 8, 6, 6, 6, 9]),
        ("mlp-6x50", 6 * [50]),
        ("mlp-6x50", 6 * [0]),
        ("lenet5", [1, 4, 19, 9]),
        ("lenet5", [6, 16, 1, 84]),
    ],
)
def test_parameters_as_the_released_code_counts_them(network, left):
    net = build_network(network, (1, 32, 32), 10)
    layers = [name for name, layer in net.named_modules() if hasattr(layer, "weight")][:-1]
    sites = {name: [len(net.get_submodule(name).weight), count] for name, count in zip(layers, left, strict=True)}
    assert released_count(network, sites) == pytest.approx(mask_as_released(net, sites))


def test_beside_the_released_code():
    lenet5 = continuous_row(0, network="lenet5", sites={"0": [6, 1], "3": [16, 4], "7": [120, 19], "9": [84, 9]})
    table = released_table([*rows(), continuous_row(0, data="cifar10"), lenet5])
    lines = {
        (line["network"], line["criterion"], line["by"]): (
            *(None if pd.isna(line[name]) else line[name] for name in ("parameters removed", COUNT)),
            line["accuracy"],
        )
        for line in table.to_dict("records")
    }
    # Half of the last layer: 25 of its 50 units, with 50 weights in and 10 out, and two parameters of their noise.
    counted = pytest.approx(100 * 25 * (50 + 10 + 2) / (64510 + 600))
    ours = (pytest.approx(60), counted, pytest.approx(100 * statistics.mean(ACCURACIES.values())))
    assert lines == {
        ("mlp-6x50", "BMRS_N", "released code"): (None, 54.6, 95.3),
        ("mlp-6x50", "BMRS_N", "this program"): ours,
        ("mlp-6x50", "BMRS_U-8", "released code"): (None, 56.2, 95.5),
        ("mlp-6x50", "SNR", "released code"): (None, 54.6, 95.6),
        ("mlp-6x50", "SNR", "this program"): ours,
        ("lenet5", "BMRS_N", "released code"): (None, 87.2, 95.8),
        ("lenet5", "BMRS_N", "this program"): (pytest.approx(60), pytest.approx(86.67, abs=0.005), pytest.approx(95)),
    }
    assert released_table([continuous_row(0, data="cifar10")]).empty
    # Networks that the released code was not run with need not fit its images; other setups are not averaged.
    of_28 = continuous_row(0, network="lenet5_caffe", sites={})
    table = released_table([*rows(), of_28, continuous_row(0, lr=0.5)])
    assert list(table[(table["criterion"] == "BMRS_N") & (table["by"] == "this program")]["seeds"]) == [3, 1]


def paper_rows(*, settings="paper", criterion="BMRS_N", accuracies=(0.849, 0.851), left=(10, 12), **values):
    """Of Fashion-MNIST's network, of whose layers of 150 units so many are left in the first, and six in the second."""
    return [
        continuous_row(
            0,
            criterion=criterion,
            settings=settings,
            data="fashion_mnist",
            network="mlp-2x150",
            key=f"{settings}-{criterion}-{seed}",
            accuracy=accuracy,
            sites={"1": [150, count], "3": [150, 6]},
            **values,
        )
        | {"seed": seed}
        for seed, (accuracy, count) in enumerate(zip(accuracies, left))
    ]


def test_table_1_beside_the_paper_s():
    table = paper_table(paper_rows()).set_index(["data", "network", "criterion"])
    assert len(table) == 6 * 8 and (table["seeds"] > 0).sum() == 1
    line = table.loc[("fashion_mnist", "mlp-2x150", "BMRS_N")]
    # 1024 x 150, 150 x 150 and 150 x 10 weights, 310 biases, and two parameters of noise for each of 300 units.
    total = 1024 * 150 + 150 * 150 + 1500 + 310 + 600
    removed = [100 * (total - 310 - (1024 * n + n * 6 + 60 + 2 * (n + 6))) / total for n in (10, 12)]
    assert line[COUNT] == pytest.approx(statistics.mean(removed))
    assert line[f"{COUNT} sd"] == pytest.approx(statistics.stdev(removed))
    assert (line["accuracy"], line["paper's accuracy"], line[f"paper's {COUNT}"]) == (pytest.approx(85), 84.99, 93.20)
    assert line["agrees"] and pd.isna(table.loc[("mnist", "lenet5", "SNR"), "agrees"])
    assert agreement(table.reset_index()).endswith("1 of 18 lines; 17 have no run yet.")


@pytest.mark.parametrize("off", [{"accuracies": (0.80, 0.81)}, {"left": (40, 42)}])
def test_either_column_may_differ_from_the_paper_s(off):
    table = paper_table(paper_rows(**off))
    assert list(table["agrees"].dropna()) == [False]
    assert agreement(table).endswith("0 of 18 lines; 17 have no run yet.")


def test_the_published_figures_are_complete():
    for published in PUBLISHED.values():
        assert set(published) == {"none", "WeightNorm", "PosteriorMean", "SNR", *BMRS}
        assert published["none"].removed == 0
        for criterion in BMRS:
            assert all(figure is not None for figure in published[criterion])


@pytest.mark.parametrize(
    ("default", "dominates"),
    [
        ({"accuracies": (0.86,), "left": (8,)}, True),
        ({"accuracies": (0.848,), "left": (8,)}, True),
        ({"accuracies": (0.83,), "left": (8,)}, False),
        ({"accuracies": (0.88,), "left": (30,)}, False),
    ],
)
def test_whether_the_default_dominates(default, dominates):
    rows = [*paper_rows(), *paper_rows(settings="compress", criterion="compress", **default)]
    table = domination_table(paper_table(rows))
    assert list(table["dominates"]) == [dominates]
    assert domination_table(paper_table(paper_rows())).empty


def test_times_are_ratios_of_one_machine():
    times = {"step_milliseconds": {"plain": 2.0, "noisy": 5.0, "compact": 1.0}, "milliseconds": 4.0}
    row = continuous_row(0, **times, milliseconds_left=1.0, cpu_seconds=90.0)
    [line] = time_table([row, continuous_row(1), continuous_row(2, criterion=None, **times)]).to_dict("records")
    assert (line["with noise"], line["pruned"], line["inference, pruned"], line["CPU minutes"]) == (2.5, 0.5, 0.25, 1.5)


def test_rank_correlations_of_the_evidence_with_other_criteria():
    table = correlation_table([*rows(), continuous_row(0)])
    assert list(zip(table["criterion"], table["with"])) == [("BMRS_N", "SNR"), ("BMRS_N", "WeightNorm")]
    assert list(table["correlation"]) == [pytest.approx(0.15)] * 2 and list(table["seeds"]) == [2, 2]


def test_the_order_of_names():
    names = ["SNR", "another", "BMRS_U-4", "BMRS_N", "SNR", "a third"]
    assert ordered(names) == ["BMRS_N", "BMRS_U-4", "SNR", "a third", "another"]


def test_a_curve_is_the_mean_over_seeds_and_its_marker_where_it_stops():
    figure = accuracy_curves([post_training_row(seed) for seed in range(2)])
    ax = figure.axes[0]
    curves = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert len(curves) == len(CRITERIA)
    shares, accuracy = curves[0].get_data()
    assert shares.max() <= 98
    knots = np.linspace(0, 98, 8)
    exact = np.interp(shares, knots, 100 * 0.895 * (1 - (knots / 100) ** 4))
    np.testing.assert_allclose(accuracy, exact)
    stops = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    assert stops == [(pytest.approx(75), pytest.approx(80))] * 2
    [legend] = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["BMRS_N", "SNR", "WeightNorm"]


def test_correlations_are_means_over_seeds():
    figure = rank_correlation_map([post_training_row(seed) for seed in range(2)])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["1.00", "0.15", "0.15", "0.15", "1.00", "0.15", "0.15", "0.15", "1.00"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["BMRS_N", "SNR", "WeightNorm"]


def test_points_by_bits_and_by_size():
    lines = accuracy_by_bits([post_training_row(0)]).axes[0].lines
    np.testing.assert_allclose(lines[1].get_ydata(), 90 - np.arange(1, 21))
    figure = accuracy_by_size(rows())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["BMRS_N, released, 3 seeds", "SNR, released, 3 seeds", "BMRS_N, recommended, 1 seed"]
    figure = accuracy_by_size([*rows(), continuous_row(0, criterion=None)])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    pruned = ["BMRS_N, released, 3 seeds", "SNR, released, 3 seeds", "BMRS_N, recommended, 1 seed"]
    assert labels == ["Without noise", *pruned]


def test_points_by_bits_of_networks_trained_with_them():
    bits = [
        continuous_row(seed, criterion=f"BMRS_U-{bits}", units_left=300 - 10 * bits)
        for bits in (8, 4, 2)
        for seed in (0, 1)
    ]
    lines = accuracy_by_bits_in_training([*bits, continuous_row(0)]).axes[0].lines
    np.testing.assert_allclose(lines[0].get_data(), [[2, 4, 8], 3 * [95.5]])
    np.testing.assert_allclose(lines[1].get_ydata(), [20 / 3, 40 / 3, 80 / 3])
    assert accuracy_by_bits_in_training(bits[:2]) is None


def test_where_each_seed_stops():
    panel = accuracy_curves([post_training_row(seed) for seed in range(3)]).axes[1]
    marks = [line.get_xdata() for line in panel.lines if line.get_linestyle() == "None"]
    assert [list(mark) for mark in marks] == [pytest.approx([70, 80, 90])] * 2
    # One and two standard deviations around each.
    assert len(panel.lines) == 2 * 3
    assert len(accuracy_curves([post_training_row(seed) for seed in range(2)]).axes[1].lines) == 2


def test_no_figure_of_nothing():
    bare = [continuous_row(0)]
    assert accuracy_curves(bare) is rank_correlation_map(bare) is accuracy_by_bits(bare) is None
    assert accuracy_by_size([post_training_row(0)]) is None


@pytest.fixture
def configs(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(report_module, "_CONFIGS", folder)
    return folder


def write_sweep(folder):
    (folder / "paper.yaml").touch()
    names = "experiment: continuous, settings: paper, data: mnist, network: mlp-6x50"
    grid = f"{{{names}, criterion: [BMRS_N, SNR], seed: [0, 1]}}"
    path = folder / "sweep-some.yaml"
    path.write_text(f"grids:\n  - {grid}\n")
    return read_jobs(path)


def test_what_is_missing_of_a_sweep_that_was_begun(configs):
    jobs = write_sweep(configs)
    begun = [continuous_row(0, key=jobs[0].key), continuous_row(1, key=jobs[1].key)]
    assert missing_parts(begun) == ["sweep-some.yaml: 2 runs of mnist, mlp-6x50, paper, continuous, SNR"]
    whole = [*begun, *(continuous_row(0, key=job.key) for job in jobs[2:])]
    assert missing_parts(whole) == missing_parts([continuous_row(0, key="of no sweep")]) == []


def test_what_is_missing_of_runs(configs):
    row = post_training_row(0, accuracy=None, curves=None, p1=[])
    assert missing_parts([row]) == ["post_training-0: accuracy, curves, p1"]


def test_a_report(tmp_path, configs, capsys):
    results, output = tmp_path / "results", tmp_path / "new" / "output"
    for row in rows():
        append_row(results, row)
    append_row(results, post_training_row(2, key="broken", curves=None))
    report(results, output)
    text = (output / "report.md").read_text()
    assert "| released | BMRS_N | 50 + 10 | 3 | – | 96.5 ± 1.8 | 79.7 ± 0.3 | 60.0 ± 0.0 | 75.0 ± 0.0 |" in text
    assert "- broken: curves" in text
    assert "missing: broken: curves" in capsys.readouterr().out
    figures = sorted(path.name for path in output.glob("*.png"))
    of_runs = [f"{name}-mnist-mlp-6x50-released.png" for name in ("bits", "correlations", "curves")]
    assert figures == sorted(["continuous-mnist-mlp-6x50.png", *of_runs])
    for name in figures:
        assert f"]({name})" in text
        assert (output / name).stat().st_size < 100_000
        with Image.open(output / name) as image:
            assert image.width > 300
    assert sorted(path.stem for path in output.glob("*.csv")) == [
        *("correlations", "decisions", "evidence", "released", "stops", "summary")
    ]
    table = pd.read_csv(output / "summary.csv")
    expected = continuous_table([*rows(), post_training_row(2)])
    np.testing.assert_allclose(table["accuracy"], expected["accuracy"], atol=1e-4)


def test_a_report_of_one_run(tmp_path, configs):
    append_row(tmp_path, continuous_row(0, data="digits"))
    report(tmp_path, tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == ["continuous-digits-mlp-6x50.png"]
    assert (tmp_path / "report.md").read_text().endswith("## Missing\n\n- nothing\n")


@pytest.mark.filterwarnings("ignore")  # of Lightning and what it calls
def test_a_sweep_and_its_report(tmp_path, capfd):
    config, results, output = tmp_path / "sweep.yaml", tmp_path / "results", tmp_path / "output"
    (tmp_path / "quick.yaml").write_text((CONFIGS / "quick.yaml").read_text())
    config.write_text(
        "{data: digits, network: mlp-2x50, settings: quick, criterion: BMRS_N, seed: 0, grids: [{experiment: "
        "[continuous, post_training], overrides: {trainer.max_epochs: 2, fine_tune_epochs: 1, num_points: 4}}]}"
    )
    # Jobs are processes; here this one, which has loaded what each would.
    assert [main(job.command(results)[3:]) for job in read_jobs(config)] == [0, 0]
    capfd.readouterr()
    report(results, output)
    assert "missing" not in capfd.readouterr().out
    written = sorted(path.stem for path in output.iterdir())
    of_run = [f"{name}-digits-mlp-2x50-quick" for name in ("bits", "correlations", "curves")]
    tables = ["correlations", "decisions", "evidence", "stops", "summary", "times"]
    assert written == sorted(["report", *tables, "continuous-digits-mlp-2x50", *of_run])
    assert "| quick | BMRS_N | 2 + 1 | 1 |" in (output / "report.md").read_text()
    # All is done: nothing is run again.
    assert sweep(config, results, dry_run=True) == 0
    assert capfd.readouterr().out == ""


def test_no_results_no_report(tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path / "nowhere"), "--output", str(tmp_path / "output")]) == 1
    assert "error: there are no results" in capsys.readouterr().err
    with pytest.raises(ReductionError, match=r"no results in .*results\.jsonl"):
        report(tmp_path / "nowhere", tmp_path / "output")
    assert not (tmp_path / "output").exists()

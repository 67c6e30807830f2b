# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Which measurements of a tumour tell whether it is malignant?

The breast cancer study (Wolberg, Street and Mangasarian 1995; it ships with scikit-learn) has the mean and the worst
value of ten properties of the cell nuclei in 569 tumours. These twenty covariates are strongly correlated: radius,
perimeter and area say nearly the same. A logistic regression on all of them is fitted once by SVI, with a full-rank
normal guide. Each subset of the covariates is then a reduced model, in which the coefficients of the others are zero:
2^20, more than a million models, and the one fit tells the log evidence of each.

How far is that to be trusted? A sample of the models is fitted again: SVI goes on under the reduced model, from the
reduced posterior, until it has found the best guide for this model. The difference of its ELBO and the full model's is
set beside the change in log evidence that the one fit predicted. Half of the sample is drawn from the posterior over
the models, which are those that matter, and half from all models alike. Beside that, inclusion probabilities are had
with the density of the model itself at some thousand models drawn, which is a matter of seconds.

Run it with ``python tutorials/variable_selection.py``; ``--help`` lists what can be set.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.optim import ClippedAdam
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from tqdm import trange

from pyro_bmrs import ModelSpace, search_models

ZERO = dist.Delta(torch.tensor(0.0))


def load_study() -> tuple[list[str], Tensor, Tensor]:
    """The names of the covariates, the covariates (standardised), and 1 for a malignant tumour, else 0."""
    study = load_breast_cancer()
    wanted = [place for place, name in enumerate(study.feature_names) if name.startswith(("mean", "worst"))]
    covariates = torch.as_tensor(study.data[:, wanted], dtype=torch.get_default_dtype())
    malignant = 1.0 - torch.as_tensor(study.target, dtype=torch.get_default_dtype())
    return [str(study.feature_names[place]) for place in wanted], _standardised(covariates), malignant


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)


def regression(covariates: Tensor, malignant: Tensor) -> None:
    """Logistic regression; the prior allows odds to change by a factor of e^2 with a standard deviation."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([covariates.shape[1]]).to_event(1))
    with pyro.plate("tumours", len(covariates)):
        logits = intercept + (covariates * weights).sum(-1)
        pyro.sample("malignant", dist.Bernoulli(logits=logits), obs=malignant)


def fit(covariates: Tensor, malignant: Tensor, steps: int) -> AutoMultivariateNormal:
    """The fitted guide of the full model."""
    guide = AutoMultivariateNormal(regression, init_scale=0.2)
    optimise(regression, guide, covariates, malignant, steps, lr=0.1)
    return guide


def optimise(model: Any, guide: Any, covariates: Tensor, malignant: Tensor, steps: int, lr: float) -> None:
    """SVI with a learning rate that falls a hundredfold on the way."""
    svi = SVI(model, guide, ClippedAdam({"lr": lr, "lrd": 0.01 ** (1 / steps)}), _elbo(8))
    for _ in range(steps):
        svi.step(covariates, malignant)


def elbo(model: Any, guide: Any, covariates: Tensor, malignant: Tensor) -> float:
    """The ELBO by 4,000 draws."""
    with torch.no_grad():
        return -_elbo(4000).loss(model, guide, covariates, malignant)


def _elbo(num_particles: int) -> Trace_ELBO:
    return Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True)


def by_property(names: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """The mean and the worst value of each property as one group."""
    groups: dict[str, dict[str, list[int]]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name.split(" ", 1)[1], {"weights": []})["weights"].append(place)
    return groups


def sample_models(space: ModelSpace, count: int) -> tuple[Tensor, Tensor]:
    """Which covariates some models leave out, and what the one fit says of each; half of them by their probability."""
    top = space.top(space.num_models)
    drawn = torch.multinomial(top.probability, count // 2)
    chosen = torch.cat([drawn, torch.randint(space.num_models, (count - count // 2,))])
    return top.reduced[chosen], top.delta_evidence[chosen]


def refit(
    space: ModelSpace, left_out: Tensor, covariates: Tensor, malignant: Tensor, steps: int
) -> tuple[list[float], float]:
    """The ELBO of each of some models after refitting, and the seconds that a model takes."""
    found = []
    start = time.perf_counter()
    for row in trange(len(left_out), desc="refitting"):
        reduction = space.reduction(left_out[row])
        optimise(reduction.model, reduction.guide, covariates, malignant, steps, lr=0.03)
        found.append(elbo(reduction.model, reduction.guide, covariates, malignant))
    return found, (time.perf_counter() - start) / len(left_out)


def draw(table: pd.DataFrame) -> Figure:
    """What the one fit predicted against what refitting finds."""
    figure, ax = plt.subplots(figsize=(5.0, 4.2), layout="constrained")
    for sample, rows in table.groupby("sample", sort=False):
        ax.scatter(rows["refitted"], rows["delta_evidence"], label=f"models {sample}")
    ends = [
        table[["refitted", "delta_evidence"]].to_numpy().min(),
        table[["refitted", "delta_evidence"]].to_numpy().max(),
    ]
    ax.plot(ends, ends, color="black", linewidth=0.8)
    ax.set_xlabel("difference in ELBO after refitting (nats)")
    ax.set_ylabel("change in log evidence from the one fit (nats)")
    ax.legend(frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> tuple[ModelSpace, pd.DataFrame]:
    """Fits, searches, refits, prints the tables, saves the figures. Returns the models and the table of the refits."""
    parser = argparse.ArgumentParser(description="Which measurements of a tumour tell whether it is malignant?")
    parser.add_argument(
        "--output", default="variable_selection", help="what the figures' files begin with (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=1200, help="steps of SVI, a sixth of them to refit (%(default)s)")
    parser.add_argument("--refits", type=int, default=24, help="how many models to fit again (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of SVI and of the sample of models (%(default)s)")
    options = parser.parse_args(arguments)

    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    names, covariates, malignant = load_study()
    guide = fit(covariates, malignant, options.steps)

    start = time.perf_counter()
    space = search_models(guide, {"weights": ZERO}, refine=False)
    seconds = time.perf_counter() - start
    print(
        f"{space.num_models:,} models in {seconds:.2f} s, {1e6 * seconds / space.num_models:.2f} microseconds each.\n"
    )
    refined = space.refine()
    summary = space.summary().set_axis(names)[["mean", "sd", "delta_evidence", "inclusion_probability"]]
    summary["by the density"] = refined.summary()["inclusion_probability"].to_numpy()
    print(
        "The change in log evidence (nats) without a covariate, alone, and the probability that it belongs: read off "
        f"the fit, and by the density of the model at {refined.num_models:,} models drawn:\n"
    )
    print(summary.to_string(float_format="{:.3f}".format))

    groups = search_models(guide, {"weights": ZERO}, groups=by_property(names))
    print("\nThe same for a property as a whole, its mean and its worst value together:\n")
    table = groups.summary().drop_duplicates("group").set_index("group")[["delta_evidence", "inclusion_probability"]]
    print(table.to_string(float_format="{:.3f}".format, index_names=False))

    left_out, predicted = sample_models(space, options.refits)
    found, per_model = refit(space, left_out, covariates, malignant, options.steps // 6)
    full = elbo(regression, guide, covariates, malignant)
    half = options.refits // 2
    refits = pd.DataFrame(
        {
            "sample": ["drawn by probability"] * half + ["drawn at random"] * (options.refits - half),
            "covariates": (~left_out).sum(-1).numpy(),
            "delta_evidence": predicted.numpy(),
            "refitted": [value - full for value in found],
        }
    )
    print(f"\nThe same by refitting, {per_model:.1f} s a model:\n")
    print(refits.to_string(index=False, float_format="{:.2f}".format))
    print(f"\nRank correlation: {rank_correlation(refits):.3f}")
    for sample, rows in refits.groupby("sample", sort=False):
        error = (rows["delta_evidence"] - rows["refitted"]).abs().median()
        print(f"    of models {sample}: {rank_correlation(rows):.3f}, median difference {error:.2f} nats")

    for name, figure in (("models", refined.plot(labels={"weights": names})), ("refits", draw(refits))):
        figure.savefig(f"{options.output}_{name}.png", dpi=150)
        plt.close(figure)
        print(f"Figure saved to {options.output}_{name}.png")
    return space, refits


def rank_correlation(refits: pd.DataFrame) -> float:
    """Spearman's, between what the one fit predicted and what refitting finds."""
    return float(refits["delta_evidence"].rank().corr(refits["refitted"].rank()))


if __name__ == "__main__":
    main()

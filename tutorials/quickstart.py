# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Which covariates of the diabetes study matter?

The study (Efron, Hastie, Johnstone and Tibshirani 2004; it ships with scikit-learn) has ten covariates of 442 patients
and the progression of their disease one year later. Five columns of pure noise stand beside the ten, as a test of the
answer. One Bayesian linear regression of progression on all fifteen is fitted by SVI. Bayesian model reduction then
says, for each coefficient, how the log evidence would change if it were zero, without another fit.

Covariates and outcome are standardised: a coefficient is the change of progression, in its standard deviations, with
one standard deviation of the covariate. The prior of a coefficient, Normal(0, 0.5), expects effects of a fraction of
one and leaves room for large ones. The reduced prior, Normal(0, 0.001), says that the effect is far below what 442
patients can show (a standard error of 0.04). Unlike a point at zero it is of one kind with the prior, so that in the
last step some of the coefficients can have the one and some the other.

The guide is a full-rank normal, because the blood serum measurements s1 to s6 are strongly correlated. A mean-field
guide would understate their posterior standard deviations, and overstate the evidence for keeping them.

Run it with ``python tutorials/quickstart.py``; ``--help`` lists what can be set.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoMultivariateNormal
from pyro.optim import ClippedAdam
from sklearn.datasets import load_diabetes
from torch import Tensor
from tqdm import trange

from pyro_bmrs import Reduction, reduce_model
from pyro_bmrs.plotting import FULL_COLOR, REDUCED_COLOR, plot_reduction

NOISE_COVARIATES = 5
PRIOR_SCALE = 0.5
REDUCED_SCALE = 1e-3


def load_study() -> tuple[list[str], Tensor, Tensor]:
    """The names of the covariates, the covariates and the progression, standardised, with the noise columns last."""
    study = load_diabetes(scaled=False)
    measured = torch.as_tensor(study.data, dtype=torch.get_default_dtype())
    progression = torch.as_tensor(study.target, dtype=torch.get_default_dtype())
    covariates = torch.cat([measured, torch.randn(len(measured), NOISE_COVARIATES)], dim=-1)
    names = [*study.feature_names, *(f"noise {number}" for number in range(1, NOISE_COVARIATES + 1))]
    return names, _standardised(covariates), _standardised(progression)


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)


def regression(covariates: Tensor, progression: Tensor) -> None:
    """Linear regression with independent normal priors on the coefficients. Both variables have mean 0."""
    patients, size = covariates.shape
    coefficients = pyro.sample("coefficients", dist.Normal(0.0, PRIOR_SCALE).expand([size]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("patients", patients):
        pyro.sample("progression", dist.Normal((covariates * coefficients).sum(-1), scale), obs=progression)


def fit(covariates: Tensor, progression: Tensor, steps: int) -> AutoGuide:
    """The fitted guide of the full model. The learning rate falls a hundredfold on the way."""
    guide = AutoMultivariateNormal(regression)
    optimizer = ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / steps)})
    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(regression, guide, optimizer, elbo)
    with trange(steps, desc="SVI", disable=None) as progress:
        for step in progress:
            loss = svi.step(covariates, progression)
            if step % 50 == 0:
                progress.set_postfix(ELBO=f"{-loss:.1f}")
    return guide


def reduce_each(guide: AutoGuide) -> Reduction:
    """The reduction whose ``elementwise`` tells what becomes of the evidence without each of the coefficients."""
    # That of all together, which would be checked, is not asked for.
    return reduce_model(guide, {"coefficients": dist.Normal(0.0, REDUCED_SCALE)}, check=False)


def reduce_together(guide: AutoGuide, dropped: Tensor) -> Reduction:
    """The reduction of all coefficients where ``dropped`` is true, at once. The others keep their prior."""
    scales = torch.where(dropped, REDUCED_SCALE, PRIOR_SCALE)
    return reduce_model(guide, {"coefficients": dist.Normal(0.0, scales).to_event(1)})


def draw(names: Sequence[str], each: Reduction, together: Reduction) -> Figure:
    """The posterior before and after the reduction, and beside it the evidence about each coefficient."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5.4), sharey=True, layout="constrained")
    plot_reduction(each, right, labels={"coefficients": names})
    table = together.summary()
    for label, color, offset, prefix in (
        ("full model", FULL_COLOR, -0.17, ""),
        ("reduced model", REDUCED_COLOR, 0.17, "reduced_"),
    ):
        places = [place + offset for place in range(len(names))]
        mean, sd = table[f"{prefix}mean"], table[f"{prefix}sd"]
        left.errorbar(mean, places, xerr=2 * sd, fmt="o", markersize=4, color=color, label=label)
    left.axvline(0.0, color="black", linewidth=0.8)
    left.set_xlabel("coefficient: posterior mean and two standard deviations")
    left.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, borderaxespad=0.0)
    return figure


def main(arguments: Sequence[str] | None = None) -> tuple[pd.DataFrame, Reduction]:
    """Fits, reduces, prints the table, saves the figure. Returns the table and the reduction of all that it drops."""
    parser = argparse.ArgumentParser(description="Which covariates of the diabetes study matter?")
    parser.add_argument("--output", default="quickstart.png", help="file to save the figure to (%(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="steps of SVI (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise covariates and of SVI (%(default)s)")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # the tensors are small: more would only get in each other's way
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    names, covariates, progression = load_study()
    guide = fit(covariates, progression, options.steps)
    each = reduce_each(guide)
    dropped = each.elementwise["coefficients"] > 0
    together = reduce_together(guide, dropped)

    table = each.summary().set_axis(names)[["mean", "sd", "delta_evidence", "probability"]]
    table["verdict"] = ["drop" if drop else "keep" for drop in dropped]
    print("\nThe change in log evidence (nats) if a coefficient, alone, were zero, and the probability that it is:\n")
    print(table.to_string(float_format="{:.3f}".format))
    print(f"\nAll {dropped.sum()} that can go, gone at once: {together.delta_evidence:+.2f} nats.")

    figure = draw(names, each, together)
    figure.savefig(options.output, dpi=150)
    plt.close(figure)
    print(f"Figure saved to {options.output}")
    return table, together


if __name__ == "__main__":
    main()

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Bayesian model reduction beside refitting, on models that are not conjugate.

Each study of ``refitting_models.py`` is fitted once by SVI. Each of its reduced priors is then judged twice: by
``reduce_model``, from that one fit, and by fitting the reduced model from scratch with the same settings. The table
says how far the change in log evidence is from the difference of the two ELBOs, and how much sooner it was there.

The difference of two ELBOs is no change in log evidence either: each ELBO falls short of its log evidence by the
Kullback-Leibler divergence of its guide from the posterior. So a third number stands beside the two: the difference of
the two log evidences, each by importance sampling with the fitted guide as the proposal, where its Pareto k allows.

Run it with ``python tutorials/refitting.py``; ``--help`` lists what can be set.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import init_to_median
from pyro.optim import ClippedAdam
from pyro.poutine.util import prune_subsample_sites
from refitting_models import STUDIES, Study
from torch import Tensor
from tqdm import tqdm, trange

from pyro_bmrs import Reduction, ReductionWarning, reduce_model
from pyro_bmrs.evidence import importance_estimate

EVALUATION_PARTICLES = 20_000
PARTICLES_AT_ONCE = 1_000
# How often a reduction is timed, unless that takes too long, in seconds.
REPEATS = 5
PATIENCE = 5.0
LARGEST_K = 0.7
PRIOR_DRAWS = 1_000


@dataclass(frozen=True)
class Settings:
    """
    How to fit.

    :param steps: of SVI.
    :param particles: draws for the gradient of one step.
    :param learning_rate: of the first step.
    :param decay: learning rate of the last step over that of the first.
    :param betas: memory of Adam's moments; the second's is short, since the first gradients are far the largest.
    """

    steps: int = 1500
    particles: int = 16
    learning_rate: float = 0.1
    decay: float = 1 / 500
    betas: tuple[float, float] = (0.95, 0.99)


@dataclass(frozen=True)
class Fit:
    """
    A fitted guide and how it did.

    :param guide: the guide.
    :param seconds: that the fit took.
    :param log_weights: log p(D, x) - log q(x) at draws x of the guide; their mean is the ELBO.
    """

    guide: AutoGuide
    seconds: float
    log_weights: Tensor


def fit(
    model: Callable[..., Any],
    data: tuple[Tensor, ...],
    guide_type: Callable[..., AutoGuide],
    settings: Settings,
    seed: int,
    what: str,
) -> Fit:
    """
    Fits a guide from scratch, and draws from it: with the same noise for all models with the same sites.

    It begins at the prior medians. Those of a few draws, where autoguides begin by default, can be so far out that the
    scales collapse on the way in and take long to recover.
    """
    guide = guide_type(model, init_loc_fn=partial(init_to_median, num_samples=PRIOR_DRAWS))
    elbo = Trace_ELBO(num_particles=settings.particles, vectorize_particles=True)
    rates = {"lr": settings.learning_rate, "lrd": settings.decay ** (1 / settings.steps), "betas": settings.betas}
    svi = SVI(model, guide, ClippedAdam(rates), elbo)
    # Guides of one family have parameters of the same names, and would go on from each other's in one store.
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(seed)
        start = time.perf_counter()
        for _ in trange(settings.steps, desc=what, leave=False):
            svi.step(*data)
        seconds = time.perf_counter() - start
        pyro.set_rng_seed(seed)
        return Fit(guide, seconds, draw_log_weights(model, guide, data))


@torch.no_grad()
def draw_log_weights(model: Callable[..., Any], guide: AutoGuide, data: tuple[Tensor, ...]) -> Tensor:
    """log p(D, x) - log q(x) at ``EVALUATION_PARTICLES`` draws x of the guide."""
    # Left of the plates of the models, none of which is deeper than one.
    particles = pyro.plate("particles", PARTICLES_AT_ONCE, dim=-2)
    parts = []
    for _ in range(EVALUATION_PARTICLES // PARTICLES_AT_ONCE):
        guide_trace = poutine.trace(particles(guide)).get_trace(*data)
        model_trace = poutine.trace(particles(poutine.replay(model, trace=guide_trace))).get_trace(*data)
        parts.append(_log_prob(model_trace) - _log_prob(guide_trace))
    return torch.cat(parts)


def _log_prob(trace: poutine.Trace) -> Tensor:
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    terms = [site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample"]
    return torch.stack([term.reshape(PARTICLES_AT_ONCE, -1).sum(-1) for term in terms]).sum(0)


def timed_reduction(guide: AutoGuide, reduced_prior: Any) -> tuple[Reduction, float]:
    """The reduction as it is read off the guide, and the median time in seconds of several."""
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < PATIENCE:
        start = time.perf_counter()
        reduction = reduce_model(guide, reduced_prior, check=False)
        seconds.append(time.perf_counter() - start)
    return reduction, statistics.median(seconds)


def model_to_refit(reduction: Reduction, reduced_prior: Any) -> Callable[..., Any]:
    """The reduced model; a site that is fixed at a point is no longer to be inferred."""
    priors = reduced_prior if isinstance(reduced_prior, Mapping) else {}
    points = {name: prior.v for name, prior in priors.items() if isinstance(prior, dist.Delta)}
    return poutine.condition(reduction.model, data=points)


def compare(name: str, study: Study, settings: Settings, seed: int = 0) -> pd.DataFrame:
    """
    Judges each reduced prior of a study by reduction and by refitting.

    :return: a row for each reduced prior, in nats and seconds: ``delta_evidence`` by reduction, its ``method`` and,
        where that draws, its ``standard_error`` and ``pareto_k``; the ``elbo_difference`` by refitting and the
        ``discrepancy`` of the first from it; the ``evidence_difference`` by importance sampling with both fits as
        proposals, with the larger ``evidence_pareto_k`` of the two; how long refit and reduction took.
    """
    # The scope keeps the guides' parameters from those of other studies; the table gives each Pareto k.
    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ReductionWarning)
        full = fit(study.model, study.data, study.guide, settings, seed, f"{name}: full model")
        rows = []
        for question, reduced_prior in study.reductions.items():
            reduction, seconds = timed_reduction(full.guide, reduced_prior)
            model = model_to_refit(reduction, reduced_prior)
            reduced = fit(model, study.data, study.guide, settings, seed, f"{name}: {question}")
            rows.append(
                {"model": name, "reduced prior": question, "seed": seed, **_row(reduction, seconds, full, reduced)}
            )
    return pd.DataFrame(rows)


def _row(reduction: Reduction, reduction_seconds: float, full: Fit, reduced: Fit) -> dict[str, Any]:
    gain = reduced.log_weights - full.log_weights
    elbo_difference = gain.mean().item()
    delta_evidence = reduction.delta_evidence.item()
    before, after = (importance_estimate(fitted.log_weights) for fitted in (full, reduced))
    return {
        "delta_evidence": delta_evidence,
        "method": reduction.method,
        "standard_error": _number(reduction.standard_error),
        "pareto_k": _number(reduction.pareto_k),
        "elbo_difference": elbo_difference,
        "elbo_standard_error": gain.std().item() / math.sqrt(len(gain)),
        "discrepancy": delta_evidence - elbo_difference,
        "evidence_difference": (after.delta_evidence - before.delta_evidence).item(),
        "evidence_standard_error": torch.hypot(after.standard_error, before.standard_error).item(),
        "evidence_pareto_k": torch.maximum(after.pareto_k, before.pareto_k).item(),
        "refit_seconds": reduced.seconds,
        "reduction_seconds": reduction_seconds,
        "speed_up": reduced.seconds / reduction_seconds,
    }


def _number(value: Tensor | None) -> float:
    return math.nan if value is None else value.item()


def markdown(table: pd.DataFrame) -> str:
    """The table for people, as Markdown: fewer columns, and what is not to be trusted marked so."""
    rows = table.to_dict("records")
    columns = {
        "model": table["model"],
        "reduced prior": table["reduced prior"],
        "ΔF": [f"{row['delta_evidence']:+.2f}" for row in rows],
        "method": [_method(row) for row in rows],
        "ELBO difference": [f"{row['elbo_difference']:+.2f} ± {row['elbo_standard_error']:.3f}" for row in rows],
        "ΔF less that": [f"{row['discrepancy']:+.2f}" for row in rows],
        "evidence difference": [_evidence(row) for row in rows],
        "refit": [f"{row['refit_seconds']:.1f} s" for row in rows],
        "reduction": [f"{1000 * row['reduction_seconds']:,.0f} ms" for row in rows],
        "speed-up": [f"{row['speed_up']:,.{0 if row['speed_up'] > 10 else 1}f}" for row in rows],
    }
    if table["seed"].nunique() > 1:
        columns["seed"] = [str(row["seed"]) for row in rows]
    lines = [columns, ["---"] * len(columns), *zip(*columns.values())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _method(row: dict[Hashable, Any]) -> str:
    if math.isnan(row["pareto_k"]):
        return row["method"]
    doubt = " > 0.7: not to be trusted" if row["pareto_k"] > LARGEST_K else ""
    return f"{row['method']} (± {row['standard_error']:.2f}), k = {row['pareto_k']:.2f}{doubt}"


def _evidence(row: dict[Hashable, Any]) -> str:
    if row["evidence_pareto_k"] > LARGEST_K:
        return f"unknown (k = {row['evidence_pareto_k']:.2f})"
    return f"{row['evidence_difference']:+.2f} ± {row['evidence_standard_error']:.3f}"


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Compares reduction and refitting on the studies asked for, prints the table, returns it."""
    parser = argparse.ArgumentParser(description="Bayesian model reduction beside refitting.")
    names = "; ".join(STUDIES)
    parser.add_argument(
        "--models", nargs="+", choices=STUDIES, default=list(STUDIES), metavar="NAME", help=f"some of: {names} (all)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="how often to repeat all, each with a seed (%(default)s)")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="steps of SVI of each fit (%(default)s)")
    parser.add_argument("--output", help="file to save the table to, with all its columns, as CSV")
    options = parser.parse_args(arguments)

    torch.set_default_dtype(torch.float64)
    settings = Settings(steps=options.steps)
    runs = [(name, seed) for name in options.models for seed in range(options.seeds)]
    tables = [compare(name, STUDIES[name](), settings, seed) for name, seed in tqdm(runs, desc="models")]
    table = pd.concat(tables, ignore_index=True)
    print(markdown(table))
    if options.output:
        table.to_csv(options.output, index=False)
        print(f"\nTable saved to {options.output}")
    return table


if __name__ == "__main__":
    main()

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Whole groups of covariates switch off through the scale above them.

A simulated regression has 200 covariates in 20 groups of ten that are correlated; five of the groups have an effect.
Its prior is a horseshoe over groups (Carvalho, Polson and Scott 2010, https://doi.org/10.1093/biomet/asq017; for
groups, Xu, Schmidt, Makalic, Qian and Hopper 2016, https://doi.org/10.1007/978-3-319-50127-7_19): each group has a
scale, relative to one that they share, and the coefficients below it follow both. One mean-field fit answers three
questions:

- Which groups are there? The reduced prior of a group's scale holds it so close to zero that no coefficient below it
  reaches what the data can resolve.
- The same question asked of the coefficients, ten at a time: the reduced prior of a group's directions is next to zero.
- Is there anything at all? The reduced prior of the scale that all groups share.

The data are simulated, so that there is a truth to be compared with: which groups have an effect, and the exact change
in log evidence of each, by linear algebra and one integral, with all other groups and the noise at their true values.

Run it with ``python tutorials/sparse_groups.py``; ``--help`` lists what can be set.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, JitTrace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from torch import Tensor
from tqdm import tqdm, trange

from pyro_bmrs import reduce_model, search_models

NUM_ROWS, NUM_GROUPS, GROUP_SIZE, NUM_ACTIVE = 400, 20, 10, 5
# Of covariates in one group, and of the coefficients of an active one; the noise has standard deviation 1.
CORRELATION, EFFECT = 0.3, 0.3
# With the shared scale that these data lead to, 0.1 to 0.2, coefficients of 0.02 to 0.04: the data resolve 1 / 20.
NO_SCALE = 0.2
NO_DIRECTION = 0.01
# One group of the twenty is expected to be active, which is what makes allowance for asking twenty times
# (Scott and Berger 2010, https://doi.org/10.1214/10-AOS792).
PRIOR_LOG_ODDS = math.log(NUM_GROUPS - 1)


@dataclass(frozen=True)
class Simulation:
    """
    Data, and what is true of them.

    :param covariates: shape ``(rows, groups, size)``.
    :param response: shape ``(rows,)``.
    :param active: which groups have an effect.
    """

    covariates: Tensor
    response: Tensor
    active: Tensor


def simulate(seed: int) -> Simulation:
    """One data set."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(NUM_ROWS, NUM_GROUPS, 1, generator=generator)
    own = torch.randn(NUM_ROWS, NUM_GROUPS, GROUP_SIZE, generator=generator)
    covariates = math.sqrt(CORRELATION) * shared + math.sqrt(1 - CORRELATION) * own
    active = torch.zeros(NUM_GROUPS, dtype=torch.bool)
    active[torch.randperm(NUM_GROUPS, generator=generator)[:NUM_ACTIVE]] = True
    coefficients = active.unsqueeze(-1) * EFFECT * torch.randn(NUM_GROUPS, GROUP_SIZE, generator=generator)
    noise = torch.randn(NUM_ROWS, generator=generator)
    return Simulation(covariates, (covariates * coefficients).sum((-1, -2)) + noise, active)


def horseshoe(covariates: Tensor, response: Tensor) -> None:
    """Regression with a horseshoe over groups; scales are kept apart from directions, so that a fit can part them."""
    _, num_groups, size = covariates.shape
    overall = pyro.sample("overall", dist.HalfCauchy(0.5))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    with pyro.plate("groups", num_groups):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        direction = pyro.sample("direction", dist.Normal(torch.zeros(size), 1.0).to_event(1))
    coefficients = overall * scale.unsqueeze(-1) * direction
    with pyro.plate("rows", len(response)):
        pyro.sample("response", dist.Normal(covariates.flatten(1) @ coefficients.flatten(), noise), obs=response)


def fit(data: Simulation, steps: int, seed: int) -> AutoNormal:
    """The fitted guide."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoNormal(horseshoe)
    # Compiled, a step takes a third of the time.
    loss = JitTrace_ELBO(ignore_jit_warnings=True)
    svi = SVI(horseshoe, guide, ClippedAdam({"lr": 0.03, "lrd": 0.02 ** (1 / steps)}), loss)
    for _ in trange(steps, desc=f"data set {seed}", leave=False):
        svi.step(data.covariates, data.response)
    return guide


def switch(guide: AutoNormal, data: Simulation) -> pd.DataFrame:
    """What becomes of each group, by its scale and by its directions: a row for each."""
    arguments = (data.covariates, data.response)
    scales = search_models(guide, {"scale": dist.HalfNormal(NO_SCALE)}, prior_log_odds=PRIOR_LOG_ODDS, args=arguments)
    places = {f"{group:02d}": {"direction": group} for group in range(NUM_GROUPS)}
    nowhere = dist.Normal(torch.zeros(GROUP_SIZE), NO_DIRECTION).to_event(1)
    directions = search_models(
        guide, {"direction": nowhere}, groups=places, prior_log_odds=PRIOR_LOG_ODDS, args=arguments
    )
    of_directions = directions.summary().drop_duplicates("group").set_index("group")
    return pd.DataFrame(
        {
            "active": data.active.numpy(),
            "exact": exact_changes(data, guide.median(*arguments)["overall"]).numpy(),
            "scale": scales.summary()["delta_evidence"].to_numpy(),
            "off by scale": scales.top(1).reduced[0].numpy(),
            "direction": of_directions["delta_evidence"].to_numpy(),
            "off by direction": directions.top(1).reduced[0].numpy(),
        }
    )


def nothing_at_all(guide: AutoNormal, data: Simulation) -> float:
    """The change in log evidence if the scale that all groups share is next to nothing, in nats."""
    reduction = reduce_model(guide, {"overall": dist.HalfNormal(0.01)}, args=(data.covariates, data.response))
    return reduction.delta_evidence.item()


def exact_changes(data: Simulation, overall: Tensor) -> Tensor:
    """
    The exact change in log evidence from reducing each group's scale, in nats, with all the rest at its true value.

    Given its scale, a group adds a normal vector to the response. In the directions in which its covariates stand out
    from the noise and the other groups, that is a sum over ten numbers; the scale is integrated out on a grid.

    :param overall: the scale that all groups share.
    """
    log_scales = torch.linspace(-8.0, 6.0, 561)
    changes = []
    for group in range(NUM_GROUPS):
        others = data.active.clone()
        others[group] = False
        x, rest = data.covariates[:, group], EFFECT * data.covariates[:, others].flatten(1)
        covariance = torch.eye(NUM_ROWS) + rest @ rest.mT
        solved = torch.linalg.solve(covariance, torch.cat([x, data.response.unsqueeze(-1)], -1))
        precision, axes = torch.linalg.eigh(x.mT @ solved[:, :-1])
        score = axes.mT @ (x.mT @ solved[:, -1])
        variance = (overall * log_scales.exp()).square().unsqueeze(-1)
        gain = 0.5 * (score.square() * variance / (1 + precision * variance) - torch.log1p(precision * variance)).sum(
            -1
        )
        evidences = []
        for prior in (dist.HalfNormal(NO_SCALE), dist.HalfCauchy(1.0)):
            log_weights = prior.log_prob(log_scales.exp()) + log_scales
            evidences.append(torch.logsumexp(gain + log_weights, 0) - torch.logsumexp(log_weights, 0))
        changes.append(evidences[0] - evidences[1])
    return torch.stack(changes)


def report(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each data set: how many groups go, rightly and wrongly, and how sure that is."""
    rows = {}
    for seed, groups in table.groupby("data set"):
        null, active = groups[~groups["active"]], groups[groups["active"]]
        row = {"null groups": len(null), "active groups": len(active)}
        for site in ("scale", "direction"):
            row[f"null off by {site}"] = int(null[f"off by {site}"].sum())
            row[f"active on by {site}"] = int((~active[f"off by {site}"]).sum())
            row[f"least ΔF of null by {site}"] = null[site].min()
            row[f"largest ΔF of active by {site}"] = active[site].max()
        row["exact, least of null"] = null["exact"].min()
        rows[seed] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("data set")


def draw(table: pd.DataFrame) -> Figure:
    """The change in log evidence of each group by reduction, against the exact one."""
    figure, ax = plt.subplots(figsize=(5.0, 4.4), layout="constrained")
    for active, groups in table.groupby("active"):
        ax.scatter(groups["exact"], groups["scale"], s=14, label="active groups" if active else "null groups")
    ends = [1.5 * min(table["exact"].min(), table["scale"].min()), 4.0]
    ax.plot(ends, ends, color="black", linewidth=0.8, zorder=0)
    ax.axhline(-PRIOR_LOG_ODDS, color="black", linewidth=0.8, linestyle=":", label="the prior odds' limit")
    ax.set_xscale("symlog", linthresh=2.0)
    ax.set_yscale("symlog", linthresh=2.0)
    ax.set(xlim=ends, ylim=ends)
    ax.set_xlabel("exact change in log evidence (nats)")
    ax.set_ylabel("by reduction of one mean-field fit (nats)")
    ax.legend(frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Simulates, fits, reduces; prints the report and saves the figure. Returns a row for each group."""
    parser = argparse.ArgumentParser(description="Whole groups of covariates switch off through the scale above them.")
    parser.add_argument("--output", default="sparse_groups.png", help="file for the figure (%(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="steps of SVI (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="of the data sets (0 to 9)")
    options = parser.parse_args(arguments)

    torch.set_default_dtype(torch.float64)
    tables = []
    for seed in tqdm(options.seeds, desc="data sets"):
        data = simulate(seed)
        guide = fit(data, options.steps, seed)
        table = switch(guide, data)
        tables.append(table.assign(**{"data set": seed, "nothing at all": nothing_at_all(guide, data)}))
    table = pd.concat(tables, ignore_index=True)
    print(report(table).T.to_string(float_format="{:.2f}".format))
    print(f"\nNothing at all: ΔF at most {table['nothing at all'].max():.0f} nats.")
    for name, groups in (("null", table[~table["active"]]), ("active", table[table["active"]])):
        gap = (groups["scale"] - groups["exact"]).abs()
        print(f"{len(groups)} {name} groups: ΔF of the scale is {gap.median():.2f} nats (median) from the exact one.")
    figure = draw(table)
    figure.savefig(options.output, dpi=150)
    plt.close(figure)
    print(f"Figure saved to {options.output}")
    return table


if __name__ == "__main__":
    main()

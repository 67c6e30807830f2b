# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a compression found: a path of networks, from the whole to the smallest, and the one that was taken."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.plotting import plot_compression
from pyro_bmrs.plotting.html_report import Part, report, stacked
from pyro_bmrs.pruning.compaction.reporting.report import CompactionReport, compaction_report
from pyro_bmrs.pruning.compression.course.held_out import HeldOut
from pyro_bmrs.pruning.compression.path import standard_error
from pyro_bmrs.pruning.compression.prices import OccamPrices
from pyro_bmrs.pruning.selection.prune import PruningResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PathStep:
    """
    A network on the path.

    :param temperature: what the prices were multiplied by; 0 for the whole network.
    :param network: the compact network, in evaluation mode.
    :param is_trained: whether it was trained on without noise, and can be compared with others that were.
    :param kept: for each noise site which of its units are left, shape ``(num_units,)``.
    :param held_out: how it does on the held-out examples.
    :param parameters: how many the network has.
    :param macs: how many multiply-accumulate operations it takes for one example.
    :param prices: of the units before the step; None for the whole network.
    :param decisions: what was pruned in the step; None for the whole network, and where a budget decided.
    :param trainings: how often it was trained on without noise; 0 where its weights are as noise left them, because it
        was not tried, or was worse for being trained.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import compress
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 3)
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = compress(net, (x, (x[:, 0] > 0).long()), epochs=1, progress=False)
        >>> whole = result.steps[0]
        >>> whole.parameters, whole.macs, whole.temperature, whole.is_trained
        (50, 40, 0.0, True)
    """

    temperature: float
    network: nn.Module = field(repr=False)
    is_trained: bool
    kept: Mapping[str, Tensor] = field(repr=False)
    held_out: HeldOut = field(repr=False)
    parameters: int
    macs: int
    prices: OccamPrices | None = field(repr=False)
    decisions: PruningResult | None = field(repr=False)
    trainings: int = 0

    @property
    def mean_log_likelihood(self) -> float:
        """Of a held-out example, in nats."""
        return float(self.held_out.log_likelihoods.mean())


@dataclass(frozen=True)
class Compression:
    """
    What :func:`compress` returns.

    :param steps: the networks on the path, the whole network first.
    :param chosen: which of them was taken.
    :param rule: by which it was.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import compress
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 3)
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = compress(net, (x, (x[:, 0] > 0).long()), epochs=1, progress=False)
        >>> result.network is result.steps[result.chosen].network, list(result.units)
        (True, ['0'])
    """

    steps: Sequence[PathStep] = field(repr=False)
    chosen: int
    rule: str

    @property
    def network(self) -> nn.Module:
        """The compact network, trained to its end: an ordinary module without noise, in evaluation mode."""
        return self.steps[self.chosen].network

    @property
    def held_out(self) -> HeldOut:
        """
        How the network does on the held-out examples.

        Where these were drawn from the training data, as it did before it was trained by them, too.
        """
        return self.steps[self.chosen].held_out

    @property
    def report(self) -> CompactionReport | None:
        """What compaction did; None where the whole network was taken."""
        return compaction_report(self.network) if self.chosen else None

    @cached_property
    def path(self) -> pd.DataFrame:
        """
        A row for each step.

        It has the ``temperature``; ``parameters`` and ``macs``; ``log_likelihood``, the mean over held-out examples in
        nats, and its standard ``error``; ``accuracy`` where labels are observed; whether it was ``trained`` on without
        noise, or else is not to be compared with those that were; how many units are left, by site; and which step was
        ``chosen``.
        """
        import pandas as pd

        values = torch.stack([step.held_out.log_likelihoods for step in self.steps])
        means = values.mean(1)
        columns: dict[str, Any] = {
            "temperature": [step.temperature for step in self.steps],
            "parameters": [step.parameters for step in self.steps],
            "macs": [step.macs for step in self.steps],
            "log_likelihood": means.tolist(),
            "error": standard_error(values).tolist(),
            "accuracy": [step.held_out.accuracy for step in self.steps],
            "trained": [step.is_trained for step in self.steps],
        }
        chosen = [number == self.chosen for number in range(len(self.steps))]
        table = pd.DataFrame(columns).dropna(axis="columns", how="all").join(self.units).assign(chosen=chosen)
        table.index.name = "step"
        return table

    @cached_property
    def units(self) -> pd.DataFrame:
        """A row for each step, a column for each noise site: how many units are left."""
        import pandas as pd

        names = self.steps[0].kept
        table = pd.DataFrame({name: [int(step.kept[name].sum()) for step in self.steps] for name in names})
        table.index.name = "step"
        return table

    @property
    def prices(self) -> OccamPrices | None:
        """What the units cost when the chosen network was decided upon; None for the whole network."""
        return self.steps[self.chosen].prices

    @property
    def decisions(self) -> PruningResult | None:
        """Which units went in the step to the chosen network; None for the whole network."""
        return self.steps[self.chosen].decisions

    @property
    def kept(self) -> dict[str, Tensor]:
        """For each noise site, which of its units are left in the chosen network."""
        return dict(self.steps[self.chosen].kept)

    def at(self, step: int) -> nn.Module:
        """
        A copy of the network at a step of the path; of one that is not ``trained``, as noise left it, to train on.

        :param step: its number in :attr:`path`; negative ones count from the end.
        :raises ReductionError: for a step that is not there.
        """
        if not -len(self.steps) <= step < len(self.steps):
            raise ReductionError(f"the path has the steps 0 to {len(self.steps) - 1}, and no step {step}")
        return deepcopy(self.steps[step].network)

    def summary(self) -> str:
        """The path, as text."""
        return f"{self}\n\n{self.path.to_string()}"

    def plot(self) -> Figure:
        """
        Draws the held-out log likelihood along the path, and how many units each site has left.

        :return: a new figure.
        :raises ImportError: without matplotlib.
        """
        return plot_compression(self)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """
        What was found, with its figures and tables, as a page of HTML that stands by itself: nothing is fetched.

        :param path: the file that the page is written to; none by default.
        :return: the page.
        :raises ImportError: without matplotlib.
        """
        whole, chosen = self.steps[0], self.steps[self.chosen]
        figure, (upper, lower) = stacked(3.4, 3.4)
        plot_compression(self, (upper, lower))
        facts = {
            "parameters": f"{chosen.parameters:,} of {whole.parameters:,}",
            "multiply-accumulate operations of an example": f"{chosen.macs:,} of {whole.macs:,}",
            "chosen by": self.rule,
        }
        parts = [
            Part("The network that was taken", facts),
            Part("The path", figure, "Bars are standard errors of held-out examples."),
            Part("The networks on the path", self.path),
        ]
        if self.report is not None:
            parts += [Part("Units by site", self.report.sites), Part("Layers", self.report.layers)]
        return report("Compression", f"{self}", *parts, path=path)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.path.to_html(max_rows=20)}"

    def __repr__(self) -> str:
        whole, chosen = self.steps[0], self.steps[self.chosen]
        units = "-".join(f"{int(kept.sum())}" for kept in chosen.kept.values())
        of = "-".join(f"{len(kept)}" for kept in chosen.kept.values())
        share = 1 - chosen.parameters / whole.parameters
        result = f"held-out log likelihood {self.steps[self.chosen].mean_log_likelihood:.4g} nats"
        if self.held_out.right is not None:
            result += f", accuracy {self.held_out.accuracy:.2%}"
        return (
            f"Compression: {chosen.parameters:,} of {whole.parameters:,} parameters left ({share:.1%} fewer), units "
            f"{units} of {of}; {result} (step {self.chosen} of {len(self.steps) - 1}, {self.rule})"
        )

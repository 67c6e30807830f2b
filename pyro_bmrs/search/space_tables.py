# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Tables of the models of a space, and of its elements, its page, and what it is in a sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.arviz_adapter import add_elements, add_group, to_arviz
from pyro_bmrs.plotting.canvas import height_of
from pyro_bmrs.plotting.html_report import Part, report, stacked
from pyro_bmrs.plotting.models import Space, plot_model_space
from pyro_bmrs.reduction.check import Check
from pyro_bmrs.search.groups import Groups
from pyro_bmrs.search.probabilities.models import Models
from pyro_bmrs.search.refinement.agreement import Agreement
from pyro_bmrs.search.refinement.checks import columns_of
from pyro_bmrs.tables import SiteLabels, moments

if TYPE_CHECKING:
    import pandas as pd

_MOST_NAMED = 8


def name_of_model(groups: Sequence[str], reduced: Tensor) -> str:
    """The groups that a model reduces, in words."""
    chosen = [groups[place] for place in reduced.nonzero().squeeze(-1).tolist()]
    hidden = len(chosen) - _MOST_NAMED
    return ", ".join(chosen if hidden <= 1 else [*chosen[:_MOST_NAMED], f"and {hidden:,} more"]) or "nothing"


def headline_of(best: Models, groups: Sequence[str], source: str) -> str:
    """
    The best model in a sentence.

    :param source: what is said of where its evidence comes from.
    """
    numbers = f"ΔF = {float(best.delta_evidence):.2f} nats, probability {float(best.probability):.3g}"
    return f"the best reduces {name_of_model(groups, best.reduced[0])}; {numbers} ({source})"


def words_of_source(agreement: Agreement | None, unrefined: str | None, noun: str) -> str:
    """
    Where the evidence of models comes from.

    :param agreement: with integrals, where it is the model's; None where it was read off the posterior.
    :param unrefined: why it is not the model's.
    :param noun: what the posterior is.
    """
    if agreement is not None:
        doubt = "" if agreement.is_close else f"; in doubt: {agreement.words()}"
        return f"by the model's density, at the mean of each{doubt}"
    why = f"; inclusion probabilities may be off: not refined, as {unrefined}" if unrefined else ""
    return f"of {noun}, not checked against the model{why}"


def table_of(models: Models, groups: Sequence[str], checks: Sequence[Check]) -> pd.DataFrame:
    """
    A table of models, one row each, the most probable first.

    :param models: the models.
    :param groups: names of the groups.
    :param checks: what was found of the first of them.
    """
    import pandas as pd

    columns = {
        "reduced": [name_of_model(groups, row) for row in models.reduced],
        "num_reduced": models.reduced.sum(-1).cpu().numpy(),
        "delta_evidence": models.delta_evidence.cpu().numpy(),
        "probability": models.probability.cpu().numpy(),
    }
    columns |= columns_of(checks, len(models.reduced))
    return pd.DataFrame(columns, index=pd.RangeIndex(1, len(models.reduced) + 1, name="rank"))


def summary_of(
    groups: Groups,
    labels: Mapping[str, Sequence[str]],
    posteriors: Mapping[str, Distribution],
    values: Mapping[str, Mapping[str, Tensor]],
    source: str,
) -> pd.DataFrame:
    """
    A table of the elements that may be reduced, one row each.

    :param groups: which elements switch together.
    :param labels: names of the elements of each site.
    :param posteriors: of each site, for its moments.
    :param values: by the name of the column, a value for each element of each site.
    :param source: what they go by.
    """
    import pandas as pd

    tables = []
    for name, group in groups.spread(torch.arange(len(groups)), -1).items():
        mean, sd = moments(posteriors[name], group.shape)
        columns: dict[str, Any] = {
            "group": [groups.names[number] if number >= 0 else "" for number in group.reshape(-1).tolist()],
            "mean": _flat(mean),
            "sd": _flat(sd),
            **{column: _flat(own[name]) for column, own in values.items()},
            "source": source,
        }
        tables.append(pd.DataFrame(columns, index=list(labels[name])))
    return pd.concat(tables)


def arviz_of(
    draws: Mapping[str, Tensor],
    elements: Mapping[str, Mapping[str, Tensor]],
    models: Models,
    groups: Sequence[str],
    labels: Mapping[str, SiteLabels],
    attributes: Mapping[str, str | float],
) -> Any:
    """
    Draws as ArviZ data, with groups beside them of what is known of elements and of models.

    :param draws: of each site, along the first dimension.
    :param elements: by the name of the group, a value for each element of each site.
    :param models: of the group ``models``.
    :param groups: names of the groups of elements.
    :param labels: of the sites.
    :param attributes: of the group ``models``.
    """
    data = to_arviz({"posterior": {name: values.cpu().numpy()[None] for name, values in draws.items()}}, labels)
    for group, values in elements.items():
        add_elements(data, group, {name: own.detach().cpu().numpy() for name, own in values.items()}, labels)
    each = {"reduced": models.reduced, "delta_evidence": models.delta_evidence, "probability": models.probability}
    variables = {name: (("model", "group")[: own.dim()], own.detach().cpu().numpy()) for name, own in each.items()}
    ranks = list(range(1, len(models.reduced) + 1))
    add_group(data, "models", variables, {"model": ranks, "group": list(groups)}, attributes)
    return data


class Tabled(Space, Protocol):
    """What is asked of a space of models to make a page of it."""

    def table(self) -> pd.DataFrame:
        """Of the most probable models."""

    def summary(self) -> pd.DataFrame:
        """Of the elements."""


def page_of(space: Tabled, title: str, headline: str, path: str | os.PathLike[str] | None) -> str:
    """The page of a space; see :func:`pyro_bmrs.plotting.html_report.report`."""
    elements = space.summary()
    figure, (upper, lower) = stacked(2.8, height_of(len(elements)))
    plot_model_space(space, (upper, lower))
    return report(
        title,
        headline,
        Part(
            "Models and elements",
            figure,
            "Above, the most probable models; below, for each element the probability that it keeps its full prior.",
        ),
        Part(
            "The most probable models", space.table(), "Changes in log evidence, against the full model, are in nats."
        ),
        Part(
            "Elements",
            elements,
            "Mean and sd are of the fitted posterior; the change in log evidence is of reducing the element's group "
            "alone, in nats; source says what probabilities go by.",
        ),
        path=path,
    )


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().reshape(-1).cpu().numpy()

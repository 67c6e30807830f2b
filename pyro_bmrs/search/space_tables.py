# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Tables of the models of a space, and of its elements; and what it is in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_bmrs.reduction.check import Check
from pyro_bmrs.search.groups import Groups
from pyro_bmrs.search.probabilities.models import Models
from pyro_bmrs.search.refinement.agreement import Agreement
from pyro_bmrs.search.refinement.checks import columns_of
from pyro_bmrs.tables import moments

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


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().reshape(-1).cpu().numpy()

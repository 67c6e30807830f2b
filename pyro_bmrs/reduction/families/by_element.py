# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""A decision for each element of a site, and the priors of that element for which it holds: a table."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.distributions import Distribution
from tqdm.auto import tqdm

from pyro_bmrs.errors import ReductionError, ReductionWarning, name_of_unknown
from pyro_bmrs.evidence.dispatch import NUM_SAMPLES
from pyro_bmrs.integration.stated_model import LogDensity, PriorLike, read_stated
from pyro_bmrs.reduction.families.grid import FamilyLike
from pyro_bmrs.reduction.families.prior_sensitivity import Question, check_options, problems
from pyro_bmrs.reduction.families.sensitivity import PriorSensitivity
from pyro_bmrs.structure.vectorised import TURN
from pyro_bmrs.tables import LabelsLike

if TYPE_CHECKING:
    import pandas as pd

_MOST_NAMED = 5
_NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?")


class SensitivityByElement(Mapping[str, PriorSensitivity]):
    """
    What becomes of each element of a site, and of a decision about it, under each prior of a grid. Made by
    :func:`sensitivity_by_element`; a mapping from the name of an element to its
    :class:`~pyro_bmrs.PriorSensitivity`.

    :param site: the site.
    :param of_elements: by the name of the element.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_bmrs import sensitivity_by_element
        >>> def model():
        ...     pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def exact():
        ...     pyro.sample("slopes", dist.Normal(torch.tensor([0.1, 2.0]), 0.2).to_event(1))
        >>> null = dist.Delta(torch.tensor(0.0))
        >>> found = sensitivity_by_element(exact, "slopes", against=null, model=model, check=False)
        >>> list(found)
        ['slopes[0]', 'slopes[1]']
    """

    def __init__(self, site: str, of_elements: Mapping[str, PriorSensitivity]) -> None:
        self.site, self._of_elements = site, dict(of_elements)

    def __getitem__(self, name: str) -> PriorSensitivity:
        return self._of_elements[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of_elements)

    def __len__(self) -> int:
        return len(self._of_elements)

    def summary(self) -> pd.DataFrame:
        """
        A table of the elements, a row each.

        With ``against``: the ``log_bayes_factor`` under the model's own prior (nats), what that ``favours``, and for
        which numbers, from ``low`` to ``high``, it stays so. Without it, the number that is ``best``, and for which
        ones the evidence is within a nat of that. Of priors by name, the log Bayes factor of each. ``source`` is
        ``"model"`` where the model agrees, ``"posterior"`` where it was not asked, and ``"posterior, off"`` where it
        says otherwise.
        """
        import pandas as pd

        return pd.DataFrame([_row(found) for found in self.values()], index=list(self))

    def __repr__(self) -> str:
        example = next(iter(self.values()))
        count = f"{len(self)} elements, {len(example.places)} priors"
        if example.grid.values is None or example.against is None:
            return f"SensitivityByElement({self.site}, {count})"
        turns = [name for name, found in self.items() if len(found.stretches) > 1]
        named = ", ".join(turns[:_MOST_NAMED]) + (
            f", and {len(turns) - _MOST_NAMED} more" if turns[_MOST_NAMED:] else ""
        )
        return (
            f"SensitivityByElement({self.site}, {count}): the decision is the same over the whole grid for "
            f"{len(self) - len(turns)} of them" + (f"; it turns for {named}" if turns else "")
        )

    def _repr_html_(self) -> str:
        return self.summary().to_html(max_rows=20)


def _row(found: PriorSensitivity) -> dict[str, Any]:
    checked = "model" if found.off() is None else "posterior, off"
    source = {"source": "posterior" if found.checked is None else checked}
    if found.grid.values is None:
        return dict(zip(map(str, found.places), found.log_bayes_factor.tolist())) | source
    own = found.grid.fitted_value
    if found.against is None:
        within = [stretch for stretch in found.stretches if stretch.sign == 1 and found.best in stretch]
        low, high = (within[0].low, within[0].high) if within else (math.nan, math.nan)
        return {"best": found.best, "low": low, "high": high} | source
    here = [stretch for stretch in found.stretches if own is not None and own in stretch]
    if not here:
        turns = "; ".join(f"{found.verdict(s.sign)} from {s.low:.3g} to {s.high:.3g}" for s in found.stretches)
        return {"log_bayes_factor": math.nan, "favours": turns, "low": math.nan, "high": math.nan} | source
    # Under the model's own prior the evidence is the model's.
    factor = -found.of_against
    return {
        "log_bayes_factor": factor,
        "favours": found.verdict(here[0].sign),
        "low": here[0].low,
        "high": here[0].high,
    } | source


def sensitivity_by_element(
    guide: Any,
    site: str,
    family: FamilyLike | None = None,
    grid: Any = None,
    *,
    elements: int | str | Sequence[int | str] | None = None,
    against: Distribution | None = None,
    threshold: float = 0.0,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    prior: PriorLike | None = None,
    log_density: LogDensity | None = None,
    num_samples: int = NUM_SAMPLES,
    check: bool | str = "auto",
    labels: LabelsLike | None = None,
    progress: bool = False,
) -> SensitivityByElement:
    """
    For which priors of each element of a site a decision about that element holds, from one fit.

    It is :func:`~pyro_bmrs.prior_sensitivity` with ``element=`` each of them in turn: the prior of one varies, and the
    others keep theirs.

    :param guide: a fitted guide or draws from the posterior, as for :func:`~pyro_bmrs.reduce_model`.
    :param site: the site whose elements' priors vary.
    :param family: as for :func:`~pyro_bmrs.prior_sensitivity`, as are ``grid``, ``against``, ``threshold`` and the
        rest.
    :param elements: which ones, by place in ``flatten()`` or by name; by default all.
    :param against: a prior that each one of the grid is compared with, such as ``dist.Delta(torch.tensor(0.))``.
    :param progress: whether to show a progress bar.
    :return: the :class:`SensitivityByElement`, whose ``summary()`` is a table of them.
    :raises ReductionError: as :func:`~pyro_bmrs.prior_sensitivity` does.
    :warns ReductionWarning: as it does, once for all the elements that are alike in this.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import sensitivity_by_element
        >>> def model():
        ...     pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.).to_event(1))
        >>> pyro.clear_param_store()
        >>> guide = AutoNormal(model, init_scale=0.2); _ = guide()
        >>> with torch.no_grad():
        ...     _ = guide.locs.slopes.copy_(torch.tensor([0.1, 0.5, 2.]))
        >>> null = dist.Delta(torch.tensor(0.))
        >>> names = {"slopes": ["age", "dose", "sex"]}
        >>> found = sensitivity_by_element(guide, "slopes", against=null, labels=names, check=False)
        >>> found.summary()[["log_bayes_factor", "favours", "low", "high"]].round(2)
                      log_bayes_factor      favours  low   high
        slopes[age]              -1.48  the point 0  0.1  10.00
        slopes[dose]              1.52    the prior  0.1   5.26
        slopes[sex]              48.39    the prior  0.1  10.00
    """
    check_options(threshold, check)
    found: dict[str, PriorSensitivity] = {}
    with TURN, torch.no_grad():
        fitted = read_stated(guide, model, args, kwargs, prior, log_density, labels)
        if site not in fitted.sites:
            raise name_of_unknown(site, fitted.sites, fitted.noun)
        names = Question(fitted, site, None, num_samples, progress).names
        chosen = _chosen(site, elements, len(names))
        said: dict[str, list[str]] = {}
        for element in tqdm(chosen, desc="elements", disable=not progress, leave=False):
            question = Question(fitted, site, element, num_samples, False)
            (name,) = question.labels
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ReductionWarning)
                found[name] = question.answer(family, grid, against, threshold, check)
            own = [str(warning.message) for warning in caught if issubclass(warning.category, ReductionWarning)]
            said[name] = own + problems(found[name])
    _warn(said)
    return SensitivityByElement(site, found)


def _chosen(site: str, elements: int | str | Sequence[int | str] | None, count: int) -> Sequence[int | str]:
    if elements is None:
        return range(count)
    chosen = [elements] if isinstance(elements, (int, str)) else list(elements)
    if not chosen:
        raise ReductionError(f"elements names none of site {site!r}; leave it out for all")
    return chosen


def _warn(said: Mapping[str, Sequence[str]]) -> None:
    """One warning for all that differ in numbers alone, with what is said of the first element of them."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, of_element in said.items():
        for words in of_element:
            kinds.setdefault(_NUMBER.sub("", words), []).append((name, words))
    for alike in kinds.values():
        name, words = alike[0]
        of_others = f", and of {len(alike) - 1} more of the {len(said)} elements" if len(alike) > 1 else ""
        warnings.warn(f"Of {name}{of_others}: {words}", ReductionWarning, stacklevel=3)

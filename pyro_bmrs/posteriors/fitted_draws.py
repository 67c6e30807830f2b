# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Draws that are there already, read: those of a finished MCMC run, or of an ArviZ posterior."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from pyro_bmrs import arviz_adapter
from pyro_bmrs.arviz_adapter import FEWEST_IN_CHAIN
from pyro_bmrs.errors import ReductionError, ReductionWarning, name_of_unknown
from pyro_bmrs.posteriors.draws import Draws, PriorAtDraws, log_density
from pyro_bmrs.posteriors.guides.pickles import bare_trace
from pyro_bmrs.posteriors.traces import (
    latent_nodes,
    masked_prior,
    of_one_branch,
    subsampled_plates,
    track,
    upstream_sites,
    weight,
)
from pyro_bmrs.structure.layers import is_point
from pyro_bmrs.structure.parameters import tensor_of
from pyro_bmrs.tables import SiteLabels, counted

_FEWEST_EFFECTIVE = 100  # draws, below which neither an estimate nor its error is to be trusted
_LARGEST_R_HAT = 1.1
_MOST_ELEMENTS = 100  # of a site, to be asked whether they have mixed


class FittedDraws:
    """
    Draws from the posterior of a model, read.

    :param values: of each site drawn, chains and draws along the first two dimensions.
    :param model: the model.
    :param args: the positional arguments that it is run with.
    :param kwargs: the keyword arguments that it is run with.
    :param labels: what the dimensions of variables are called, and the places along them.
    :raises ReductionError: for draws that are not finite, too few, or not of the model's sites and their shapes.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import FittedDraws
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> FittedDraws({"x": torch.randn(4, 250, 2)}, model, (), {}).num_chains
        4
    """

    noun = "the set of draws"
    # There is no guide, and no density is known.
    guide = None
    factored = None

    def __init__(
        self,
        values: Mapping[str, Tensor],
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        labels: Mapping[str, SiteLabels] | None = None,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.num_chains = _count_chains(values)
        reader = _AtHome(values)
        with torch.no_grad():
            self.trace = poutine.trace(reader(model)).get_trace(*args, **kwargs)
        self.values = reader.values
        _check_known(values, self.trace)
        self.left_alone = {name: drawn.flatten(0, 1) for name, drawn in values.items() if name not in self.trace.nodes}
        """What was drawn beside the model's sites, such as what another language computed of them."""
        given = dict(labels or {})
        at_home = {name: (values[name].shape[2:], drawn.shape[1:]) for name, drawn in self.values.items()}
        of_sites = {name: _without_ones(name, given[name], *at_home[name]) for name in at_home if name in given}
        self.labels: Mapping[str, SiteLabels] = given | of_sites
        """What the dimensions of variables are called, and the places along them."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "trace": bare_trace(self.trace)}

    def __deepcopy__(self, memo: dict[int, Any]) -> FittedDraws:
        """Itself: nothing changes it."""
        return self

    @cached_property
    def latent(self) -> frozenset[str]:
        """All the model's latent sites."""
        return frozenset(latent_nodes(self.trace))

    @property
    def sites(self) -> frozenset[str]:
        """The model's latent sites that were drawn."""
        return frozenset(self.values)

    def keep(self) -> None:
        """The draws are there already."""

    def log_weights(self, num_samples: int) -> None:
        """There are none: draws are taken to be of the posterior."""

    def upstream(self, names: Collection[str]) -> dict[str, frozenset[str]]:
        """For each site, the other latent sites that its prior depends on."""
        found = upstream_sites(track(self._at(0), self.args, self.kwargs), names)
        return {name: sites & self.latent for name, sites in found.items()}

    def _at(self, index: int) -> Callable[..., Any]:
        """The model with one of the draws in its sites."""
        return _Values({name: drawn[index] for name, drawn in self.values.items()})(self.model)

    def draw(self, names: Collection[str], num_samples: int, progress: bool = False) -> Draws:
        """
        All the draws that there are, however many are asked for, with the priors of some sites at each of them.

        :param names: the sites whose priors are asked for.
        :param num_samples: of no use here.
        :param progress: whether to show a progress bar.
        """
        return Draws(self.values, self.prior_at_draws(names, progress), self.num_chains, self.relative_efficiency)

    @cached_property
    def relative_efficiency(self) -> dict[str, float]:
        """
        The effective sample size of each site over the number of draws: of its element that has mixed worst.

        Of a site with many elements, a hundred are asked, evenly apart.

        :warns ReductionWarning: once, where chains have not mixed.
        """
        latent: Any = latent_nodes(self.trace)
        found: dict[str, float] = {}
        for name, drawn in self.values.items():
            chains = drawn.reshape((self.num_chains, -1, drawn[0].numel()))
            prior = latent[name]["fn"]
            # An element that is the same in all draws says something only where nothing else at the site moves: the
            # diagonal of a correlation matrix, or a label, may be known for certain.
            moves = (chains != chains[0, 0]).flatten(0, 1).any(0)
            if not moves.any() and (prior.support.is_discrete or is_point(prior)):
                continue
            at = moves.nonzero().squeeze(-1) if moves.any() else torch.arange(1)
            chosen = at[torch.linspace(0, len(at) - 1, min(len(at), _MOST_ELEMENTS)).long()]
            sizes, r_hats = arviz_adapter.mixing(chains[:, :, chosen].double().cpu().numpy())
            found[name] = float(sizes.min()) / len(drawn)
            r_hat = float(np.fmax(r_hats, 1.0).max())  # NaN where there are too few draws to tell
            _warn_of_mixing(name, float(sizes.min()), len(drawn), r_hat)
        return found

    def prior_at_draws(self, names: Collection[str], progress: bool = False) -> dict[str, PriorAtDraws]:
        """The priors of some sites at each draw: at once where they depend on no other site, else draw by draw."""
        for name in names:
            if subsampled_plates(self.trace.nodes[name]):
                raise ReductionError(
                    f"site {name!r} is in a subsampled plate, of which draws show a part; pass args= for which the "
                    "model subsamples nothing"
                )
        upstream = self.upstream(names)
        alike = {name: self._example(name) for name in names if not upstream[name]}
        found = {
            name: PriorAtDraws(prior, log_density(prior, self.values[name]), weight(self.trace.nodes[name]))
            for name, prior in alike.items()
        }
        return found | self._draw_by_draw([name for name in names if upstream[name]], progress)

    def _example(self, name: str) -> Any:
        """The prior of a site at the first of the draws."""
        return masked_prior(self.trace.nodes[name])

    @torch.no_grad()
    def _draw_by_draw(self, names: Collection[str], progress: bool) -> dict[str, PriorAtDraws]:
        log_probs: dict[str, list[Tensor]] = {name: [] for name in names}
        num_draws = len(next(iter(self.values.values()))) if names else 0
        for index in tqdm(range(num_draws), desc="priors at the draws", disable=not progress, leave=False):
            nodes: Any = poutine.trace(self._at(index)).get_trace(*self.args, **self.kwargs).nodes
            for name, rows in log_probs.items():
                if name not in nodes:
                    raise of_one_branch(name, "the model")
                rows.append(log_density(masked_prior(nodes[name]), nodes[name]["value"]))
        return {
            name: PriorAtDraws(self._example(name), torch.stack(log_probs[name]), weight(self.trace.nodes[name]))
            for name in names
        }


def _warn_of_mixing(name: str, size: float, count: int, r_hat: float) -> None:
    mend = "Sample again: with more draws, more steps of warm-up, or other parameters for the model."
    if size == 0:
        problem = (
            f"The draws of site {name!r} are all alike: the sampler never moved, and nothing is known of the posterior"
        )
    elif r_hat > _LARGEST_R_HAT:
        problem = f"The chains of site {name!r} do not agree: R-hat is {r_hat:.2f}, above {_LARGEST_R_HAT}"
    elif size < _FEWEST_EFFECTIVE:
        problem = (
            f"The {count} draws of site {name!r} are worth {size:.0f} independent ones, fewer than {_FEWEST_EFFECTIVE}"
        )
    else:
        return
    warnings.warn(f"{problem}. {mend}", ReductionWarning, stacklevel=4)


def _count_chains(values: Mapping[str, Tensor]) -> int:
    """The number of chains, the same for all sites."""
    if not values:
        raise ReductionError("there are no draws: the posterior has no variables")
    shapes = {name: tuple(drawn.shape[:2]) for name, drawn in values.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) < 2:
        raise ReductionError(f"draws must all have the same number of chains and of draws in a chain, not {shapes}")
    num_chains, num_draws = next(iter(shapes.values()))
    if num_draws < FEWEST_IN_CHAIN:
        raise ReductionError(f"{num_draws} draws in a chain are too few; take at least {FEWEST_IN_CHAIN}")
    return num_chains


def _check_finite(name: str, drawn: Tensor) -> None:
    wrong = (~drawn.isfinite()).nonzero()
    if len(wrong):
        chain, index, *element = wrong[0].tolist()
        place = f", element {element}" if element else ""
        raise ReductionError(
            f"{len(wrong)} of {drawn.numel()} values drawn of site {name!r} are NaN or infinite; the first is in chain "
            f"{chain}, draw {index}{place} (counted from 0). A sampler that diverged does this: drop these draws, or "
            "sample again"
        )


def _check_known(values: Mapping[str, Tensor], trace: poutine.Trace) -> None:
    """
    Whether the draws are of this model: of some of its latent sites at least.

    What else was drawn another language may have computed of them; but where a site of the model was not drawn, and
    another of nearly its name was, that is one misspelt.
    """
    latent = frozenset(latent_nodes(trace))
    missing = latent - values.keys()
    for name in values.keys() - trace.nodes.keys():
        if not latent & values.keys() or difflib.get_close_matches(name, missing, cutoff=0.75):
            unknown = name_of_unknown(name, latent, "the model")
            raise ReductionError(f"{unknown}. Drop what is no latent site from the draws, or pass the right model=")


def _bare(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _without_ones(name: str, labels: SiteLabels, drawn: torch.Size, shape: torch.Size) -> SiteLabels:
    """The labels of draws whose shape is the site's but for dimensions of size 1."""
    if drawn == shape:
        return labels
    kept = [place for place, size in enumerate(drawn) if size != 1]
    if len(kept) != len(shape):
        return counted(name, shape)
    return SiteLabels(tuple(labels.dims[place] for place in kept), tuple(labels.coords[place] for place in kept))


class _Values(Messenger):
    """Values in the place of a model's own draws, which stay latent."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = self.values[msg["name"]]


class _AtHome(Messenger):
    """
    The first of the draws in the place of a model's own, with all of them brought to their sites' shape, dtype, device.

    Dimensions of size 1 are taken away or put in: of a plate around the site, say, as Predictive leaves them.

    :param values: the draws of each site, chains and draws along the first two dimensions; those of latent sites are
        kept, with the draws along the first.
    """

    def __init__(self, drawn: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._drawn = drawn
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, prior = msg["name"], msg["fn"]
        if name not in self._drawn or msg["is_observed"] or site_is_subsample(msg):
            return
        drawn, shape = self._drawn[name], prior.batch_shape + prior.event_shape
        if _bare(drawn.shape[2:]) != _bare(shape):
            by_chain = "; are these draws by chain? Make ArviZ data of them: arviz.from_dict(posterior=...)"
            raise ReductionError(
                f"each draw of site {name!r} has shape {tuple(drawn.shape[2:])}, but the model's site has "
                f"{tuple(shape)}; are the model's arguments those that were sampled with?"
                + (by_chain if _bare(drawn.shape[3:]) == _bare(shape) and drawn.shape[0] == 1 else "")
            )
        _check_finite(name, drawn)
        self.values[name] = _like(prior, drawn.reshape((-1,) + shape))
        msg["value"] = self.values[name][0]


def _like(prior: Distribution, drawn: Tensor) -> Tensor:
    support: Any = prior.support
    like = prior.sample() if support.is_discrete else tensor_of(prior)
    return drawn if like is None else drawn.to(like)

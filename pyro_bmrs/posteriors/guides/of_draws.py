# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Draws as a fitted guide: the joint normal of their moments, for what needs a density."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection

from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.distributions import biject_to

from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.posteriors.fitted_draws import FittedDraws
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.guides.moment_guides import guide_at_moments
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide
from pyro_bmrs.posteriors.traces import latent_nodes

# Of the third and the fourth standardised moment less those of a normal, beyond which it is none.
_LARGEST_SKEW, _LARGEST_EXCESS = 0.5, 1.0


def normal_of_draws(drawn: FittedDraws, sites: Collection[str]) -> FittedGuide:
    """
    The normal, in unconstrained coordinates, that has the mean and the covariance of draws.

    :param drawn: the draws.
    :param sites: those whose density matters.
    :raises ReductionError: for discrete sites, and too few draws for a covariance.
    :warns ReductionWarning: where chains have not mixed, and where the draws of these sites are far from normal.
    """
    nodes = latent_nodes(drawn.trace)
    discrete = sorted(name for name in drawn.sites if nodes[name]["fn"].support.is_discrete)
    if discrete:
        raise ReductionError(
            f"the draws have discrete sites, {discrete}, whose models no normal stands for; use reduce_model, which "
            "takes the draws as they are"
        )
    first = next(iter(drawn.values.values()))
    count = sum(values[0].numel() for values in drawn.values.values())
    if len(first) <= count:
        raise ReductionError(
            f"{len(first)} draws are too few for the covariance of {count:,} coordinates; take more, or leave some "
            "variables out. Are they by chain? Make ArviZ data of them: arviz.from_dict(posterior=...)"
        )
    size = min(drawn.relative_efficiency.values(), default=1.0) * len(next(iter(drawn.values.values())))
    for name in sorted(set(sites) & drawn.sites):
        coordinates = biject_to(nodes[name]["fn"].support).inv(drawn.values[name])
        _warn_where_far(name, coordinates.reshape(len(coordinates), -1).double(), size)
    draws = DrawsGuide(drawn.model, drawn.values, first.new_zeros(len(first)), (drawn.args, drawn.kwargs))
    guide = guide_at_moments(AutoMultivariateNormal(drawn.model), drawn.model, draws, drawn.args, drawn.kwargs)
    fitted = FittedGuide(guide, drawn.model, drawn.args, drawn.kwargs)
    vars(fitted).update(labels=drawn.labels, noun="the normal of the draws' moments")
    return fitted


def _warn_where_far(name: str, values: Tensor, size: float) -> None:
    centred = values - values.mean(0)
    scaled = centred / centred.square().mean(0).sqrt()
    skew, excess = scaled.pow(3).mean(0).abs().max(), (scaled.pow(4).mean(0) - 3).abs().max()
    # Moments of as many independent draws of a normal have these standard errors.
    doubt = 5 / math.sqrt(max(size, 1.0))
    if skew > max(_LARGEST_SKEW, doubt * math.sqrt(6)) or excess > max(_LARGEST_EXCESS, doubt * math.sqrt(24)):
        warnings.warn(
            f"The draws of site {name!r} are far from normal (skewness {float(skew):.2g}, excess kurtosis "
            f"{float(excess):.2g}), and the models are read off the normal of their moments. Hold the best against the "
            "model, with check=.",
            ReductionWarning,
            stacklevel=4,
        )

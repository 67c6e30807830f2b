# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What is known of a full posterior: its factors where its density is known, else draws."""

from pyro_bmrs.posteriors.draws import Draws, PriorAtDraws
from pyro_bmrs.posteriors.factors import Factor, JointNormalFactor, PackedFactor, ReducedFactor, SiteFactor
from pyro_bmrs.posteriors.fitted_draws import FittedDraws
from pyro_bmrs.posteriors.fitted_guide import FittedGuide
from pyro_bmrs.posteriors.guides.guide_factors import read_factors
from pyro_bmrs.posteriors.posterior import FactoredPosterior, Posterior
from pyro_bmrs.posteriors.reading import read_guide, read_posterior
from pyro_bmrs.posteriors.reduced_guide import DrawsGuide, ReducedGuide, packed_statement
from pyro_bmrs.posteriors.traces import GuideRun

__all__ = [
    "Draws",
    "DrawsGuide",
    "Factor",
    "FactoredPosterior",
    "FittedDraws",
    "FittedGuide",
    "GuideRun",
    "JointNormalFactor",
    "PackedFactor",
    "Posterior",
    "PriorAtDraws",
    "ReducedFactor",
    "ReducedGuide",
    "SiteFactor",
    "packed_statement",
    "read_factors",
    "read_guide",
    "read_posterior",
]

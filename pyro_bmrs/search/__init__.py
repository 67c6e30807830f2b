# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Spaces of reduced models: search, posterior probabilities and averages over models, from one fit."""

from pyro_bmrs.search.model_space import ModelSpace
from pyro_bmrs.search.probabilities.model_prior import BetaBinomial, beta_binomial
from pyro_bmrs.search.refinement.agreement import Agreement
from pyro_bmrs.search.search_models import search_models

__all__ = ["Agreement", "BetaBinomial", "ModelSpace", "beta_binomial", "search_models"]

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The change in log evidence by quadrature, for one-dimensional continuous elements."""

from pyro_bmrs.evidence.quadrature.reweighted import ReweightedDistribution, reduce_by_quadrature

__all__ = [
    "ReweightedDistribution",
    "reduce_by_quadrature",
]

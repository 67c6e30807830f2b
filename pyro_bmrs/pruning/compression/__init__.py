# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Compression: what units cost, a path of networks from large to small, and which of them to take."""

from pyro_bmrs.pruning.compression.compress import compress
from pyro_bmrs.pruning.compression.path import temperatures
from pyro_bmrs.pruning.compression.prices import Occam, OccamPrices, occam_prices
from pyro_bmrs.pruning.compression.result import Compression, PathStep

__all__ = ["Compression", "Occam", "OccamPrices", "PathStep", "compress", "occam_prices", "temperatures"]

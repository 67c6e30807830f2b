# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Exact rules, one family a file; to import this package registers them."""

from pyro_bmrs.evidence.rules import families, interval_normal, multivariate_normal, normal, point  # noqa: F401

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Exact rules, one family a file; to import this package registers them.

A new rule is one file here, with :func:`~pyro_bmrs.evidence.register_reduction` or
:class:`~pyro_bmrs.evidence.rules.exponential_family.Family`, and its name in the import below. A rule that lies outside
the package needs neither: it is registered as soon as its own file is imported.
"""

from pyro_bmrs.evidence.rules import families, interval_normal, multivariate_normal, normal, point  # noqa: F401

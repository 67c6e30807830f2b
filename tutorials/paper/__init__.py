# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
The experiments of D. Wright, C. Igel and R. Selvan (2024), *BMRS: Bayesian model reduction for structured pruning*,
https://arxiv.org/abs/2406.01345, as a program: ``python -m tutorials.paper --help``.
"""

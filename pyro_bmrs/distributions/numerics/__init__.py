# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Masses, quantiles, hazards and integrals of normals on intervals, accurate in both tails."""

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Integrals of densities of many coordinates by importance sampling: modes, proposals, and how these adapt."""

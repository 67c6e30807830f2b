# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Families of reduced priors: the best of them, and how the answer changes along them."""

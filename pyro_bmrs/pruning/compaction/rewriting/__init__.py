# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Exact rewritings of a network with multiplications, one after the other, and what it has to be for them."""

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels that run through a network from end to end, as the width of a transformer does."""

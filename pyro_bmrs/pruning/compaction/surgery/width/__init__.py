# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Channels of the streams of a network, taken out of all that is on their way."""

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The trainings of a compression, what they are made on, how their networks do, and which will do."""

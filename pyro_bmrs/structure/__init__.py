# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Distributions taken apart and put together: parameters, transforms, coordinates, packed vectors, mixtures."""

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Log-gamma functions and products of normals on intervals, without cancellation, and the precision to ask for."""

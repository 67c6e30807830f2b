# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""What a step of training computes of the noise of all layers at once, in which precision, and what it keeps."""

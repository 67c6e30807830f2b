# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""``python -m tutorials.paper``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

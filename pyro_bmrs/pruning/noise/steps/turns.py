# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Threads that take turns: Pyro has one stack of handlers for all of them.

A guide of noise, and a loss, hold the turn while the network runs, and noise that is met takes it. So several threads
may train networks with noise, and predict with them, though their forward passes follow one another. Other handlers of
Pyro are not for several threads at a time; processes are.
"""

from __future__ import annotations

import threading

# Entered again by who has it.
TURN = threading.RLock()

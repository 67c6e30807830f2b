# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Which latent sites the distribution at another site was computed from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from torch.distributions import Distribution, TransformedDistribution

from .distributions.parameters import is_leaf


def upstream_sites(trace: poutine.Trace, names: Collection[str]) -> dict[str, frozenset[str]]:
    """
    The sites whose values went into the distribution at each of some sites, out of a trace made by :func:`track`.

    Parameters are asked first, since a density with a gradient of its own can lose track of a value that they hold;
    then the density, where a transform may hold a value that no parameter does.
    """
    return {name: _provenance(trace.nodes[name]) & frozenset(trace.nodes) for name in names}


def track(program: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> poutine.Trace:
    """A trace of a program in which every value knows the sites that it was computed from."""
    with torch.no_grad(), pyro.validation_enabled(False), TrackProvenance():
        return poutine.trace(program).get_trace(*args, **kwargs)


def _provenance(site: Any) -> frozenset[str]:
    distribution: Distribution = site["fn"]
    layers = [distribution]
    while hasattr(layers[-1], "base_dist"):
        layers.append(layers[-1].base_dist)
    held = (value for layer in layers for value in vars(layer).values())
    found = {name for value in held if isinstance(value, ProvenanceTensor) for name in get_provenance(value)}
    outer = [layer for layer in layers if not is_leaf(layer)]
    if len(outer) == len(layers) or any(isinstance(layer, TransformedDistribution) for layer in outer):
        with torch.no_grad(), pyro.validation_enabled(False):
            found.update(get_provenance(distribution.log_prob(detach_provenance(site["value"]))))
    return frozenset(found)

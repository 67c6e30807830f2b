# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of guides and models: their latent sites, and which sites a distribution was computed from."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger, _bound_partial
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution
from torch.overrides import TorchFunctionMode

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.structure.layers import layers
from pyro_bmrs.structure.parameters import is_leaf


def upstream_sites(trace: poutine.Trace, names: Collection[str]) -> dict[str, frozenset[str]]:
    """
    The sites whose values went into the distribution at each of some sites, out of a trace made by :func:`track`.

    Parameters are asked first, since a density with a gradient of its own can lose track of a value that they hold;
    then the density, where a transform may hold a value that no parameter does. What Python has read before a site
    may have gone into anything: such a site depends on all of it.

    :raises ReductionError: for a site whose mask or scale depends on another.
    """
    for name in names:
        if name not in trace.nodes:
            raise of_one_branch(name, "the model or the guide")
        site: Any = trace.nodes[name]
        if others := sorted(get_provenance(site["mask"]) | get_provenance(site["scale"])):
            raise ReductionError(
                f"whether or how much the prior of site {name!r} counts (its mask or scale) depends on the values of "
                f"{others}; reduce other sites, or give it a mask and a scale that are fixed"
            )
    return {name: _provenance(trace.nodes[name]) & frozenset(trace.nodes) for name in names}


def track(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """A trace of a program in which every value knows the sites that it was computed from."""
    reads = _Reads()
    with torch.no_grad(), pyro.validation_enabled(False), TrackProvenance(), reads, _ReadBefore(reads):
        return poutine.trace(program).get_trace(*args, **kwargs)


# What gives a value to Python, where no tensor knows any more what becomes of it.
_READS = frozenset(
    {getattr(torch.Tensor, name) for name in ("__bool__", "__float__", "__int__", "__index__", "__array__")}
    | {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.tensor}
)


class _Reads(TorchFunctionMode):
    """The sites whose values Python has read, as ``if``, ``float()`` and ``.item()`` do, but for what samplers read."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: frozenset[str] = frozenset()
        self.sampling = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS and not self.sampling:
            self.sites |= get_provenance(list(args))
        return func(*args, **(kwargs or {}))


class _ReadBefore(Messenger):
    """Notes at each site whose values Python had read by then: they may have decided what the site is."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self.reads = reads

    def _pyro_sample(self, msg: Any) -> None:
        self.reads.sampling = True
        msg["infer"] = {**(msg["infer"] or {}), "_read_before": self.reads.sites}

    def _pyro_post_sample(self, msg: Any) -> None:
        self.reads.sampling = False


def _provenance(site: Any) -> frozenset[str]:
    distribution: Distribution = site["fn"]
    beneath = list(layers(distribution))
    held = (value for layer in beneath for value in vars(layer).values())
    found = {name for value in held if isinstance(value, ProvenanceTensor) for name in get_provenance(value)}
    outer = [layer for layer in beneath if not is_leaf(layer)]
    if len(outer) == len(beneath) or any(isinstance(layer, TransformedDistribution) for layer in outer):
        with torch.no_grad(), pyro.validation_enabled(False):
            found.update(get_provenance(distribution.log_prob(detach_provenance(site["value"]))))
    read_before: frozenset[str] = site["infer"].get("_read_before", frozenset())
    return frozenset(found) | read_before


@dataclass(frozen=True)
class GuideRun:
    """
    A fitted guide and its model, with the arguments that they are run with.

    :param guide: the guide, with a Laplace approximation carried out, and a joint normal in one statement.
    :param model: the model, without what an autoguide wraps around it.
    :param args: positional arguments of both.
    :param kwargs: keyword arguments of both.
    :param given: the guide as it was given; None where that is ``guide``.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_bmrs.posteriors import GuideRun
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide():
        ...     pyro.sample("x", dist.Normal(torch.ones(2), 0.5).to_event(1))
        >>> GuideRun(guide, model, (), {}).latent
        frozenset({'x'})
    """

    guide: Any
    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: Any = None

    @cached_property
    def traces(self) -> tuple[poutine.Trace, poutine.Trace]:
        """A trace of the guide, or of the values that an autoguide began with, and of the model upon its values."""
        guide = self.guide
        guide_trace = first_run(guide)
        if guide_trace is None:
            guide_trace = trace_guide(guide, self.args, self.kwargs)
            if isinstance(guide, GuideMessenger):
                return guide_trace, guide.get_traces()[0]
        replayed = replay_whole(self.model, guide_trace)
        return guide_trace, poutine.trace(replayed).get_trace(*self.args, **self.kwargs)

    @cached_property
    def latent(self) -> frozenset[str]:
        """All the model's latent sites."""
        return frozenset(latent_nodes(self.traces[1]))

    @cached_property
    def sites(self) -> frozenset[str]:
        """The model's latent sites that the guide draws."""
        return self.latent & frozenset(latent_nodes(self.traces[0]))


def run(
    guide: Any, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of one run of a guide, and of the model upon its values."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    if isinstance(guide, GuideMessenger):
        model_trace, guide_trace = guide.get_traces()
        return guide_trace, model_trace
    replayed = poutine.replay(model, trace=guide_trace)
    return guide_trace, poutine.trace(replayed).get_trace(*args, **kwargs)


def first_run(guide: Any) -> poutine.Trace | None:
    """The trace of the model that an autoguide was set up with; None where there is none, or it is empty by now."""
    trace = getattr(guide, "prototype_trace", None)
    # A structured guide empties its own once it has read it.
    return trace if isinstance(trace, poutine.Trace) and all(trace.nodes.values()) else None


def replay_whole(model: Callable[..., Any], guide_trace: Any) -> Callable[..., Any]:
    """The model at the guide's values, but for those of one subsample, where the model may take another."""
    values = guide_trace.copy()
    for name, site in latent_nodes(guide_trace).items():
        if subsampled_plates(site):
            values.remove_node(name)
    return poutine.replay(model, trace=values)


def trace_guide(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """
    A trace of a guide.

    :raises ReductionError: for a function whose parameters come to be only now, which has not been fitted, and for
        parameters that are NaN.
    """
    store = pyro.get_param_store()
    before = set(store.keys())
    with _NoneIsNaN():
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
    created = sorted(set(store.keys()) - before)
    if created and not isinstance(_innermost(guide), torch.nn.Module):
        for name in created:
            del store[name]
        raise ReductionError(
            f"the guide has not been fitted: its parameters {created} did not exist; run SVI with it first"
        )
    return guide.get_traces()[1] if isinstance(guide, GuideMessenger) else trace


def _innermost(program: Any) -> Any:
    """A program out of the handlers around it."""
    while isinstance(program, _bound_partial) and isinstance(program.func, partial):
        program = program.func.args[1]
    return program


class _NoneIsNaN(Messenger):
    """Looks at each parameter that a program asks for."""

    def _pyro_post_param(self, msg: Any) -> None:
        check_no_nan(msg["name"], msg["value"])


def check_no_nan(name: str, parameter: Tensor) -> None:
    """
    Whether a parameter of a guide is a number in all elements.

    :raises ReductionError: with the count of those that are not.
    """
    wrong = parameter.detach().isnan()
    if wrong.any():
        raise ReductionError(
            f"the guide's parameter {name!r} is NaN at {int(wrong.sum())} of {wrong.numel()} elements: SVI has "
            "diverged; fit again from another start, with smaller steps"
        )


def track_guide(guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """A trace of a guide in which every value knows the sites that it was computed from."""
    tracked = track(guide, args, kwargs)
    return guide.get_traces()[1] if isinstance(guide, GuideMessenger) else tracked


def latent_nodes(trace: poutine.Trace) -> dict[str, Any]:
    """The latent sample sites of a trace, without the plates' own subsampling sites."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def subsampled_plates(site: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """The subsampled plates around a site: batch dimension, subsample size and size of each."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    return [(f.dim, f.size, f.full_size) for f in frames if f.full_size and f.full_size != f.size]


def of_one_branch(name: str, what: str) -> ReductionError:
    """The error for a site that some runs have and others lack."""
    return ReductionError(
        f"{what} has site {name!r} in some runs and lacks it in others, as after an if on a value, so that it has "
        "neither a prior nor a posterior; have it drawn in all runs (its prior may depend on the branch)"
    )


def masked_prior(site: Mapping[str, Any]) -> Distribution:
    """The prior of a site, with the elements masked that a handler such as ``poutine.mask`` takes out of the model."""
    prior: Any = site["fn"]
    masked: Distribution = prior if site["mask"] is None or site["mask"] is True else prior.mask(site["mask"])
    return masked


def weight(site: Mapping[str, Any]) -> Tensor | float:
    """
    The power to which the model raises a site's prior, by ``poutine.scale``: 1 for most.

    The scale of a subsampled plate does not count: it makes up for elements that are not there.
    """
    plates = math.prod(size / subsample for _, subsample, size in subsampled_plates(site))
    scale: Any = site["scale"]
    if isinstance(scale, Tensor):
        relative = scale / plates
        return 1.0 if torch.allclose(relative, torch.ones_like(relative)) else relative
    return 1.0 if math.isclose(scale, plates, rel_tol=1e-6) else float(scale / plates)


def accepts(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a program can be called with these arguments."""
    target = program.forward if isinstance(program, torch.nn.Module) else program
    try:
        inspect.signature(target).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        return True  # a handler around a program shows no signature
    return True

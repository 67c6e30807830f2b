# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Latent sites with finitely many values summed out, in a way that :func:`torch.func.vmap` can follow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor


def enumerated(model: Callable[..., Any], nesting: int) -> Callable[..., Any]:
    """
    The model with all values of its discrete sites at once, in dimensions to the left of its plates.

    :param model: the model.
    :param nesting: how deep its plates are nested.
    """
    return _Enumerating(first_available_dim=-1 - nesting)(config_enumerate(model))


class SumProduct:
    """
    The log density of a trace with its enumerated sites summed out.

    :param trace: a trace of the enumerated model; others have its structure.
    :param nesting: how deep its plates are nested.
    """

    def __init__(self, trace: poutine.Trace, nesting: int) -> None:
        self._evaluator: Any = TraceEinsumEvaluator(trace, True, nesting)

    def log_prob(self, trace: poutine.Trace) -> Tensor:
        """The log density of another trace, 0-d, in nats."""
        factors = self._evaluator._get_log_factors(trace)
        with shared_intermediates() as cache:
            ring = _Ring(cache)  # type: ignore[no-untyped-call]
            total: Tensor = contract_to_tensor(factors, self._evaluator._enum_dims, ring=ring)
        return total


class _Enumerating(EnumMessenger):
    """Pyro's own, but for one line that asks a tensor for its data, which vmap does not give."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], TorchDistributionMixin) or msg["value"] is None:
            return
        shape = msg["value"].shape[: msg["value"].dim() - msg["fn"].event_dim]
        dim_to_id = msg["infer"].setdefault("_dim_to_id", {})
        dim_to_id.update(self._param_dims.get(msg["name"], {}))
        exposed = {dim: id_ for dim, id_ in dim_to_id.items() if len(shape) >= -dim and shape[dim] > 1}
        self._value_dims[msg["name"]] = exposed


class _Ring(LogRing):
    """Sums of products by broadcasting, since those of Pyro have a gradient of their own that vmap does not take."""

    def sumproduct(self, terms: Sequence[Any], dims: Collection[str]) -> Any:
        symbols = sorted(set("".join(term._pyro_dims for term in terms)))
        total: Any = sum(_aligned(term, symbols) for term in terms)
        summed = [place for place, symbol in enumerate(symbols) if symbol in dims]
        result: Any = torch.logsumexp(total, summed) if summed else total + 0.0
        result._pyro_dims = "".join(symbol for symbol in symbols if symbol not in dims)
        return result


def _aligned(term: Any, symbols: Sequence[str]) -> Tensor:
    """A packed term with its dimensions in the order of the symbols, and one of size 1 for those that it lacks."""
    own = [term._pyro_dims.index(symbol) for symbol in symbols if symbol in term._pyro_dims]
    ordered: Tensor = term.permute(own)
    sizes = iter(ordered.shape)
    return ordered.reshape([next(sizes) if symbol in term._pyro_dims else 1 for symbol in symbols])

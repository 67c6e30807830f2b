# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Multiplicative noise: one latent variable for each unit of a layer, which says how much the unit is needed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution
from pyro.nn import PyroModule
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.errors import ReductionError, ReductionWarning
from pyro_bmrs.pruning.noise.steps.precision import at_least_single
from pyro_bmrs.pruning.noise.steps.recalled import Recalled, is_recomputing, may_be_recomputed
from pyro_bmrs.pruning.noise.steps.remembered import Remembered
from pyro_bmrs.structure.vectorised import TURN

# By which handlers know the sites.
_MARK: Any = {"is_noise": True}


class Learned(NamedTuple):
    """
    What a guide has learned of one noise.

    :param parameters: log-locations and logs of the log-scales of all units of the guide, shape ``(2, units)``.
    :param units: which of them are this noise's.
    """

    parameters: Tensor
    units: slice

    def posterior(self, prior: LogUniform) -> TruncatedLogNormal:
        """The posterior of each unit, without gradients, given its prior."""
        loc, log_scale = self.parameters.detach()[:, self.units].to(prior.low)
        return TruncatedLogNormal(loc, log_scale.exp(), prior.low, prior.high)


class MultiplicativeNoise(PyroModule):
    r"""
    Multiplies each unit of its input by a latent variable with a log-uniform prior.

    The sample site's value has shape ``(num_units,)`` and its prior is ``LogUniform(low, high)``, an ordinary Pyro site
    that any guide may fit, as :class:`~pyro_bmrs.pruning.AutoTruncatedLogNormal` does (K. Neklyudov et al. (2017),
    *Structured Bayesian pruning via log-normal multiplicative noise*, https://arxiv.org/abs/1705.07283). Where the data
    do not need a unit, the posterior of its noise collapses to the low end.

    ``kept`` is a buffer of shape ``(num_units,)``. A unit that is not kept is multiplied by 0 exactly, and its element
    of the site is masked: no density, no divergence and no gradient, while the site keeps its shape.

    With ``per_example`` and in training mode, each example (along the first dimension of the input) has a draw of its
    own, which lowers the variance of the gradients: the site is sampled in a plate over the examples and scaled by one
    over their number, so that its divergence counts once, under ``Trace_ELBO`` (whose estimate of it averages over the
    examples) as under ``TraceMeanField_ELBO``. The expected loss is that of one draw for all. In evaluation mode there
    is always one draw.

    Called as a plain module, with no Pyro handler around it, it takes what the guide that was made for it last has
    learned: the posterior mean in evaluation mode, as networks predict with, and a draw of the posterior, without
    gradients to its parameters, in training mode. Where there is no guide it draws from the prior, and warns.

    Noise is in single precision at least, and its product with the input in the input's.

    Call the network outside the plate of the data: inside, Pyro would take the noise for a variable of each example.

    :param num_units: how many units share the input's dimension ``dim``.
    :param dim: the dimension of the input that counts the units: 1 for features and for the channels of images, -1 for
        the features of sequences. None where the whole input is one unit.
    :param unit_size: how many consecutive elements of that dimension are one unit, such as the features of one
        attention head, or the pixels of one flattened channel.
    :param per_example: whether to draw for each example in training, rather than once.
    :param low: lower end of the prior, positive.
    :param high: its upper end.
    :param name: name of the sample site; by default that of the module in the Pyro module around it.
    :raises ReductionError: for no units, a ``unit_size`` below 1, or ends of the prior that are not
        ``0 < low < high < inf``; when called, for an input whose dimension does not hold ``num_units * unit_size``
        elements.

    Example::

        >>> import pyro, torch
        >>> from pyro_bmrs.pruning import MultiplicativeNoise
        >>> noise = MultiplicativeNoise(3, name="hidden")
        >>> noise.kept[1] = False
        >>> with pyro.condition(data={"hidden": torch.tensor([0.5, 0.5, 1.0])}):
        ...     noise(torch.ones(2, 3))
        tensor([[0.5000, 0.0000, 1.0000],
                [0.5000, 0.0000, 1.0000]])
    """

    kept: Tensor
    like: Tensor
    # What draws the noise of a given shape in the place of a sample statement, while there is such a thing.
    given: Callable[[tuple[int, ...]], Tensor] | None = None
    # What the guide that was made last has learned of it; not a parameter of this module.
    learned: Learned | None = None
    # Whether it ever acted: noise that a network passes by is never drawn.
    has_acted = False

    def __init__(
        self,
        num_units: int,
        *,
        dim: int | None = 1,
        unit_size: int = 1,
        per_example: bool = False,
        low: float = math.exp(-20),
        high: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if num_units < 1 or unit_size < 1 or (dim is None and num_units > 1):
            raise ReductionError(
                f"noise needs at least one unit of at least one element, and one alone where dim is None; not "
                f"{num_units} of {unit_size}"
            )
        if not 0 < low < high < math.inf:
            raise ReductionError(f"the noise's prior needs 0 < low < high < inf, not low={low!r} and high={high!r}")
        if per_example and dim == 0:
            raise ReductionError("per_example needs the examples in dimension 0 of the input; units cannot be there")
        self.num_units, self.dim, self.unit_size, self.per_example = num_units, dim, unit_size, per_example
        self._site_name = name
        self.register_buffer("kept", torch.ones(num_units, dtype=torch.bool))
        self.low, self.high = low, high
        # Its dtype and device are the prior's.
        self.register_buffer("like", at_least_single(torch.empty(0)), persistent=False)
        self._is_whole: Remembered[bool] = Remembered()
        self._priors: Remembered[tuple[LogUniform, Independent]] = Remembered()
        self._mean: Remembered[Tensor] = Remembered()
        self._recalled = Recalled()

    @property
    def site_name(self) -> str:
        """The name of the sample site."""
        return self._site_name or self._pyro_name or "noise"

    @property
    def prior(self) -> Independent:
        """The prior of the noise, masked where units are not kept; of event shape ``(num_units,)``."""
        return self._both_priors()[1]

    @property
    def unit_prior(self) -> LogUniform:
        """The prior of each unit's noise, kept or not; of batch shape ``(num_units,)``."""
        return self._both_priors()[0]

    def _both_priors(self) -> tuple[LogUniform, Independent]:
        return self._priors.of(self.buffers_of_prior, self._make_priors)

    def _make_priors(self) -> tuple[LogUniform, Independent]:
        low, high = self.like.new_tensor(self.low), self.like.new_tensor(self.high)
        units = LogUniform(low, high).expand((self.num_units,))
        return units, MaskedDistribution(units, self.kept).to_event(1)

    @property
    def buffers_of_prior(self) -> tuple[Tensor, Tensor]:
        """What the prior is made of: ``kept``, and an empty tensor of its dtype and on its device."""
        # Past the module's own __getattr__, since this is asked for in every step.
        buffers: Any = self._buffers
        return buffers["kept"], buffers["like"]

    def forward(self, input: Tensor) -> Tensor:
        """The input times the noise, with 0 for units that are not kept."""
        return self.multiply(input, self.draw(len(input)))

    def draw(self, num_examples: int) -> Tensor:
        """
        The noise: for each unit, or for each example and unit.

        :param num_examples: how many examples there are.
        """
        if torch.compiler.is_compiling():
            return self._draw_uncompiled(num_examples)
        with TURN:
            given = self.given
            if given is None and is_recomputing():
                return self._recalled.again(self.site_name, self.buffers_of_prior[1].device)
            # Past the module's own __setattr__, which costs as much as the draw.
            vars(self)["has_acted"] = True
            is_per_example = self.per_example and self.training
            if may_be_recomputed():
                device = self.buffers_of_prior[1].device
                return self._recalled.draw(device, lambda: self._draw(num_examples, is_per_example))
            if given is not None:
                return given((num_examples,) if is_per_example else ())
            return self._draw(num_examples, is_per_example)

    # Draws depend on states outside the graph; what stands between two of them is compiled.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _draw_uncompiled(self, num_examples: int) -> Tensor:
        return self.draw(num_examples)

    def _draw(self, num_examples: int, is_per_example: bool) -> Tensor:
        if self.given is not None:
            return self.given((num_examples,) if is_per_example else ())
        if not _PYRO_STACK:
            return self._by_itself((num_examples,) if is_per_example else ())
        # Of a layer that is called again, the value of its first call.
        for handler in _PYRO_STACK:
            if isinstance(handler, TraceMessenger) and self.site_name in handler.trace:
                return cast(Tensor, handler.trace.nodes[self.site_name]["value"])
        if not is_per_example:
            return self._sample()
        with pyro.plate(f"{self.site_name}.examples", num_examples, dim=-1), poutine.scale(scale=1 / num_examples):
            return self._sample()

    def _sample(self) -> Tensor:
        """The noise by a sample statement."""
        value: Tensor = pyro.sample(self.site_name, self.prior, infer=_MARK)
        return value

    @torch.no_grad()
    def _by_itself(self, shape: tuple[int, ...]) -> Tensor:
        """The noise where nobody hears a sample statement."""
        learned = self.learned
        if learned is None:
            warnings.warn(
                f"no guide has learned the noise at site {self.site_name!r}, and it is drawn from its prior: make an "
                "AutoTruncatedLogNormal of the model, and train it or load its state; then the network predicts with "
                "the mean",
                ReductionWarning,
                stacklevel=3,
            )
            return self.unit_prior.sample(shape)
        if self.training:
            return learned.posterior(self.unit_prior).sample(shape)
        tensors = learned.parameters, *self.buffers_of_prior
        return self._mean.of(tensors, lambda: learned.posterior(self.unit_prior).mean)

    def multiply(self, input: Tensor, noise: Tensor) -> Tensor:
        """
        What has units along its dimension ``dim`` times the noise.

        :param input: the network's values, or weights that those are multiplied with.
        :param noise: that was drawn.
        """
        dim = self._unit_dim(input)
        noise = self.kept_part(noise)
        if self.unit_size > 1:
            noise = noise.repeat_interleave(self.unit_size, dim=-1)
        batch, trailing = noise.shape[:-1], input.dim() - 1 - dim
        if batch or trailing:
            between = (1,) * (dim - 1) if batch else ()
            noise = noise.reshape(batch + between + noise.shape[-1:] + (1,) * trailing)
        product = input * noise
        # In the precision of the layers, which may be less than that of noise.
        return product if product.dtype == input.dtype else product.to(input.dtype)

    def kept_part(self, noise: Tensor) -> Tensor:
        """Noise that was drawn, with 0 for units that are not kept."""
        return noise if self.is_whole else noise * self.kept

    @property
    def is_whole(self) -> bool:
        """Whether all units are kept."""
        kept = self.buffers_of_prior[:1]
        return self._is_whole.of(kept, lambda: bool(kept[0].all()))

    def _unit_dim(self, input: Tensor) -> int:
        """The dimension of the input along which the noise varies, counted from the left."""
        if self.dim is None:
            return input.dim() - 1
        dim = self.dim + input.dim() if self.dim < 0 else self.dim
        if dim >= input.dim() or input.shape[dim] != self.num_units * self.unit_size:
            units = f"{self.num_units} units" + (f" of {self.unit_size} elements" if self.unit_size > 1 else "")
            raise ReductionError(
                f"noise site {self.site_name!r} is for {units} in dimension {self.dim}, and its input has shape "
                f"{tuple(input.shape)}"
            )
        return dim

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What moves and converts a module; noise stays in single precision at least."""
        parent: Any = super()
        module = parent._apply(fn, recurse)
        self.like = at_least_single(self.like)
        return module

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads what is kept; weights of a network without noise do not say, and what is kept stays."""
        if f"{prefix}kept" in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What :func:`repr` shows."""
        options = [f"{name}={value}" for name, value in (("unit_size", self.unit_size),) if value != 1]
        options += ["per_example=True"] if self.per_example else []
        return ", ".join([f"{self.site_name!r}", f"{self.num_units} units", f"dim={self.dim}", *options])

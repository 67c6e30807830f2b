# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Multiplicative noise: one latent variable for each unit of a layer, which says how much the unit is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution
from pyro.nn import PyroModule
from torch import Tensor

from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.noise.remembered import Remembered

# By which handlers know the sites.
_MARK: Any = {"is_noise": True}


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

        >>> import torch
        >>> from pyro_bmrs.pruning import MultiplicativeNoise
        >>> noise = MultiplicativeNoise(3, name="hidden")
        >>> noise.kept[1] = False
        >>> noise(torch.ones(2, 3))[:, 1]
        tensor([0., 0.])
    """

    kept: Tensor
    like: Tensor
    # What draws the noise of a given shape in the place of a sample statement, while there is such a thing.
    given: Callable[[tuple[int, ...]], Tensor] | None = None

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
        self.register_buffer("like", torch.empty(0), persistent=False)
        self._is_whole: Remembered[bool] = Remembered()
        self._priors: Remembered[tuple[LogUniform, Independent]] = Remembered()

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
        The noise, by a sample statement: for each unit, or for each example and unit.

        :param num_examples: how many examples there are.
        """
        if not (self.per_example and self.training):
            return self._sample()
        if self.given is not None:
            return self.given((num_examples,))
        with pyro.plate(f"{self.site_name}.examples", num_examples, dim=-1), poutine.scale(scale=1 / num_examples):
            return self._sample()

    def multiply(self, input: Tensor, noise: Tensor) -> Tensor:
        """
        What has units along its dimension ``dim`` times the noise.

        :param input: the network's values, or weights that those are multiplied with.
        :param noise: that was drawn.
        """
        dim = self._unit_dim(input)
        if not self.is_whole:
            noise = noise * self.kept
        if self.unit_size > 1:
            noise = noise.repeat_interleave(self.unit_size, dim=-1)
        batch, trailing = noise.shape[:-1], input.dim() - 1 - dim
        if batch or trailing:
            between = (1,) * (dim - 1) if batch else ()
            noise = noise.reshape(batch + between + noise.shape[-1:] + (1,) * trailing)
        return input * noise

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

    def _sample(self) -> Tensor:
        if self.given is not None:
            return self.given(())
        return pyro.sample(self.site_name, self.prior, infer=_MARK)

    def extra_repr(self) -> str:
        """What :func:`repr` shows."""
        options = [f"{name}={value}" for name, value in (("unit_size", self.unit_size),) if value != 1]
        options += ["per_example=True"] if self.per_example else []
        return ", ".join([f"{self.site_name!r}", f"{self.num_units} units", f"dim={self.dim}", *options])

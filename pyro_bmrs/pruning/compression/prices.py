# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

r"""
What a unit of a network costs in nats: Occam's factor of the weights that come and go with it.

Noise on a unit knows what the data lose without it, and nothing of what its weights cost, since those are fitted as a
point. With Laplace's approximation of the weights by themselves, a normal prior of precision :math:`\delta` on the
weights of a layer, and N examples, the log evidence with a weight is that of its best value less

.. math:: \tfrac12 \log(1 + N f / \delta) + \tfrac12 \delta w^2,

with f its Fisher information per example: what the data have to gain by the weight for it to be worth its while. The
precision is that which maximises the evidence of the layer (D. MacKay (1992), *A practical Bayesian framework for
backpropagation networks*; A. Immer et al. (2021), *Scalable marginal likelihood estimation for model selection in deep
learning*, https://arxiv.org/abs/2104.04975).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.examples import evaluation, one_by_one
from pyro_bmrs.pruning.noise.attachment import noise_sites
from pyro_bmrs.pruning.training.batches import prediction, run_on_batch, targets_of
from pyro_bmrs.pruning.training.classification import Classification
from pyro_bmrs.pruning.training.models import Likelihood
from pyro_bmrs.structure.vectorised import own_random_numbers, set_seed

if TYPE_CHECKING:
    import pandas as pd

# What an active unit pays in divergence from its log-uniform prior: noise of a scale between 1 and 10 % on twenty nats.
NATS_OF_ACTIVE_UNIT = 5.0
# The examples that the Fisher information is the mean of; those of a layer are averages over its weights besides.
_NUM_EXAMPLES = 128
# So many units of a site are taken out by turns, to see which weights have no part in the network without them.
_MOST_PROBED = 16
_NUM_PROBING = 32
_MOST_STEPS = 100


@dataclass(frozen=True)
class OccamPrices:
    """
    What the units of a network cost in nats, as :func:`occam_prices` finds.

    :param units: for each noise site the price of each of its units, 0 for those that are gone; shape ``(num_units,)``.
    :param precisions: for each parameter of the network the precision of its prior; infinite where all of it is 0, and
        NaN where no example tells anything of it.

    Example::

        >>> import torch
        >>> from pyro_bmrs.pruning import Occam, OccamPrices
        >>> Occam(OccamPrices({"0": torch.tensor([10.0, 20.0])}, {}))["0"]
        3.0
    """

    units: Mapping[str, Tensor]
    precisions: Mapping[str, float]

    @property
    def sites(self) -> dict[str, float]:
        """For each noise site the mean price of the units that are left; 0 where none is."""
        return {name: float(price.sum() / (price > 0).sum().clamp(min=1)) for name, price in self.units.items()}

    @property
    def table(self) -> pd.DataFrame:
        """A row for each unit, by site and number, with its ``price`` in nats."""
        import pandas as pd

        index = [(name, unit) for name, price in self.units.items() for unit in range(len(price))]
        prices = [number for price in self.units.values() for number in price.tolist()]
        return pd.DataFrame({"price": prices}, index=pd.MultiIndex.from_tuples(index, names=["site", "unit"]))

    def __repr__(self) -> str:
        return f"OccamPrices({', '.join(f'{name}: {price:.3g}' for name, price in self.sites.items())} nats a unit)"


class Occam(Mapping[str, float]):
    """
    A KL weight for each noise site by which an active unit pays its price.

    The divergence of an active unit is some 5 nats, whatever the network; times a fifth of the unit's price it is the
    price. So a network with noise is trained as one in which a unit's weights are paid for, and no weight is chosen.

    :param prices: the prices; a site's units all pay their mean.
    :param temperature: what the prices are multiplied by. It may be set anew in the course of training.
    :param power: to which the prices of sites are raised, in units of their geometric mean: 1 leaves them, and 0 makes
        them all alike. Laplace's approximation has each weight tell something of its own. The more weights a unit has,
        the more they say the same, and the more its price is too high. With a power of a half, which
        :func:`compress` takes, networks of one size did better on MNIST.
    :raises ReductionError: for a temperature that is negative or not finite, and a power that is not from 0 to 1.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import Classification, Occam, attach_noise, occam_prices
        >>> _ = torch.manual_seed(0)
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)))
        >>> model = Classification(net, num_examples=200)
        >>> model.kl_weight = Occam(occam_prices(model, [(torch.randn(200, 3), None)]))
        >>> 0.1 < model.noise_weight("0") < 10
        True
    """

    def __init__(self, prices: OccamPrices, temperature: float = 1.0, power: float = 1.0) -> None:
        if not 0 <= power <= 1:
            raise ReductionError(f"the power of prices is from 0 to 1, and not {power!r}")
        self.prices = prices
        logs = [math.log(price) for price in prices.sites.values() if price > 0]
        mean = math.exp(math.fsum(logs) / len(logs)) if logs else 1.0
        self._sites: dict[str, float] = {site: mean * (price / mean) ** power for site, price in prices.sites.items()}
        self.temperature = temperature

    @property
    def temperature(self) -> float:
        """What the prices are multiplied by."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ReductionError(f"the temperature of prices is a finite number, not negative, and not {temperature!r}")
        self._temperature = float(temperature)

    def __getitem__(self, site: str) -> float:
        return self._temperature * self._sites[site] / NATS_OF_ACTIVE_UNIT

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        weights = ", ".join(f"{name}: {weight:.3g}" for name, weight in self.items())
        return f"Occam(temperature={self._temperature:.3g}, {weights})"


def occam_prices(
    model: Likelihood, batches: Iterable[Any], *, gates: Mapping[str, Tensor] | None = None
) -> OccamPrices:
    """
    What each unit of a trained network costs in nats, by Laplace's approximation of its weights.

    That is Occam's factor of D. J. C. MacKay (1992), *A practical Bayesian framework for backpropagation networks*,
    https://doi.org/10.1162/neco.1992.4.3.448, for the weights of one unit.

    The weights of a unit are those of which the network does not depend while the unit's noise is 0: what makes it, and
    what reads it. They are found by taking out units by turns, up to 16 of a site; the others cost as much as those on
    average. The Fisher information is that of the model, the mean over up to 128 examples of squared gradients of the
    log likelihood of what the model itself would have observed; what was observed is not asked for. The network is in
    evaluation mode, and stays as it is; so do the random number generators.

    :param model: the network with noise, trained or on the way, and its likelihood, which knows how many examples
        there are in all.
    :param batches: pairs of inputs and targets (which may be None), or mappings that hold both; a list or a loader.
    :param gates: the noise of each site at which the network is looked at, as ``guide.mean_noise()``; 1 by default.
    :return: the :class:`OccamPrices`.
    :raises ReductionError: for a network without noise, no example, or weights or gradients that are not finite.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import Regression, attach_noise, occam_prices
        >>> net = attach_noise(nn.Sequential(nn.Linear(1, 2, bias=False), nn.Identity(), nn.Linear(2, 1, bias=False)))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [0.0]])), net[2].weight.data.fill_(2.0)
        >>> prices = occam_prices(Regression(net, num_examples=100), [(torch.ones(4, 1), None)])
        >>> prices.units["0"].tolist() == sorted(prices.units["0"].tolist(), reverse=True)
        True
    """
    net = model.net
    sites = noise_sites(net)
    if not sites:
        raise ReductionError("the network has no noise; attach_noise(net) puts it there")
    bad = [name for name, weight in net.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise ReductionError(f"the weights {bad} are not finite: train again, at a lower rate")
    noise = {name: torch.ones_like(site.noise.unit_prior.low) for name, site in sites.items()}
    noise |= {name: gate.detach() for name, gate in (gates or {}).items()}
    like = next(iter(noise.values()))
    with evaluation(net), own_random_numbers(), torch.enable_grad():
        set_seed(0)
        pairs = _first_examples(batches, like.device)
        information = _information(model, noise, pairs)
        maps, precisions = {}, {}
        for name, weight in _parameters(net).items():
            maps[name], precisions[name] = weight_prices(weight.detach(), model.num_examples * information[name])
        few = tree_map_only(Tensor, lambda value: value[:_NUM_PROBING], pairs[0][0])
        units = unit_totals(net, noise, few, maps)
    return OccamPrices(units, precisions)


def weight_prices(weight: Tensor, information: Tensor) -> tuple[Tensor, float]:
    """
    What each weight of a layer costs, and the precision of their prior that maximises the layer's evidence.

    Exact where the log likelihood is quadratic in the weights, and they do not know of each other.

    :param weight: the weights at their best values, any shape.
    :param information: the Fisher information that the data have of each, of the same shape, not negative. A weight of
        which they have none has no part in the evidence.
    :return: the prices in nats, of the shape of the weights, and the precision.

    Example::

        >>> import torch
        >>> prices, precision = weight_prices(torch.tensor([1.0, -1.0]), torch.tensor([99.0, 99.0]))
        >>> round(precision, 3), prices
        (0.99, tensor([2.8026, 2.8026]))
    """
    known = information > 0
    info, best = information[known].double(), weight[known].double()
    square = best.square().sum()
    if not known.any():
        return torch.zeros_like(weight), math.nan
    if not square > 0:
        return torch.zeros_like(weight), math.inf
    # Newton's steps on the logarithm of what is one at the maximum, whose slope is between -1 and -2.
    log_precision = (len(info) / square).log()
    for _ in range(_MOST_STEPS):
        shrunk = info / (info + log_precision.exp())
        determined = shrunk.sum()
        slope = -1 - (shrunk * (1 - shrunk)).sum() / determined
        change = (determined.log() - log_precision - square.log()) / slope
        log_precision = log_precision - change
        if abs(change) < 1e-12:
            break
    precision = log_precision.exp()
    prices = torch.zeros_like(weight)
    prices[known] = (0.5 * torch.log1p(info / precision) + 0.5 * precision * best.square()).to(weight.dtype)
    return prices, float(precision)


def _first_examples(batches: Iterable[Any], device: torch.device) -> list[tuple[Any, Tensor | None]]:
    """The first batches, of as many examples as are needed."""
    pairs: list[tuple[Any, Tensor | None]] = []
    count = 0
    for batch in batches:
        x, y = batch if isinstance(batch, tuple | list) else (batch, None)
        pair = tree_map_only(Tensor, lambda value: value.detach().to(device), (x, targets_of(x, y)))
        pairs.append(pair)
        count += sum(1 for _ in one_by_one(pair[0]))
        if count >= _NUM_EXAMPLES:
            break
    if not count:
        raise ReductionError("prices are averages over examples, and there is none")
    return pairs


def _parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in net.named_parameters() if weight.requires_grad}


def _gradients(net: nn.Module, value: Tensor) -> dict[str, Tensor]:
    weights = _parameters(net)
    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), gradients)
    }


def _information(
    model: Likelihood, noise: Mapping[str, Tensor], pairs: Sequence[tuple[Any, Tensor | None]]
) -> dict[str, Tensor]:
    """The Fisher information that an example has of each weight."""
    total = {name: torch.zeros_like(weight) for name, weight in _parameters(model.net).items()}
    singles = (example for x, y in pairs for example in zip(one_by_one(x), repeat(None) if y is None else y.split(1)))
    examples = list(islice(singles, _NUM_EXAMPLES))
    for x, y in examples:
        with poutine.condition(data=dict(noise)):
            output, targets = model.aligned(prediction(run_on_batch(model.net, x)), y)
        drawn = model.observation(output.detach()).sample()
        if targets is not None and isinstance(model, Classification):
            drawn = torch.where(targets.eq(model.ignore_index), targets, drawn)
        for name, gradient in _gradients(model.net, model.log_likelihood(output, drawn)).items():
            total[name] += gradient.square() / len(examples)
    bad = [name for name, information in total.items() if not information.isfinite().all()]
    if bad:
        raise ReductionError(f"the gradients of {bad} are not finite: train again, at a lower rate")
    return total


def unit_totals(
    net: nn.Module, noise: Mapping[str, Tensor], inputs: Any, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """
    For each unit the sum over its weights of some number for each.

    Its weights are those on which the output depends, but not while the unit's noise is 0. Up to 16 units of a site are
    taken out by turns; others have what those have on average.

    :param net: a network with noise, in evaluation mode.
    :param noise: of each site, shape ``(num_units,)``.
    :param inputs: of some examples.
    :param weights: for each parameter that requires a gradient the numbers, of its shape.
    :return: for each site the sums, 0 for units that are gone; shape ``(num_units,)``.
    """
    takes_part = {name: gradient != 0 for name, gradient in _sensitivities(net, noise, inputs).items()}
    units = {}
    for name, site in noise_sites(net).items():
        left = site.noise.kept.nonzero().flatten()
        evenly = torch.linspace(0, max(len(left) - 1, 0), min(len(left), _MOST_PROBED), device=left.device)
        probed = left[evenly.round().long()]
        of_site = torch.zeros_like(noise[name])
        for unit in probed:
            without = {**noise, name: noise[name].index_fill(0, unit, 0.0)}
            gradients = _sensitivities(net, without, inputs)
            own = [weights[key][takes_part[key] & (gradient == 0)].sum() for key, gradient in gradients.items()]
            of_site[unit] = torch.stack(own).sum()
        others = site.noise.kept.index_fill(0, probed, False)
        units[name] = torch.where(others, of_site[probed].mean(), of_site) if len(probed) else of_site
    return units


def _sensitivities(net: nn.Module, noise: Mapping[str, Tensor], inputs: Any) -> dict[str, Tensor]:
    """How the output depends on each weight, in some direction that no weight is at right angles to but by chance."""
    with poutine.condition(data=dict(noise)):
        outputs = run_on_batch(net, inputs)
    generator = torch.Generator().manual_seed(1)
    total: Any = 0.0
    for output in tree_leaves(outputs):
        if torch.is_tensor(output) and output.requires_grad:
            direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            total = total + (output * direction.to(output)).sum()
    return _gradients(net, total)

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The change in log evidence without a unit, evaluated on the data at both ends: with the unit, and without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_bmrs.distributions import LogUniform
from pyro_bmrs.errors import ReductionError, check_number
from pyro_bmrs.evidence import log_evidence_change
from pyro_bmrs.pruning.criteria.criterion import Scores, check_guide
from pyro_bmrs.pruning.criteria.evidence.unit_likelihoods import unit_likelihoods
from pyro_bmrs.pruning.criteria.evidence.unit_moments import UnitLikelihoods
from pyro_bmrs.pruning.criteria.evidence.unit_profile import Places, UnitProfile, places, without_between
from pyro_bmrs.pruning.noise.guide import AutoTruncatedLogNormal
from pyro_bmrs.pruning.training.models import Likelihood

if TYPE_CHECKING:
    import pandas as pd

# Examples with which the network is run for each unit, unless users say otherwise.
NUM_EXACT = 1000
# Units whose integrals are taken together.
_MOST_UNITS = 256


@dataclass(frozen=True, repr=False)
class UnitEvidence:
    """
    What the data say of each unit of a network: the change in log evidence without it, in nats, and what it is made of.

    All are by site, of shape ``(units,)``, and 0 for units that are gone.

    :param change: the change in log evidence, of the likelihood to the power of one over the KL weight.
    :param standard_error: of the change, since not all examples were looked at, or run; 0 where they were.
    :param interpolation_error: an estimate of how much the change may be wrong since the log likelihood was evaluated
        at few values of the noise: by how much one of these matters. Mostly the error is less.
    :param removal: the change in the log likelihood of all the data when the noise is put to its low end; of the
        likelihood itself, whatever the KL weight.
    :param kl_weights: by site, what the divergence was multiplied by in the fit.
    :param num_examples: how many examples there are.
    :param num_evaluated: how many of them were looked at.
    :param num_exact: with how many of these each unit was changed in the network; of the others its outputs were taken
        to be linear in the noise.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from pyro_bmrs import pruning
        >>> _ = torch.manual_seed(0)
        >>> net = pruning.attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> model = pruning.Classification(net, num_examples=20)
        >>> guide = pruning.AutoTruncatedLogNormal(model)
        >>> with torch.no_grad():  # in place of fitting
        ...     guide.noise_locs[:3] = -20.0
        >>> found = pruning.BMRS_N().evaluate(net, guide, [(torch.randn(20, 3), torch.randint(2, (20,)))])
        >>> found.change["0"].shape, found.num_examples
        (torch.Size([4]), 20)
    """

    change: Scores
    standard_error: Scores
    interpolation_error: Scores
    removal: Scores
    kl_weights: dict[str, float]
    num_examples: int
    num_evaluated: int
    num_exact: int

    @property
    def error(self) -> Scores:
        """Both errors together, as the root of the sum of their squares."""
        return {name: torch.hypot(error, self.interpolation_error[name]) for name, error in self.standard_error.items()}

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each unit, by site and number."""
        import pandas as pd

        index = [(name, unit) for name, change in self.change.items() for unit in range(len(change))]
        fields = ("change", "standard_error", "interpolation_error", "removal")
        columns = {field: torch.cat(list(getattr(self, field).values())).tolist() for field in fields}
        return pd.DataFrame(columns, index=pd.MultiIndex.from_tuples(index, names=["site", "unit"]))

    def __repr__(self) -> str:
        units = sum(map(len, self.change.values()))
        weights = sorted({f"{weight:.4g}" for weight in self.kl_weights.values()} - {"1"})
        tempered = f" (KL weight {', '.join(weights)})" if weights else ""
        of_all = f"{self.num_evaluated} of {self.num_examples} examples"
        of_all += "" if self.num_exact == self.num_evaluated else f", {self.num_exact} of them exactly"
        spread = self.table.describe().loc[["min", "50%", "max"]]
        return f"evidence of {units} units, evaluated on {of_all}{tempered}\n{spread}"


# Tensors of inference cannot be differentiated.
@torch.inference_mode(False)
def evaluate_units(
    net: nn.Module,
    guide: AutoTruncatedLogNormal,
    reduced_prior: Callable[[LogUniform], Distribution],
    batches: Iterable[Any],
    *,
    likelihood: Likelihood | None = None,
    num_exact: int | None = NUM_EXACT,
    progress: bool = False,
) -> UnitEvidence:
    r"""
    Evaluates the change in log evidence without each unit, all others at their posterior mean.

    With the log likelihood L of all data as a function of the noise of one unit, its prior p, a reduced prior r and a
    KL weight :math:`\beta`, the change is :math:`\log E_r[e^{L/\beta}] - \log E_p[e^{L/\beta}]`: two ends, each of
    which is an integral over one variable. The guide says where the others are and where to look.

    :param net: a network with noise, fitted.
    :param guide: the guide of its noise.
    :param reduced_prior: given the prior of the units of a site, the reduced prior.
    :param batches: pairs of inputs and targets, or mappings that hold both, gone through once.
    :param likelihood: by default the model of the guide.
    :param num_exact: of all examples, with how many each unit is changed in the network; None for all.
    :param progress: whether to show a progress bar.
    :raises ReductionError: for a guide that does not belong to the network or is not fitted, without a likelihood, for
        a KL weight of 0, a reduced prior whose support leaves the prior's, and for data that do not fit.
    """
    check_guide(net, guide)
    if num_exact is not None:
        check_number(num_exact, "num_exact, the number of examples that are run for each unit,", low=1)
    model: Any = guide.model if likelihood is None else likelihood
    if not isinstance(model, Likelihood):
        raise ReductionError(
            "evidence is evaluated with a likelihood, and the guide's model has none that is known: give likelihood=, "
            "a Classification or a Regression, say"
        )
    weights = {name: model.noise_weight(name) for name in guide.noise}
    for name, weight in weights.items():
        if not weight > 0:
            raise ReductionError(
                f"the KL weight at noise site {name!r} is {weight:g}, with which nothing speaks for a prior, and no "
                "evidence can be had: evaluate it at a positive weight"
            )
    means = guide.mean_noise()
    at = {name: places(mean, guide.noise[name].unit_prior) for name, mean in means.items()}
    kept = {name: noise.kept for name, noise in guide.noise.items()}
    whole = model.num_examples
    share = 1.0 if num_exact is None else min(1.0, num_exact / whole)
    sums = unit_likelihoods(net, model, batches, at, kept, share=share, progress=progress)
    found: dict[str, list[Tensor]] = {}
    for name, noise in guide.noise.items():
        prior = noise.unit_prior
        parts = [
            _of_units(at[name], sums[name], reduced_prior, weights[name], whole, units)
            for units in torch.arange(noise.num_units).split(_MOST_UNITS)
        ]
        values = [torch.cat(part) for part in zip(*parts)]
        found[name] = [torch.where(noise.kept, value.to(prior.low), 0.0) for value in values]
    change, standard_error, interpolation_error, removal = (
        {name: values[field] for name, values in found.items()} for field in range(4)
    )
    one = next(iter(sums.values()))
    counts = one.num_evaluated, one.exact.count
    return UnitEvidence(change, standard_error, interpolation_error, removal, weights, whole, *counts)


def _of_units(
    at: Places,
    sums: UnitLikelihoods,
    reduced_prior: Callable[[LogUniform], Distribution],
    weight: float,
    whole: int,
    units: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The change in log evidence of some units, its two errors, and the change in log likelihood; in doubles."""
    mean, noise, is_low = (field[units.to(field.device)].cpu() for field in at)
    at = Places(mean.double(), noise.double(), is_low)
    own = LogUniform(at.noise[:, 0], at.noise[:, -1])
    reduced = reduced_prior(own)
    log_evidence_change(own, own, reduced)  # says what is wrong with a reduced prior, if anything
    slope = sums.slope_of(whole)[units] / weight

    def change(values: Tensor) -> Tensor:
        profile = UnitProfile(at, values / weight, slope)
        return profile.log_mean_likelihood(reduced) - profile.log_mean_likelihood(own)

    with torch.enable_grad():
        values = sums.values_of(whole)[units].requires_grad_()
        full = change(values)
        (by_value,) = torch.autograd.grad(full.sum(), values)
    with torch.no_grad():
        coarse = change(without_between(at, values, weight * slope))
    variance = torch.einsum("ui,uij,uj->u", by_value, sums.covariance_of(whole)[units], by_value)
    standard_error = variance.clamp(min=0).sqrt()  # rounding may leave it below 0
    return full.detach(), standard_error, (full.detach() - coarse).abs(), values.detach()[:, 0]

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Reduced posteriors as guides, ready for ``Predictive``, more SVI, or a second reduction.

A reduced guide is the fitted guide with other distributions in some of its sample statements, and parameters of its
own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to
from torch.distributions.constraints import Constraint

from pyro_bmrs.errors import ReductionError
from pyro_bmrs.posteriors.guides.copies import Loose, StoreEntries, copy_guide
from pyro_bmrs.posteriors.guides.networks import Substitution
from pyro_bmrs.posteriors.guides.pickles import portable, with_models
from pyro_bmrs.structure.copies import detached, with_own_tensors
from pyro_bmrs.structure.parameters import map_parameters

_ModuleList: Any = PyroModule[torch.nn.ModuleList]

_serial = itertools.count(1)

# What bounds a support or counts trials is no matter of fit.
_FIXED = ("low", "high", "v", "log_density", "total_count", "samples", "log_weights", "fixed")


class TrainableDistribution(PyroModule):
    """
    A distribution whose parameters are the module's, to be trained on from where they stand.

    Bounds of a support, points, and parameters at the edge of what they may be stay as they are. A distribution that
    cannot be rebuilt from parameters (a weighted sample, a density known numerically) stays whole as it is.

    :param distribution: the distribution to begin with.
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        # Transforms may hold tensors that were computed from the fitted guide's parameters.
        distribution = detached(distribution)
        try:
            self._template = map_parameters(distribution, self._hold)
        except NotImplementedError:
            self._template = distribution

    def _hold(self, path: str, value: Tensor, constraint: Constraint, event_dim: int) -> Tensor:
        value = value.detach().clone()
        if not path.endswith(_FIXED) and _can_move(value, constraint):
            setattr(self, path, PyroParam(value, constraint, event_dim))
        else:
            self.register_buffer(path, value)
        return value

    def forward(self) -> Distribution:
        """The distribution at the parameters' present values, cut to the subsample of any plate around."""
        if not self._parameters and not self._buffers:
            return self._template
        return map_parameters(self._template, lambda path, *_: getattr(self, path))


def _can_move(value: Tensor, constraint: Constraint) -> bool:
    if not value.is_floating_point() or constraints.is_dependent(constraint) or constraint.is_discrete:
        return False
    return bool(transform_to(constraint).inv(value).isfinite().all())


class _Statements(Messenger):
    """
    Other distributions in the place of a guide's, and the guide's loose parameters under names of their own.

    Those of a network, which computes with its own whatever the parameter store says, are substituted in it.
    """

    def __init__(self, statements: Mapping[str, Callable[[], Distribution]], loose: Loose, prefix: str) -> None:
        super().__init__()
        self.statements, self.loose, self.prefix = statements, loose, prefix
        self._networks = Substitution(loose.fixed)

    @property
    def held(self) -> Mapping[str, tuple[Tensor, Constraint]]:
        return self.loose.held

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Has all of them in place."""
        with self, self._networks if self.loose.held or self.loose.fixed else nullcontext():
            yield

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.statements and not msg["is_observed"]:
            replacement = self.statements[msg["name"]]()
            shape = msg["fn"].batch_shape
            msg["fn"] = replacement if replacement.batch_shape == shape else replacement.expand(shape)

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.held:
            value, constraint = self.held[msg["name"]]
            msg["infer"] = {"_network": next(iter(msg["args"][1:]), None)}
            msg["name"] = f"{self.prefix}.{msg['name']}"
            msg["args"] = (msg["name"], value)
            msg["kwargs"]["constraint"] = constraint

    def _pyro_post_param(self, msg: Any) -> None:
        own = (msg["infer"] or {}).get("_network")
        if isinstance(own, torch.nn.Parameter):
            self._networks.put(own, msg["value"])


@dataclass(frozen=True, eq=False)
class GuideCopy:
    """
    A guide as it was at one time: what is made of it later is not touched by training of the guide since.

    It is never run itself, since its parameters bear the names of the guide's in the parameter store; the
    :class:`ReducedGuide` s made of it are.

    :param guide: a copy of the guide; of a reduced guide, of the one in whose statements it puts others.
    :param statements: what a reduced guide puts there.
    :param loose: what it is made of beside.
    """

    guide: Any
    statements: Mapping[str, Distribution]
    loose: Loose

    def __reduce__(self) -> tuple[Any, ...]:
        if self.loose.fixed:
            raise ReductionError(
                "a guide that is a function or a method and runs networks cannot be pickled as it was; make it a module"
                " that holds them, or copy.deepcopy the result"
            )
        guide, models = portable(self.guide)
        return _copy_made_anew, (guide, models, self.statements, self.loose)

    @staticmethod
    def take(guide: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> GuideCopy:
        """
        Copies a guide.

        :raises ReductionError: for a guide that is a module with something in it that cannot be copied.
        """
        if isinstance(guide, ReducedGuide):
            statements = {name: with_own_tensors(now) for name, now in guide.current_statements().items()}
            return GuideCopy(copy_guide(guide.fitted_guide), statements, guide.loose())
        return GuideCopy(copy_guide(guide), {}, Loose.take(guide, *arguments))


def _copy_made_anew(guide: Any, models: Any, statements: Any, loose: Loose) -> GuideCopy:
    return GuideCopy(with_models(guide, models), statements, loose)


class ReducedGuide(PyroModule):
    """
    A fitted guide with the reduced posteriors in its sample statements.

    Its parameters are its own: more SVI with it leaves the fitted guide as it is.

    :param guide: the fitted guide, or a copy that was taken of it. One that is reduced already gives up its own
        statements for those given here.
    :param model: the reduced model.
    :param statements: the distributions to put in place, by the guide's sample statement.
    :param arguments: the arguments of the model's first fit, for a second reduction.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import Predictive
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_bmrs import reduce_model
        >>> def model():
        ...     pyro.sample("weights", dist.Normal(torch.zeros(2), 1.).to_event(1))
        >>> guide = AutoNormal(model); _ = guide()
        >>> reduction = reduce_model(guide, dist.Delta(torch.zeros(2), event_dim=1), check=False)
        >>> sorted(reduction.guide.current_statements())
        ['weights', 'weights_unconstrained']
        >>> Predictive(reduction.model, guide=reduction.guide, num_samples=1)()["weights"]
        tensor([[0., 0.]])
    """

    def __init__(
        self,
        guide: Any,
        model: Callable[..., Any],
        statements: Mapping[str, Distribution],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        name = f"reduced_guide_{next(_serial)}"
        super().__init__(name=name)
        self._entries = StoreEntries(name)
        self._model = (model,)
        self.default_arguments = arguments
        if isinstance(guide, ReducedGuide):
            loose, guide = guide.loose(), guide.fitted_guide
        elif isinstance(guide, GuideCopy):
            loose, guide = guide.loose, guide.guide
        else:
            loose = Loose.take(guide, *arguments)
        clone = copy_guide(guide)
        if "_model" in vars(clone) and not isinstance(clone, GuideMessenger):
            # A messenger runs the full model: its posteriors are made for the supports of the full priors.
            object.__setattr__(clone, "_model", (model,))
        if isinstance(clone, torch.nn.Module):
            self.fitted = clone
        # A tuple holds a guide that is no module, and hides one that is already a child from being one twice.
        self._fitted = (clone,)
        self.statements = _ModuleList(map(TrainableDistribution, statements.values()))
        names = _packed_names(guide, clone)
        placed = {names.get(statement, statement): held for statement, held in zip(statements, self.statements)}
        self.original_names = {names.get(statement, statement): statement for statement in statements}
        """For each sample statement, its name in the guide that this one was made from."""
        self._substitute = _Statements(placed, loose, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is now; made anew it has parameters of other names, so that two may be in one parameter store."""
        now = GuideCopy.take(self, self.default_arguments)
        return ReducedGuide, (now, self.model, now.statements, self.default_arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> ReducedGuide:
        make, arguments = self.__reduce__()
        twin: ReducedGuide = make(*arguments)
        return twin

    @property
    def model(self) -> Callable[..., Any]:
        """The reduced model."""
        return self._model[0]

    @property
    def fitted_guide(self) -> Any:
        """The copy of the fitted guide in whose statements the reduced posteriors stand."""
        return self._fitted[0]

    def loose(self) -> Loose:
        """What the guide is made of beside its own parameters and statements, as it is now."""
        store, substitute = pyro.get_param_store(), self._substitute
        names = {name: f"{substitute.prefix}.{name}" for name in substitute.held}
        held = {
            name: (store[own].detach().clone() if own in store else substitute.held[name][0], substitute.held[name][1])
            for name, own in names.items()
        }
        return Loose(held, substitute.loose.fixed)

    def current_statements(self) -> dict[str, Distribution]:
        """The distributions in place, by sample statement, at the parameters' present values."""
        return {name: statement() for name, statement in self._substitute.statements.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the guide; takes the arguments of the model."""
        # A GuideMessenger runs its model inside: the observations are not the guide's to report.
        hidden = poutine.block(hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])
        with hidden, self._substitute.in_place():
            return self._fitted[0](*args, **kwargs)


def _packed_names(guide: Any, clone: Any) -> dict[str, str]:
    """The names of packed statements, which follow the module's own name, in guide and clone."""
    if guide is clone or not isinstance(guide, torch.nn.Module):
        return {}
    twins = zip(guide.modules(), clone.modules())
    return {packed_statement(one): packed_statement(twin) for one, twin in twins if isinstance(one, PyroModule)}


def packed_statement(guide: PyroModule) -> str:
    """
    The name of the sample statement in which an autoguide draws its packed vector: it follows the module's own name.

    A module of one's own that names a statement so keeps it apart from those of other guides beside it in a list.

    :param guide: the autoguide.

    Example::

        >>> from pyro.infer.autoguide import AutoDiagonalNormal
        >>> packed_statement(AutoDiagonalNormal(lambda: None))
        '_AutoDiagonalNormal_latent'
    """
    return f"_{guide._pyro_name}_latent"


class BranchedGuide(PyroModule):
    """
    One of several guides, each as often as its probability says.

    :param branches: the guides. All draw the same sites.
    :param logits: their log probabilities, shape ``(num_branches,)``, normalised or not; trained with the guides.
    :param model: the reduced model.
    :param arguments: arguments and keyword arguments that the model was fitted with.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_bmrs import reduce_model
        >>> def model():
        ...     spike = pyro.sample("spike", dist.Bernoulli(0.5))
        ...     pyro.sample("z", dist.Normal(0., 0.1) if spike else dist.Normal(0., 3.))
        >>> def guide():
        ...     spike = pyro.sample("spike", dist.Bernoulli(0.3))
        ...     pyro.sample("z", dist.Normal(0., 0.1) if spike else dist.Normal(2., 0.5))
        >>> reduction = reduce_model(guide, {"z": dist.Normal(0., 0.1)}, model=model)
        >>> reduction.guide.logits.softmax(0).detach()
        tensor([0.0062, 0.9938])
    """

    def __init__(
        self,
        branches: Sequence[ReducedGuide],
        logits: Tensor,
        model: Callable[..., Any],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        name = f"branched_guide_{next(_serial)}"
        super().__init__(name=name)
        self._entries = StoreEntries(name)
        self._model, self.default_arguments = (model,), arguments
        self.branches = _ModuleList(branches)
        self.logits = torch.nn.Parameter(logits.detach().clone())

    @property
    def model(self) -> Callable[..., Any]:
        """The reduced model."""
        return self._model[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one of the guides; takes the arguments of the model."""
        chosen = pyro.sample("_branch", dist.Categorical(logits=self.logits), infer={"is_auxiliary": True})
        return self.branches[int(chosen)](*args, **kwargs)


class DrawsGuide:
    """
    Weighted draws as a guide: one of them at a time, each as often as its weight says.

    It has no parameters; to fit the reduced model further, begin a guide of your own at these draws' moments.

    :param model: the reduced model.
    :param draws: values of each site, the draws along the first dimension.
    :param log_weights: shape ``(num_draws,)``, normalised or not.
    :param default_arguments: arguments and keyword arguments that the model was fitted with.

    Example::

        >>> import torch, pyro
        >>> from pyro_bmrs.posteriors import DrawsGuide
        >>> draws = {"slope": torch.tensor([-1., 0., 1.])}
        >>> guide = DrawsGuide(lambda: None, draws, torch.tensor([0., 0.25, 0.75]).log())
        >>> guide.resample(1000)["slope"].unique()
        tensor([0., 1.])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        draws: Mapping[str, Tensor],
        log_weights: Tensor,
        default_arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> None:
        self.model, self.draws, self.log_weights = model, draws, log_weights.detach()
        self.default_arguments = default_arguments

    def __repr__(self) -> str:
        return f"DrawsGuide({len(self.log_weights)} draws of {', '.join(self.draws)})"

    def resample(self, num_samples: int) -> dict[str, Tensor]:
        """Joint draws of all sites with replacement, by weight, along the first dimension."""
        chosen = self.choose(num_samples)
        return {name: draws[chosen] for name, draws in self.draws.items()}

    def choose(self, num_samples: int) -> Tensor:
        """Places of draws, at random with replacement, each as often as its weight says."""
        chosen: Tensor = dist.Categorical(logits=self.log_weights).sample(torch.Size([num_samples]))
        return chosen

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws one of the weighted draws; takes the arguments of the model and needs none of them."""
        chosen = pyro.sample("_draw", dist.Categorical(logits=self.log_weights), infer={"is_auxiliary": True})
        values = {name: draws[chosen] for name, draws in self.draws.items()}
        return {name: pyro.sample(name, dist.Delta(value, event_dim=value.dim())) for name, value in values.items()}

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The guide of noise: a truncated log-normal for every log-uniform site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any, cast

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.infer.autoguide import AutoNormalMessenger
from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bmrs.distributions import LogUniform, TruncatedLogNormal
from pyro_bmrs.errors import ReductionError
from pyro_bmrs.pruning.noise.multiplicative_noise import Learned, MultiplicativeNoise
from pyro_bmrs.pruning.noise.noise_posterior import LazyDensities, NoisePosterior, NoisePosteriors, NoiseUnits
from pyro_bmrs.pruning.noise.steps.precision import at_least_single, single_at_least
from pyro_bmrs.structure.vectorised import TURN

_INIT_LOC, _INIT_LOG_SCALE = 0.0, -5.0


class AutoTruncatedLogNormal(AutoNormalMessenger):
    r"""
    A guide that fits each log-uniform site with a :class:`~pyro_bmrs.distributions.TruncatedLogNormal` on its interval.

    The log-location begins at 0 and the log-scale at :math:`e^{-5}`, so that noise begins near 1 and disturbs training
    little; both are learned for each unit (K. Neklyudov et al. (2017), *Structured Bayesian pruning via log-normal
    multiplicative noise*, https://arxiv.org/abs/1705.07283). Its divergence from the prior is exact with
    ``TraceMeanField_ELBO``. Other latent sites are left to the parent, ``AutoNormalMessenger``, so that noise lives
    beside Bayesian weights; for another parent, derive a class from this one and that one.

    The noise of the model's :class:`~pyro_bmrs.pruning.MultiplicativeNoise` modules is known before the first run: its
    parameters are there for an optimiser as soon as the guide is made. They are one, ``noise_parameters``, with the
    locations of all units in its first row and the logs of their scales in its second, which keeps the cost of a step
    from growing with the number of layers. They are in single precision at least, whatever the network's is. Other
    log-uniform sites get their parameters in the first run, as the parent's do.

    The network knows the guide that was made for it last: in evaluation mode ``net(x)`` predicts with the noise at its
    posterior mean.

    :param model: the model; usually :class:`~pyro_bmrs.pruning.Classification` or
        :class:`~pyro_bmrs.pruning.Regression` around a network with noise. Any Pyro program will do, but noise can be
        found, and pruned, in a module that holds the network, not in a function that calls it.
    :param options: those of ``AutoNormalMessenger``, for the other sites.
    :raises ReductionError: for two noise modules with sites of one name.

    Example::

        >>> import pyro, torch
        >>> from torch import nn
        >>> from pyro_bmrs.pruning import AutoTruncatedLogNormal, attach_noise
        >>> net = attach_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        >>> guide = AutoTruncatedLogNormal(net)
        >>> guide.noise_posterior("0").mean.detach()
        tensor([0.9946, 0.9946, 0.9946, 0.9946])
    """

    def __init__(self, model: Callable[..., Any], **options: Any) -> None:
        super().__init__(model, **options)
        # For other sites, as the parent has them; there from the beginning, since the guide can be read from then on.
        self.locs, self.scales = PyroModule(), PyroModule()
        self._units = NoiseUnits(_find_noise(model))
        like = next((noise.like for noise in self._units.noise.values()), torch.empty(0))
        initial = at_least_single(like).new_tensor([[_INIT_LOC], [_INIT_LOG_SCALE]])
        self.noise_parameters = nn.Parameter(initial.repeat(1, sum(self._units.sizes)))
        for noise, units in zip(self._units.noise.values(), self._units.slices):
            noise.learned = Learned(self.noise_parameters, units)
        self._posteriors: NoisePosteriors | None = None
        self._all_have_acted = False

    @property
    def noise(self) -> dict[str, MultiplicativeNoise]:
        """The model's noise modules by site name, in the order of the parameters."""
        return self._units.noise

    @property
    def noise_locs(self) -> Tensor:
        """The log-locations of all units, site after site; a view of the parameters."""
        return self.noise_parameters[0]

    @property
    def noise_log_scales(self) -> Tensor:
        """The logs of the log-scales of all units, site after site; a view of the parameters."""
        return self.noise_parameters[1]

    @property
    def is_fitted(self) -> bool:
        """Whether any of the noise has moved from where it began."""
        return bool(((self.noise_locs != _INIT_LOC) | (self.noise_log_scales != _INIT_LOG_SCALE)).any())

    def noise_posterior(self, name: str) -> TruncatedLogNormal:
        """
        The posterior of the noise at one site, of batch shape ``(num_units,)``, pruned units included.

        :param name: a site of a noise module.
        :raises ReductionError: for any other site.
        """
        if name not in self.noise:
            raise ReductionError(f"the guide has no noise site {name!r}; its noise sites are {list(self.noise)}")
        return NoisePosteriors(self._units, self.noise_parameters).at(name)

    def mean_noise(self) -> dict[str, Tensor]:
        """
        The posterior mean of the noise at each site, 0 for pruned units; without gradients.

        ``poutine.condition(net, data=guide.mean_noise())`` is the network as it predicts, as ``net.eval()`` is.
        """
        with torch.no_grad():
            means = {name: self.noise_posterior(name).mean for name in self.noise}
            return {name: torch.where(self.noise[name].kept, mean, 0.0) for name, mean in means.items()}

    @contextmanager
    def given_noise(self, weight: Callable[[str], float]) -> Iterator[NoisePosteriors]:
        """
        While it lasts, the noise of the network is drawn from its posteriors without sample statements.

        :param weight: of the divergence of a site, given its name.
        :return: the posteriors.
        """
        posteriors = NoisePosteriors(self._units, self.noise_parameters, weight)
        try:
            # Past the module's own __setattr__, which costs as much as the draw.
            for name, noise in self.noise.items():
                vars(noise)["given"] = partial(posteriors.shared, name)
            yield posteriors
        finally:
            for noise in self.noise.values():
                vars(noise).pop("given", None)
        self.check_acting()

    def check_acting(self) -> None:
        """
        Sees that a network that was run in training mode does not pass by any of its noise.

        :raises ReductionError: if there is noise that never acted.
        """
        if self._all_have_acted:
            return
        passed = [name for name, noise in self.noise.items() if noise.training and not noise.has_acted]
        if passed:
            raise ReductionError(
                f"the noise of {passed} never acted: the network does not call the modules that it is attached to, "
                "whose weights it may use by itself (as F.linear(x, layer.weight) does). Nothing would be learned of "
                "these units but that they look useless: name the other layers in attach_noise(net, [...]), or let the "
                "network call these. Where they are called in some of the steps only, run the network once before"
            )
        self._all_have_acted = all(noise.has_acted for noise in self.noise.values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What moves and converts a module; the noise stays in single precision at least."""
        before, parent = self.noise_parameters.data, cast(Any, super())
        module = parent._apply(fn, recurse)
        parameters = self.noise_parameters
        if parameters.dtype != single_at_least(parameters.dtype):
            # What was rounded on the way is taken from before.
            gradient, parameters.grad = parameters.grad, None
            parameters.data = at_least_single(before).to(parameters.device)
            parameters.grad = None if gradient is None else gradient.to(parameters.dtype)
        return module

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_posteriors": None}

    def __enter__(self) -> Any:
        TURN.acquire()
        try:
            # Here, where gradients are on if they are to be had, and not in a part of the network that does without.
            self._posteriors = NoisePosteriors(self._units, self.noise_parameters) if self.noise else None
            return super().__enter__()
        except BaseException:
            TURN.release()
            raise

    def __exit__(self, *exception: Any) -> Any:
        try:
            return super().__exit__(*exception)
        finally:
            TURN.release()

    def get_posterior(self, name: str, prior: Any) -> Any:
        """A truncated log-normal for log-uniform sites; what the parent says for others."""
        if name in self.noise:
            if self._posteriors is None:
                self._posteriors = NoisePosteriors(self._units, self.noise_parameters)
            posterior = NoisePosterior(self._posteriors, name)
        else:
            core, mask = _log_uniform(prior)
            if core is None:
                return super().get_posterior(name, prior)
            loc, scale = self._get_log_normal(name, prior, core)
            posterior = TruncatedLogNormal(loc, scale, core.low, core.high)
            posterior = posterior if mask is None else MaskedDistribution(posterior, mask)
            posterior = posterior.to_event(prior.event_dim) if prior.event_dim else posterior
        return _median(posterior) if self._computing_median else posterior

    def _get_log_normal(self, name: str, prior: Any, core: LogUniform) -> tuple[Tensor, Tensor]:
        try:
            return attrgetter(name)(self.locs), attrgetter(name)(self.scales)
        except AttributeError:
            pass
        with torch.no_grad():
            loc = self._adjust_plates(torch.full_like(core.low.expand(prior.shape()), _INIT_LOC), prior.event_dim)
            scale = torch.full_like(loc, _INIT_LOG_SCALE).exp()
        deep_setattr(self.locs, name, PyroParam(loc, event_dim=prior.event_dim))
        deep_setattr(self.scales, name, PyroParam(scale, constraints.positive, event_dim=prior.event_dim))
        return self._get_log_normal(name, prior, core)

    def get_traces(self) -> tuple[Any, Any]:
        """The traces of model and guide; the densities of noise are computed only where they are asked for."""
        self.check_acting()
        model_trace, guide_trace = super().get_traces()
        for name in self.noise.keys() & guide_trace.nodes.keys():
            posterior: Any = guide_trace.nodes[name]["fn"]
            if isinstance(posterior, NoisePosterior):
                model_site: Any = LazyDensities(model_trace.nodes[name], posterior)
                guide_site: Any = LazyDensities(guide_trace.nodes[name])
                model_trace.nodes[name], guide_trace.nodes[name] = model_site, guide_site
        return model_trace, guide_trace


def _find_noise(model: Any) -> dict[str, MultiplicativeNoise]:
    found: dict[str, MultiplicativeNoise] = {}
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, MultiplicativeNoise):
            if module.site_name in found:
                raise ReductionError(
                    f"two noise modules have the site name {module.site_name!r}; give each its own name"
                )
            found[module.site_name] = module
    return found


def _log_uniform(prior: Any) -> tuple[LogUniform | None, Tensor | bool | None]:
    """The log-uniform in a prior, at its full shape, and the mask on it; None where the prior is of another kind."""
    mask = None
    shape = prior.shape()
    while isinstance(prior, (Independent, MaskedDistribution)):
        mask = prior._mask if isinstance(prior, MaskedDistribution) else mask
        prior = prior.base_dist
    return (prior.expand(shape), mask) if isinstance(prior, LogUniform) else (None, None)


def _median(posterior: Any) -> Tensor:
    while isinstance(posterior, (Independent, MaskedDistribution)):
        posterior = posterior.base_dist
    median: Tensor = posterior.icdf(torch.full_like(posterior.loc, 0.5))
    return median

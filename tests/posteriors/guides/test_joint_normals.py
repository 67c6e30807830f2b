# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Autoguides that are joint normals in other words."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGaussian, AutoStructured
from torch.distributions import biject_to, constraints

from pyro_bmrs import ReductionError, reduce_model, refit
from pyro_bmrs.posteriors import read_guide
from pyro_bmrs.posteriors.guides.joint_normals import as_multivariate_normal
from tests.programs import fit

pytestmark = pytest.mark.usefixtures("double")

Y = torch.tensor([0.3, 1.0, -0.2])


def model(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3):
        b = pyro.sample("b", dist.Normal(a, 0.5).expand([3, 2]).to_event(1))
        s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
        pyro.sample("y", dist.Normal(b.sum(-1), s), obs=y)


def mixed():
    upstream = {"b": {"a": torch.nn.Linear(1, 6)}, "s": {"b": "linear"}}
    return AutoStructured(model, conditionals={"a": "mvn", "b": "normal", "s": "mvn"}, dependencies=upstream)


KINDS = {
    "AutoGaussian": lambda: AutoGaussian(model),
    "AutoStructured, normals": lambda: AutoStructured(model, conditionals="normal"),
    "AutoStructured, joint": lambda: AutoStructured(model, conditionals="mvn"),
    "AutoStructured, mixed": mixed,
}


@pytest.fixture(params=KINDS)
def guide(request):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    made = KINDS[request.param]()
    made(Y)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def test_it_draws_what_the_guide_draws(guide):
    """The moments of the unconstrained values, and the density of joint draws, are the guide's."""
    normal = as_multivariate_normal(guide, model, (Y,), {}).get_posterior()
    count = 4000
    drawn = {name: [] for name in ("a", "b", "s")}
    for _ in range(count // 100):
        with pyro.plate("draws", 100, dim=-3):
            trace = poutine.trace(guide).get_trace(Y)
        for name, rows in drawn.items():
            rows.append(trace.nodes[name]["value"].reshape(100, -1))
    values = torch.cat([torch.cat(drawn["a"]), torch.cat(drawn["b"]), torch.cat(drawn["s"]).log()], -1).detach()
    error = normal.stddev / count**0.5
    assert ((values.mean(0) - normal.mean).abs() < 5 * error).all()
    spread = normal.stddev.unsqueeze(-1) * normal.stddev
    assert ((torch.cov(values.mT) - normal.covariance_matrix).abs() < 8 * spread / count**0.5).all()


def test_its_density_is_the_guides(guide):
    normal = as_multivariate_normal(guide, model, (Y,), {}).get_posterior()
    trace = poutine.trace(guide).get_trace(Y)
    values = torch.cat([trace.nodes["a"]["value"].reshape(-1), trace.nodes["b"]["value"].reshape(-1)])
    s = trace.nodes["s"]["value"]
    jacobian = biject_to(constraints.positive).log_abs_det_jacobian(s.log(), s).sum()
    density = normal.log_prob(torch.cat([values, s.log()])) - jacobian
    torch.testing.assert_close(density, trace.log_prob_sum())


def test_it_is_reduced_exactly_and_goes_on(guide):
    normal = read_guide(guide, args=(Y,)).guide.get_posterior()
    reduction = reduce_model(guide, {"a": dist.Delta(torch.tensor(0.2))}, args=(Y,))
    assert reduction.method == "exact"
    expected = dist.Normal(normal.mean[0], normal.stddev[0]).log_prob(torch.tensor(0.2))
    expected = expected - dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.2))
    torch.testing.assert_close(reduction.delta_evidence, expected)
    gradients = torch.autograd.grad(reduction.delta_evidence, list(guide.parameters()), allow_unused=True)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    narrow = reduce_model(guide, {"a": dist.Normal(0.0, 0.5)}, args=(Y,))
    again = reduce_model(narrow.guide, {"s": dist.LogNormal(0.0, 0.2)}, model=narrow.model, args=(Y,))
    both = reduce_model(guide, {"a": dist.Normal(0.0, 0.5), "s": dist.LogNormal(0.0, 0.2)}, args=(Y,))
    torch.testing.assert_close((narrow.delta_evidence + again.delta_evidence).detach(), both.delta_evidence.detach())
    with torch.no_grad():
        next(guide.parameters()).add_(1.0)
    torch.testing.assert_close(both.elementwise["a"].detach(), narrow.elementwise["a"].detach())


@pytest.mark.filterwarnings("ignore:the refit had not converged", "ignore:the fitted guide had not converged")
def test_its_reduction_is_refitted():
    guide = fit(model, AutoGaussian(model), Y, steps=5)
    reduction = reduce_model(guide, {"a": dist.Normal(0.0, 0.5)}, args=(Y,))
    check = refit(model, guide, reduction, max_steps=5, window=5, num_particles=10)
    assert check.divergence.keys() == {"a", "b", "s"}
    own = Trace_ELBO(num_particles=50).loss(model, guide, Y)
    assert Trace_ELBO(num_particles=50).loss(model, reduction.fitted.guide, Y) == pytest.approx(own, abs=3.0)
    with pytest.raises(ReductionError, match="another guide"):
        refit(model, copy.copy(guide), reduction)


@pytest.mark.parametrize(
    "conditionals",
    [{"a": "delta", "b": "normal", "s": "normal"}, {"a": "normal", "b": "normal", "s": lambda: torch.randn(3)}],
    ids=["a point", "noise of its own"],
)
def test_what_is_no_joint_normal_is_drawn(conditionals):
    guide = AutoStructured(model, conditionals=conditionals, dependencies={"b": {"a": "linear"}})
    guide(Y)
    assert as_multivariate_normal(guide, model, (Y,), {}) is None
    reduction = reduce_model(guide, {"s": dist.LogNormal(0.0, 0.49)}, args=(Y,), num_samples=50)
    assert reduction.method == "importance"
    if conditionals["a"] == "delta":
        with pytest.raises(ReductionError, match="'a'.* is a point .*no density"):
            reduce_model(guide, {"a": dist.Normal(0.0, 0.5)}, args=(Y,))
    else:
        assert reduce_model(guide, {"a": dist.Normal(0.0, 0.9)}, args=(Y,), num_samples=50).method == "importance"


class AutoGaussianBare(AutoGaussian):
    """A backend that has the parameters, as all have, and no matrix."""

    def _sample_aux_values(self, *, temperature):
        raise NotImplementedError


def test_another_backend_is_read_by_its_parameters():
    guide, bare = AutoGaussian(model), AutoGaussian(model, backend="bare")
    pyro.set_rng_seed(0)
    guide(Y)
    bare._setup_prototype(Y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    bare.load_state_dict(guide.state_dict())
    expected = as_multivariate_normal(guide, model, (Y,), {}).get_posterior()
    found = as_multivariate_normal(bare, model, (Y,), {}).get_posterior()
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.covariance_matrix, expected.covariance_matrix)

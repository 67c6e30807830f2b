# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""The front door, where it holds its answer against the model at once."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_bmrs import ReductionError, ReductionWarning, reduce_model
from pyro_bmrs.posteriors import read_guide
from pyro_bmrs.reduction.reduce_model import reduce_posterior
from tests import conjugate


def exact_change() -> float:
    """Of the first two coefficients at 0."""
    x, y = conjugate.data()
    loc, scale = conjugate.prior(4)
    at = (loc.clone(), scale.clone())
    at[0][:2], at[1][:2] = 0.0, 1e-9
    return float(conjugate.log_evidence(x, y, *at) - conjugate.log_evidence(x, y, loc, scale))


def test_a_wrong_answer_says_so_when_it_is_checked(exact_guide):
    guide, x, y = exact_guide(AutoNormal)
    with pytest.warns(ReductionWarning, match="the posterior is off"):
        reduction = reduce_model(guide, {"first": dist.Delta(x.new_tensor(0.0))}, args=(x, y), check=True)
    assert reduction.checked is not None
    assert reduction.checked.delta_evidence == pytest.approx(exact_change(), abs=0.1)
    assert repr(reduction).startswith("Reduction(first): ΔF = ")
    assert "by the model" in repr(reduction)
    assert "read off" in repr(reduction)


def test_a_right_answer_says_so_too(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    reduction = reduce_model(guide, {"first": dist.Delta(x.new_tensor(0.0))}, args=(x, y))
    assert "not checked against the model" in repr(reduction)
    assert reduction.checked is None
    check = reduction.check(elementwise=True)
    assert reduction.checked is check
    assert "not checked" not in repr(reduction)
    summary = reduction.summary()
    assert "agrees" in summary.attrs["check"]
    assert summary["checked_delta_evidence"].tolist() == pytest.approx(summary["delta_evidence"].tolist(), abs=0.1)
    off = (check.elementwise["first"] - reduction.elementwise["first"]).abs()
    assert (check.elementwise_error["first"] > 0).all() and (off < 4 * check.elementwise_error["first"]).all()


def test_a_posterior_that_was_read_already_is_reduced_in_the_same_way(exact_guide):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    reduced_prior = {"rest": dist.Normal(x.new_tensor(0.0), 0.3)}
    fitted = read_guide(guide, args=(x, y))
    again = reduce_posterior(fitted, reduced_prior).delta_evidence
    assert again.item() == reduce_model(guide, reduced_prior, args=(x, y)).delta_evidence.item()


@pytest.mark.parametrize("method", ["Exact", "sampling", ""])
def test_methods_that_there_are_not(exact_guide, method):
    guide, x, y = exact_guide(AutoMultivariateNormal)
    with pytest.raises(ReductionError, match="method must be one of"):
        reduce_model(guide, {"rest": dist.Normal(x.new_tensor(0.0), 0.3)}, args=(x, y), method=method)


def test_an_integral_that_has_not_converged_says_so():
    """A funnel that no location or scale of a prior straightens."""

    def funnel():
        neck = pyro.sample("neck", dist.Normal(0.0, 3.0))
        rest = pyro.sample("rest", dist.Normal(torch.zeros(12), 1000.0).to_event(1))
        pyro.factor("funnel", dist.Normal(0.0, (neck / 2).exp()).log_prob(rest).sum())

    guide = AutoNormal(funnel)
    guide()
    with pytest.warns(ReductionWarning, match="integral of the full.* model has not converged"):
        reduce_model(guide, {"neck": dist.Normal(0.0, 2.0)}, method="integration")

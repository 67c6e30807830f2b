# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Conditioned upon its observations, the posterior is that of the reduced model."""

from __future__ import annotations

import pytest
import torch

from pyro_bmrs.search.averaging.conditioning import reduced_normals, square_root
from tests import conjugate
from tests.search.regression import every_model
from tests.search.spaces import REDUCED, normal_space, reduced_to

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("kind", ["normal", "narrow"])
def test_each_reduced_posterior_is_exact(exact_guide, kind):
    guide, x, y = exact_guide()
    states = torch.tensor(every_model(4))
    normals = reduced_normals(normal_space(guide, kind), states)
    assert not normals.fixed.any()
    for reduced, loc, root in zip(states, normals.loc, normals.scale_tril):
        exact = conjugate.exact_posterior(x, y, *reduced_to(kind, reduced))
        torch.testing.assert_close(loc, exact.loc, rtol=1e-8, atol=1e-10)
        assert torch.equal(root, root.tril()) and (root.diagonal() > 0).all()
        # Element by element in units of its own: a narrow one has a variance of 1e-8.
        units = exact.stddev.unsqueeze(-1) * exact.stddev
        torch.testing.assert_close(root @ root.mT / units, exact.covariance_matrix / units, rtol=0, atol=1e-7)


def test_what_is_fixed_lies_at_the_point_and_the_others_are_as_without_it(exact_guide):
    guide, x, y = exact_guide()
    states = torch.tensor(every_model(4))
    normals = reduced_normals(normal_space(guide, "point"), states)
    assert torch.equal(normals.fixed, states)
    point, (prior_loc, prior_scale) = REDUCED["point"][0], conjugate.prior(4)
    for reduced, loc, root in zip(states, normals.loc, normals.scale_tril):
        free = ~reduced
        assert (loc[reduced] == point).all()
        assert torch.equal(root[reduced], torch.eye(4)[reduced])
        rest = y - point * x[:, reduced].sum(-1)
        if free.any():
            exact = conjugate.exact_posterior(x[:, free], rest, prior_loc[free], prior_scale[free])
            torch.testing.assert_close(loc[free], exact.loc, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close((root @ root.mT)[free][:, free], exact.covariance_matrix, rtol=1e-7, atol=1e-10)


def test_models_are_conditioned_in_parts_as_all_at_once(exact_guide, monkeypatch):
    space = normal_space(exact_guide()[0], "normal")
    states = torch.tensor(every_model(4))
    together = reduced_normals(space, states)
    monkeypatch.setattr("pyro_bmrs.search.averaging.conditioning._BATCH", 1)
    for one, other in zip(together, reduced_normals(space, states)):
        torch.testing.assert_close(one, other)


def test_a_square_root_keeps_what_the_square_would_lose():
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-9, 0.0], [-2.0, 3.0, 4.0]])
    # The square rounds to a singular matrix.
    assert torch.linalg.cholesky_ex((rows @ rows.mT)[:2, :2]).info > 0
    torch.testing.assert_close(square_root(rows), rows, rtol=1e-6, atol=1e-15)
    wide = torch.randn(5, 3, 7)
    root = square_root(wide)
    torch.testing.assert_close(root, torch.linalg.cholesky(wide @ wide.mT))

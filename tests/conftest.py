# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuide, AutoMultivariateNormal, AutoNormal
from torch import Tensor

import pyro_bmrs  # noqa: F401  (registers the setting below, whichever file is run alone)
from pyro_bmrs.evidence import registry
from tests import exact_guides, programs


@pytest.fixture(autouse=True, scope="module")
def unchecked() -> Iterator[None]:
    """
    Only what asks for a check is checked: most tests state facts of guides that were never fitted to a model.

    The examples of the package, and the tests of what is checked by itself, have it as users do.
    """
    with pyro.settings.context(bmrs_automatic_check=False):
        yield


@pytest.fixture
def own_rules() -> Iterator[None]:
    """Rules that a test registers are there for that test alone."""
    rules = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(rules)
    registry.find_rules.cache_clear()


@pytest.fixture
def idle_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device has been used, and whoever seeds one all the same, and so takes the user's seed from it, fails."""

    def seeded(*_: object) -> None:
        raise AssertionError("a device that was never used has been seeded")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)


@pytest.fixture
def double(clean_slate: None) -> None:
    """Double precision by default; the next test begins in single precision again."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def exact_guide(double: None) -> Callable[..., tuple[AutoGuide, Tensor, Tensor]]:
    """Makes a guide that is the posterior of the conjugate regression, or the closest of its kind, with the data."""
    return exact_guides.exact_guide


@pytest.fixture(params=[AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def guide(request: pytest.FixtureRequest) -> AutoGuide:
    """A guide of each kind where it begins, of a model with three latent sites."""
    guide = request.param(programs.model)
    guide(programs.Y)
    return guide

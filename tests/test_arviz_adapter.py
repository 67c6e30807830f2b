# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import arviz
import numpy as np
import pytest
import xarray
from scipy.special import logsumexp

from pyro_bmrs.arviz_adapter import (
    add_elements,
    add_group,
    has_posterior,
    posterior_draws,
    smooth_log_weights,
    to_arviz,
)
from pyro_bmrs.tables import SiteLabels


def light_tailed(zeros: float, of_zeros: float = -np.inf) -> np.ndarray:
    """20,000 log weights around -30, a share of them zeros; smoothing so light a tail moves the mean little."""
    log_weights = 0.3 * np.random.default_rng(0).standard_normal(20_000) - 30.0
    log_weights[: int(zeros * len(log_weights))] = of_zeros
    return log_weights


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 0.99, 0.995])
def test_smoothing_a_light_tail_keeps_the_mean_weight_however_many_are_zero(zeros: float) -> None:
    log_weights = light_tailed(zeros)
    smoothed, k = smooth_log_weights(log_weights)
    assert k < 0.5
    assert logsumexp(smoothed) == pytest.approx(logsumexp(log_weights), abs=2 / np.sqrt((1 - zeros) * len(log_weights)))
    assert (smoothed[log_weights == -np.inf] == -np.inf).all()


@pytest.mark.parametrize("tiny", [-1e3, -1e10, -1e300])
def test_a_weight_next_to_nothing_is_as_good_as_none(tiny: float) -> None:
    smoothed, k = smooth_log_weights(light_tailed(1e-4, tiny))
    without, k_without = smooth_log_weights(light_tailed(1e-4))
    assert smoothed[2:] == pytest.approx(without[2:], abs=1e-10)
    assert (smoothed[:2] == tiny).all()
    assert k == pytest.approx(k_without, abs=1e-12)


def test_too_few_weights_tell_nothing_of_their_tail() -> None:
    for log_weights in (light_tailed(0.999), np.full(100, -np.inf), np.zeros(10)):
        smoothed, k = smooth_log_weights(log_weights)
        assert k == np.inf
        assert (smoothed == log_weights).all()


def test_weights_with_a_largest_value_that_recurs_have_no_tail() -> None:
    log_weights = np.where(np.random.default_rng(0).random(1000) < 0.3, 5.0, -np.inf)
    smoothed, k = smooth_log_weights(log_weights)
    assert k == -np.inf
    assert (smoothed == log_weights).all()


def test_draws_go_into_an_arviz_object_and_come_out_again() -> None:
    draws = {"weights": np.arange(24.0).reshape(2, 3, 4), "scale": np.arange(6.0).reshape(2, 3)}
    data = to_arviz({"posterior": draws, "log_likelihood": {"y": np.zeros((2, 3, 5))}})
    assert has_posterior(data)
    assert data["log_likelihood"]["y"].shape == (2, 3, 5)
    read = posterior_draws(data)
    assert read.keys() == draws.keys()
    for name, values in draws.items():
        assert (read[name].values == values).all()


def test_draws_are_read_chain_first_whatever_their_order() -> None:
    data = to_arviz({"posterior": {"weights": np.arange(24.0).reshape(2, 3, 4)}})
    turned = to_arviz({"posterior": {"weights": np.arange(24.0).reshape(2, 3, 4)}})
    turned.posterior["weights"] = turned.posterior["weights"].transpose(..., "draw", "chain")
    assert (posterior_draws(turned)["weights"].values == posterior_draws(data)["weights"].values).all()


WEIGHTS = np.arange(24.0).reshape(2, 3, 4)
DATA = to_arviz(
    {"posterior": {"weights": WEIGHTS, "names": np.full((2, 3), "a"), "ok": np.ones((2, 3), dtype=bool)}},
    {"weights": SiteLabels(("feature",), (("age", "bmi", "dose", "sex"),))},
)
# A data set, or a node of a tree from version 1 on.
POSTERIOR = DATA.posterior if isinstance(DATA.posterior, xarray.Dataset) else DATA.posterior.to_dataset()
FORMS = {
    "data": DATA,
    "posterior": POSTERIOR,
    "tree": xarray.DataTree.from_dict({"posterior": POSTERIOR}),
    "node": xarray.DataTree.from_dict({"posterior": POSTERIOR})["posterior"],
    "variable": POSTERIOR["weights"],
    "constants beside": POSTERIOR[["weights"]].assign(constant=1.0),
    "extract": arviz.extract(DATA),
    "extract without an index": arviz.extract(DATA).reset_index("sample"),
    "extract a variable": arviz.extract(DATA, var_names="weights"),
    "extract in disorder": arviz.extract(DATA).isel(sample=[5, 0, 3, 1, 4, 2]),
}


@pytest.mark.parametrize("form", FORMS)
def test_draws_are_the_same_in_all_forms_of_arviz(form: str) -> None:
    assert has_posterior(FORMS[form])
    read = posterior_draws(FORMS[form])
    assert read.keys() <= {"weights", "ok"}
    assert (read["weights"].values == WEIGHTS).all()
    assert read["weights"].labels == SiteLabels(("feature",), (("age", "bmi", "dose", "sex"),))


def test_places_have_names_that_tell_them_apart() -> None:
    def coords(names):
        draws = (("chain", "draw", "f"), np.zeros((2, 5, len(names))))
        return posterior_draws(xarray.Dataset({"b": draws}, coords={"f": names}))["b"].labels.coords

    assert coords(np.array([b"age", b"dose"])) == (("age", "dose"),)  # as a file of NetCDF may have them
    assert coords(["age", "dose", "age", "age"]) == (("age", "dose", "age (2)", "age (3)"),)
    assert coords([1, 2]) == ((1, 2),)


def test_a_part_of_the_draws_of_several_chains_is_taken_for_one() -> None:
    part = arviz.extract(DATA).isel(sample=[5, 0, 3])
    assert (posterior_draws(part)["weights"].values == WEIGHTS.reshape(6, 4)[[5, 0, 3]]).all()


def test_labels_of_another_shape_are_not_written_upon_draws() -> None:
    data = to_arviz({"posterior": {"w": np.zeros((1, 2, 3))}}, {"w": SiteLabels(("feature",), (("age", "bmi"),))})
    assert "feature" not in data.posterior.dims


def test_groups_beside_the_draws_go_into_a_file_with_them(tmp_path):
    labels = {"w": SiteLabels(("feature", "week"), (("age", "bmi"), (1, 2, 3)))}
    data = to_arviz({"posterior": {"w": np.zeros((1, 2, 2, 3)), "b": np.zeros((1, 2))}}, labels)
    add_elements(data, "evidence", {"w": np.arange(2.0), "b": np.array(7.0)}, labels, {"method": "exact"})
    variables = {"reduced": (("model", "group"), np.eye(2, dtype=bool))}
    add_group(data, "models", variables, {"group": ["age", "bmi"]})
    data.to_netcdf(tmp_path / "file.nc")
    back = arviz.from_netcdf(tmp_path / "file.nc")
    evidence = back["evidence"]
    assert evidence["w"].dims == ("feature",) and evidence["w"].sel(feature="bmi") == 1.0 and evidence["b"] == 7.0
    assert "week" not in evidence.coords and evidence.attrs["method"] == "exact"
    assert back["models"]["reduced"].dtype == bool and back["models"]["reduced"].sel(group="bmi").values.tolist() == [
        0,
        1,
    ]
    assert set(posterior_draws(back)) == {"w", "b"}


@pytest.mark.parametrize("other", [{"posterior": {}}, None, np.zeros(3), to_arviz({"prior": {"x": np.zeros((1, 2))}})])
def test_what_holds_no_posterior_is_told_apart(other: object) -> None:
    assert not has_posterior(other)

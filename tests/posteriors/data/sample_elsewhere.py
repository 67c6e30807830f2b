# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Makes the files beside it: one regression, sampled by NumPyro, PyMC, Bambi and CmdStan, two chains of a few draws each.

The packages are none that the project needs: pip install numpyro pymc bambi cmdstanpy prophet (the last brings
a model that CmdStan has compiled, of which this regression is a case: no trend, no change points). Run it as
``python tests/posteriors/data/sample_elsewhere.py [package ...]``.

    y ~ normal(a + x b, sigma),    a ~ normal(0, 5),    b ~ normal(0, 1),    sigma ~ half-normal(0.5)
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FEATURES = ["age", "dose"]
CHAINS, DRAWS, THINNING = 2, 150, 4


def data() -> tuple[np.ndarray, np.ndarray]:
    """What was observed, which the tests make again."""
    rng = np.random.default_rng(16)
    x = rng.standard_normal((30, 2))
    return x, 0.5 + x @ np.array([0.6, 0.05]) + 0.8 * rng.standard_normal(30)


def numpyro():
    import arviz
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    x, y = data()

    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 5.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
        numpyro.deterministic("ratio", b[0] / sigma)
        numpyro.sample("y", dist.Normal(a + x @ b, sigma), obs=y)

    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=DRAWS * THINNING, num_chains=CHAINS, chain_method="sequential")
    mcmc.run(jax.random.PRNGKey(0))
    return arviz.from_numpyro(mcmc, dims={"b": ["feature"]}, coords={"feature": FEATURES})


def pymc():
    import pymc

    x, y = data()
    with pymc.Model(coords={"feature": FEATURES}):
        a = pymc.Normal("a", 0.0, 5.0)
        b = pymc.Normal("b", 0.0, 1.0, dims="feature")
        sigma = pymc.HalfNormal("sigma", 0.5)
        pymc.Deterministic("ratio", b[0] / sigma)
        pymc.Normal("y", a + x @ b, sigma, observed=y)
        return pymc.sample(DRAWS * THINNING, tune=500, chains=CHAINS, cores=1, random_seed=0, progressbar=False)


def bambi():
    import bambi
    import pandas

    x, y = data()
    priors = {
        "Intercept": bambi.Prior("Normal", mu=0.0, sigma=5.0),
        "sigma": bambi.Prior("HalfNormal", sigma=0.5),
        **{name: bambi.Prior("Normal", mu=0.0, sigma=1.0) for name in FEATURES},
    }
    table = pandas.DataFrame(x, columns=FEATURES).assign(y=y)
    model = bambi.Model("y ~ age + dose", table, priors=priors, center_predictors=False)
    return model.fit(DRAWS * THINNING, tune=500, chains=CHAINS, cores=1, random_seed=0, progressbar=False)


def cmdstan():
    import arviz
    import cmdstanpy
    import prophet

    x, y = data()
    stated = {
        "T": len(y),
        "K": 2,
        "t": [0.0] * len(y),
        "cap": [0.0] * len(y),
        "y": y.tolist(),
        "S": 0,
        "t_change": [],
        "X": x.tolist(),
        "sigmas": [1.0, 1.0],
        "tau": 1.0,
        "trend_indicator": 0,
        "s_a": [1.0, 1.0],
        "s_m": [0.0, 0.0],
    }
    binary = next((Path(prophet.__file__).parent / "stan_model").glob("prophet_model.bin"))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data.json").write_text(json.dumps(stated))
        fit = cmdstanpy.CmdStanModel(exe_file=str(binary)).sample(
            data=str(Path(folder) / "data.json"),
            chains=CHAINS,
            parallel_chains=1,
            iter_warmup=500,
            iter_sampling=DRAWS * THINNING,
            seed=1,
            show_progress=False,
        )
        return arviz.from_cmdstanpy(fit, dims={"beta": ["feature"]}, coords={"feature": FEATURES})


def main(names: list[str]) -> None:
    for name in names or ["numpyro", "pymc", "bambi", "cmdstan"]:
        whole = globals()[name]().posterior
        posterior = whole.isel(draw=slice(None, None, THINNING)).astype("float32")
        posterior = posterior[[v for v, array in posterior.data_vars.items() if 0 < array[0, 0].size <= 4]]
        kept = ("inference_library", "inference_library_version")
        posterior.attrs = {key: str(whole.attrs[key]) for key in kept if key in whole.attrs}
        posterior.to_netcdf(HERE / f"{name}.nc", engine="scipy")
        print(name, {v: array.shape for v, array in posterior.data_vars.items()}, (HERE / f"{name}.nc").stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1:])

# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
Which covariates belong in regressions: every model of a space fitted by itself.

``python -m tests.truth.spaces`` at the top of the repository writes spaces.json anew, in a minute: of each of thirteen
regressions with standard normal priors of the coefficients, each of the 2^d models is fitted by Newton's method with
NumPy, its evidence is had by Laplace's method at its own mode, and the inclusion probability of each covariate is the
sum over the models. Ten are simulated (with correlated covariates, logistic and Poisson), three are of published data.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).parent


class Regression(NamedTuple):
    """
    A regression, and of which kind it is.

    :param kind: ``"logistic"`` or ``"poisson"``.
    :param x: covariates, the first of which are ones, shape ``(n, 1 + d)``.
    :param y: what they are to explain, shape ``(n,)``.
    """

    kind: str
    x: np.ndarray
    y: np.ndarray

    def log_likelihood(self, eta: np.ndarray) -> np.ndarray:
        """Of each observation, but for what no model changes."""
        return self.y * eta - (np.exp(eta) if self.kind == "poisson" else np.logaddexp(0, eta))

    def slope_and_bend(self, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Its first derivative, and its second with the other sign."""
        mean = np.exp(eta) if self.kind == "poisson" else 1 / (1 + np.exp(-eta))
        return self.y - mean, mean if self.kind == "poisson" else mean * (1 - mean)

    def laplace(self, kept: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Log evidence, mode and precision of the model of some of the columns, under standard normal priors."""
        x = self.x[:, kept]
        w = np.zeros(x.shape[1])

        def objective(at: np.ndarray) -> float:
            return float(self.log_likelihood(x @ at).sum() - 0.5 * at @ at)

        for _ in range(100):
            slope, bend = self.slope_and_bend(x @ w)
            precision = x.T * bend @ x + np.eye(len(w))
            step = np.linalg.solve(precision, x.T @ slope - w)
            size = 1.0
            while objective(w + size * step) < objective(w) - 1e-12 and size > 1e-6:
                size /= 2
            w = w + size * step
            if np.abs(step).max() < 1e-10:
                break
        _, bend = self.slope_and_bend(x @ w)
        precision = x.T * bend @ x + np.eye(len(w))
        return objective(w) - 0.5 * np.linalg.slogdet(precision)[1], w, precision

    def inclusion(self) -> np.ndarray:
        """The inclusion probability of each covariate, all models fitted; the constant is in each."""
        every = np.array(list(itertools.product((False, True), repeat=self.x.shape[1] - 1)))
        evidence = np.array([self.laplace(np.r_[True, kept])[0] for kept in every])
        weights = np.exp(evidence - evidence.max())
        return weights @ every / weights.sum()


def simulated(seed: int) -> Regression:
    """Eight covariates that share causes the more, the larger the number; a third of them have an effect."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal((200, 2)) @ generator.standard_normal((2, 8))
    x = generator.standard_normal((200, 8)) + 0.15 * seed * shared
    x = (x - x.mean(0)) / x.std(0)
    weights = np.where(generator.random(8) < 1 / 3, 0.5 * generator.standard_normal(8), 0.0)
    eta = 0.3 + x @ weights
    kind = "poisson" if seed % 2 else "logistic"
    y = generator.poisson(np.exp(eta)) if seed % 2 else generator.random(200) < 1 / (1 + np.exp(-eta))
    return Regression(kind, np.column_stack([np.ones(200), x]), y.astype(float))


def published(name: str, target: str) -> Regression:
    """Whether the target is above its median, by logistic regression on all else, standardised."""
    given = json.loads((FOLDER / "data" / f"{name}.json").read_text())
    numbers = {key: np.array(values, dtype=float) for key, values in given.items() if isinstance(values, list)}
    y = numbers.pop(target)
    x = np.column_stack([values for values in numbers.values() if values.std() > 0])
    x = (x - x.mean(0)) / x.std(0)
    return Regression("logistic", np.column_stack([np.ones(len(y)), x]), (y > np.median(y)).astype(float))


def regressions() -> Mapping[str, Regression]:
    """All, by name."""
    made = {f"simulated {seed}": simulated(seed) for seed in range(10)}
    targets = {"diabetes": "progress", "nes": "partyid7", "mesquite": "weight"}
    return made | {name: published(name, target) for name, target in targets.items()}


def main() -> None:
    """Writes the inclusion probabilities of all."""
    found = {name: regression.inclusion().round(6).tolist() for name, regression in regressions().items()}
    (FOLDER / "spaces.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

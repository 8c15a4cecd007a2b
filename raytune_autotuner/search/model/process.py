"""A Gaussian process over configurations: what is expected of one that was never tried, and how sure that is.

Launch parameters act mostly each for itself and in pairs, by factors. So the kernel is an ANOVA of order two over the
logarithm of the loss: main effects and pairs, each as relevant as the data say (an automatic relevance determination
that a few dozen trials can carry). See Duvenaud, Nickisch, Rasmussen, "Additive Gaussian Processes", 2011.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize
from scipy.special import ndtr

Array = NDArray[np.float64]

VARIANCE, LENGTH, WHOLE, NOISE = -1.0, math.log(0.7), -4.0, math.log(0.02)
"""Logarithms that the search for hyperparameters begins at, and its prior is centred on."""
SPREAD_VARIANCE, SPREAD_LENGTH, SPREAD_PAIRS, SPREAD_OTHER = 1.5, 0.5, 1.5, 1.0
BOUND = 4.0
CATEGORY_DECAY = 2.0
"""How much less two categories have in common than one with itself: a factor of exp(-2)."""
CONSTANT = 0.5
"""Variance of the mean."""
JITTER = 1e-6
STEPS = 25
EXPECTED = 2
"""So many columns at the end of a row hold what is expected."""
TAIL = -5.0


@dataclass(frozen=True)
class Kernel:
    """How alike two configurations are; rows hold ranks in [0, 1], categories, or -1 for what is left out."""

    ordered: NDArray[np.bool_]
    """Which columns are ranks."""
    variances: Mapping[int, float] = field(default_factory=dict)
    """Logarithms to begin with, of some columns."""
    pairs: float = -2.0
    """Logarithm of the weight of pairs, to begin with."""

    @property
    def start(self) -> Array:
        """By column log variance and log length; then log weights of pairs and of the whole, log noise."""
        n = len(self.ordered)
        variances = [self.variances.get(k, VARIANCE) for k in range(n)]
        return np.array([*variances, *[LENGTH] * n, self.pairs, WHOLE, NOISE])

    @property
    def spread(self) -> Array:
        n = len(self.ordered)
        return np.array([*[SPREAD_VARIANCE] * n, *[SPREAD_LENGTH] * n, SPREAD_PAIRS, SPREAD_OTHER, SPREAD_OTHER])

    def apart(self, a: Array, b: Array) -> Array:
        """By column: the square of the difference in rank, or 1 for another category."""
        difference = a[:, None, :] - b[None, :, :]
        either_left_out = (a[:, None, :] < 0) != (b[None, :, :] < 0)
        return np.where(self.ordered & ~either_left_out, difference**2, (difference != 0).astype(float))

    def __call__(self, theta: Array, apart: Array) -> Array:
        each, one, pairs, whole = self._pieces(theta, apart)
        return np.asarray(_first(each) + pairs * _second(each) + whole * np.prod(one, axis=2) + CONSTANT)

    def own(self, theta: Array) -> float:
        """Of a configuration with itself."""
        return float(self(theta, np.zeros((1, 1, len(self.ordered))))[0, 0])

    def slope(self, theta: Array, apart: Array, weight: Array) -> Array:
        """Of the sum over ``weight`` × kernel, by theta; 0 for the noise, which is not in it."""
        each, one, pairs, share = self._pieces(theta, apart)
        by_variance = each * (1 + pairs * (_first(each)[..., None] - each))
        whole = share * np.prod(one, axis=2)
        falling = np.where(self.ordered, np.exp(-2 * theta[len(self.ordered) : 2 * len(self.ordered)]), 0.0)
        by_length = (by_variance + whole[..., None]) * apart * falling
        columns = [np.einsum("ij,ijk->k", weight, part) for part in (by_variance, by_length)]
        return np.concatenate([*columns, [pairs * (weight * _second(each)).sum(), (weight * whole).sum(), 0.0]])

    def _pieces(self, theta: Array, apart: Array) -> tuple[Array, Array, float, float]:
        n = len(self.ordered)
        decay = np.where(self.ordered, np.exp(-2 * theta[n : 2 * n]) / 2, CATEGORY_DECAY)
        one = np.exp(-apart * decay)
        return np.exp(theta[:n]) * one, one, math.exp(theta[2 * n]), math.exp(theta[2 * n + 1])


def _first(each: Array) -> Array:
    return np.asarray(each.sum(axis=2))


def _second(each: Array) -> Array:
    """The sum over pairs of columns."""
    return np.asarray((_first(each) ** 2 - (each**2).sum(axis=2)) / 2)


class Process:
    """Fitted to rows and values; hyperparameters are kept from one fit to the next.

    The last ``EXPECTED`` columns of the rows are none of the kernel's. One of them, ``expected``, holds what is
    expected before anything was measured: values are taken to rise with it by ``slope``, give or take ``doubt``.
    """

    def __init__(self, kernel: Kernel, slope: float, doubt: float, expected: int) -> None:
        self._kernel, self._slope, self._doubt, self._expected = kernel, slope, doubt, expected
        self._theta = kernel.start
        self.learnt = False

    def fit(self, x: Array, y: Array, noise: Array, *, learn: bool) -> None:
        """``noise`` are factors on the variance of the noise, by row; ``learn`` looks for better hyperparameters."""
        self._x, self._middle = x[:, :-EXPECTED], float(x[:, self._expected].mean())
        y = y - self._slope * (x[:, self._expected] - self._middle)
        self._mean, self._scale = float(y.mean()), float(y.std()) or 1.0
        self._tilt = self._tilted(x)
        z, apart = (y - self._mean) / self._scale, self._kernel.apart(self._x, self._x)
        if learn or not self.learnt:
            self._learn(apart, z, noise)
        self._root = cholesky(self._covariance(self._theta, apart, noise), lower=True)
        self._alpha = cho_solve((self._root, True), z)

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation at these rows, without noise."""
        tilt = self._tilted(x)
        across = self._kernel(self._theta, self._kernel.apart(x[:, :-EXPECTED], self._x)) + np.outer(tilt, self._tilt)
        known = np.einsum("ij,ji->i", across, cho_solve((self._root, True), across.T))
        deviation = np.sqrt(np.maximum(self._kernel.own(self._theta) + tilt**2 - known, 1e-9))
        mean = self._mean + self._slope * (x[:, self._expected] - self._middle)
        return mean + self._scale * (across @ self._alpha), self._scale * deviation

    def _tilted(self, x: Array) -> Array:
        """What one deviation of the slope would change of each row."""
        return np.asarray(self._doubt * (x[:, self._expected] - self._middle) / self._scale)

    def _learn(self, apart: Array, z: Array, noise: Array) -> None:
        """The most likely hyperparameters, given the data and the prior."""
        start, spread, identity = self._kernel.start, self._kernel.spread, np.eye(len(z))

        def cost(theta: Array) -> tuple[float, Array]:
            try:
                root = cholesky(self._covariance(theta, apart, noise), lower=True)
            except np.linalg.LinAlgError:
                return 1e9, np.zeros_like(theta)
            alpha = cho_solve((root, True), z)
            weight = (cho_solve((root, True), identity) - np.outer(alpha, alpha)) / 2
            slope = self._kernel.slope(theta, apart, weight)
            slope[-1] = (np.diag(weight) * noise).sum() * math.exp(theta[-1])
            off = (theta - start) / spread
            value = z @ alpha / 2 + np.log(np.diag(root)).sum() + (off**2).sum() / 2
            return float(value), slope + off / spread

        bounds = list(zip(start - BOUND, start + BOUND, strict=True))
        found = minimize(cost, self._theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS})
        self._theta, self.learnt = found.x, True

    def _covariance(self, theta: Array, apart: Array, noise: Array) -> Array:
        line = np.outer(self._tilt, self._tilt)
        return np.asarray(self._kernel(theta, apart) + line + np.diag(np.exp(theta[-1]) * noise + JITTER))


def log_improvement(best: float, mean: Array, deviation: Array) -> Array:
    """The logarithm of the expected improvement on ``best`` (smaller is better), also where it is next to nothing."""
    u = (best - mean) / deviation
    near = np.log(np.maximum(u * ndtr(u) + np.exp(-u * u / 2) / math.sqrt(2 * math.pi), 1e-300))
    far = -u * u / 2 - math.log(math.sqrt(2 * math.pi)) - 2 * np.log(np.maximum(1.0, -u))
    return np.asarray(np.where(u > TAIL, near, far) + np.log(deviation))

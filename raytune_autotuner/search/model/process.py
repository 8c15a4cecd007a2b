"""A Gaussian process over configurations: what is expected of one that was never tried, and how sure that is.

Launch parameters act mostly each for itself and in pairs, by factors. So the kernel is an ANOVA of order two over the
logarithm of the loss: main effects and pairs, each as relevant as the data say (an automatic relevance determination
that a few dozen trials can carry). See Duvenaud, Nickisch, Rasmussen, "Additive Gaussian Processes", 2011.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.special import logsumexp, ndtr

from raytune_autotuner.search.model.sampling import chain

Array = NDArray[np.float64]

VARIANCE, LENGTH, WHOLE, NOISE = -1.0, math.log(0.7), -4.0, math.log(0.02)
"""Logarithms that the search for hyperparameters begins at, and its prior is centred on."""
SPREAD_VARIANCE, SPREAD_LENGTH, SPREAD_PAIRS, SPREAD_OTHER = 1.5, 0.5, 1.5, 1.0
BOUND = 4.0
OTHER_CATEGORY = 1 - math.exp(-2)
"""How much less two categories have in common than one with itself."""
CONSTANT = 0.5
"""Variance of the mean."""
JITTER = 1e-6
SAMPLES, THIN, BURN = 8, 2, 20
"""Sets of hyperparameters that are believed: every so manieth of a chain, but for its first ones."""
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
        """By column: the square of the difference in rank, or 1 for another category. Shape (columns, a, b)."""
        a, b = a.T[:, :, None], b.T[:, None, :]
        either_left_out = (a < 0) != (b < 0)
        return np.where(self.ordered[:, None, None] & ~either_left_out, (a - b) ** 2, (a != b).astype(float))

    def __call__(self, theta: Array, apart: Array) -> Array:
        """Column by column in place, since it takes most of a proposal's time."""
        n, shape = len(self.ordered), apart.shape[1:]
        first, squares, whole = np.zeros(shape), np.zeros(shape), np.ones(shape)
        for column, ordered, variance, length in zip(apart, self.ordered, theta[:n], theta[n : 2 * n], strict=True):
            one = np.exp(column * (-math.exp(-2 * length) / 2)) if ordered else 1 - column * OTHER_CATEGORY
            whole *= one
            one *= math.exp(variance)
            first += one
            one *= one
            squares += one
        second = (first**2 - squares) / 2  # the sum over pairs of columns
        return np.asarray(first + math.exp(theta[2 * n]) * second + math.exp(theta[2 * n + 1]) * whole + CONSTANT)

    def own(self, theta: Array) -> float:
        """Of a configuration with itself."""
        return float(self(theta, np.zeros((len(self.ordered), 1, 1)))[0, 0])


class Process:
    """Fitted to rows and values; hyperparameters are kept from one fit to the next.

    Few readings leave many hyperparameters likely, so it is not one set of them that is believed but ``SAMPLES``. See
    Snoek, Larochelle, Adams, "Practical Bayesian Optimization of Machine Learning Algorithms", 2012.

    The last ``EXPECTED`` columns of the rows are none of the kernel's. One of them, ``expected``, holds what is
    expected before anything was measured: values are taken to rise with it by ``slope``, give or take ``doubt``.
    """

    def __init__(self, kernel: Kernel, slope: float, doubt: float, expected: int) -> None:
        self._kernel, self._slope, self._doubt, self._expected = kernel, slope, doubt, expected
        self._thetas: list[Array] = []
        self._rng = np.random.default_rng(0)

    def fit(self, x: Array, y: Array, noise: Array, *, learn: bool) -> None:
        """``noise`` are factors on the variance of the noise, by row; ``learn`` looks for better hyperparameters."""
        self._x, self._middle = x[:, :-EXPECTED], float(x[:, self._expected].mean())
        y = y - self._slope * (x[:, self._expected] - self._middle)
        self._mean, self._scale = float(y.mean()), float(y.std()) or 1.0
        self._tilt = self._tilted(x)
        z, apart = (y - self._mean) / self._scale, self._kernel.apart(self._x, self._x)
        if learn or not self._thetas:
            self._learn(apart, z, noise)
        self._roots = [cholesky(self._covariance(theta, apart, noise), lower=True) for theta in self._thetas]
        self._alphas = [cho_solve((root, True), z) for root in self._roots]

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation at these rows, without noise; both of shape (samples, rows)."""
        tilt, apart = self._tilted(x), self._kernel.apart(x[:, :-EXPECTED], self._x)
        begin = self._mean + self._slope * (x[:, self._expected] - self._middle)
        means, deviations = [], []
        for theta, root, alpha in zip(self._thetas, self._roots, self._alphas, strict=True):
            across = self._kernel(theta, apart) + np.outer(tilt, self._tilt)
            known = np.einsum("ij,ji->i", across, cho_solve((root, True), across.T))
            means.append(begin + self._scale * (across @ alpha))
            deviations.append(self._scale * np.sqrt(np.maximum(self._kernel.own(theta) + tilt**2 - known, 1e-9)))
        return np.array(means), np.array(deviations)

    def expects(self, x: Array) -> Array:
        """The mean at these rows."""
        return np.asarray(self.predict(x)[0].mean(axis=0))

    def _tilted(self, x: Array) -> Array:
        """What one deviation of the slope would change of each row."""
        return np.asarray(self._doubt * (x[:, self._expected] - self._middle) / self._scale)

    def _learn(self, apart: Array, z: Array, noise: Array) -> None:
        """Hyperparameters that are likely, given the data and the prior; the chain goes on where it was."""
        start, spread = self._kernel.start, self._kernel.spread

        def likelihood(theta: Array) -> float:
            if np.abs(theta - start).max() > BOUND:
                return -math.inf
            try:
                root = cholesky(self._covariance(theta, apart, noise), lower=True)
            except np.linalg.LinAlgError:
                return -math.inf
            return float(-z @ cho_solve((root, True), z) / 2 - np.log(np.diag(root)).sum())

        begin, skipped = (self._thetas[-1], 0) if self._thetas else (start, BURN)
        samples = chain(begin, start, spread, likelihood, self._rng)
        self._thetas = list(islice(samples, skipped + THIN - 1, skipped + SAMPLES * THIN, THIN))

    def _covariance(self, theta: Array, apart: Array, noise: Array) -> Array:
        line = np.outer(self._tilt, self._tilt)
        return np.asarray(self._kernel(theta, apart) + line + np.diag(np.exp(theta[-1]) * noise + JITTER))


def average(logs: Array) -> Array:
    """The logarithm of the mean over samples; shape (samples, n)."""
    return np.asarray(logsumexp(logs, axis=0) - math.log(len(logs)))


def log_improvement(best: float, mean: Array, deviation: Array) -> Array:
    """The logarithm of the expected improvement on ``best`` (smaller is better), also where it is next to nothing."""
    u = (best - mean) / deviation
    near = np.log(np.maximum(u * ndtr(u) + np.exp(-u * u / 2) / math.sqrt(2 * math.pi), 1e-300))
    far = -u * u / 2 - math.log(math.sqrt(2 * math.pi)) - 2 * np.log(np.maximum(1.0, -u))
    return np.asarray(np.where(u > TAIL, near, far) + np.log(deviation))

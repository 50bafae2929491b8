"""Confidence intervals of ratios over images, in one pass."""

from __future__ import annotations

import numpy as np


class PoissonBootstrap:
    """An interval of sum(totals) / sum(counts) over images, as if other images had been drawn.

    Each image counts Poisson(1) times in each replicate, which for many images is the bootstrap (drawing as many
    with replacement) and needs neither their number beforehand nor their values afterwards. Images are the unit
    because phrases of one image are not independent.

    Source: Chamandy et al., Estimating Uncertainty for Massive Data Streams, 2012.
    """

    def __init__(self, replicates: int = 1000, seed: int = 0) -> None:
        """Prepare so many replicates; the seed decides them."""
        self._rng = np.random.default_rng([seed, 31])
        self._totals = np.zeros(replicates)
        self._counts = np.zeros(replicates)

    def add(self, total: float, count: float) -> None:
        """One image: what its items sum up to, and how many they are."""
        weights = self._rng.poisson(1.0, self._totals.size)
        self._totals += weights * total
        self._counts += weights * count

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval; nan without any item."""
        filled = self._counts > 0
        if not filled.any():
            return float("nan"), float("nan")
        ratios = self._totals[filled] / self._counts[filled]
        low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

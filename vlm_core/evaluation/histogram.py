"""Precision and recall over more scores than fit in memory: a histogram of them, with a bound of its error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import digamma

from vlm_core.evaluate import BoolMask

BINS = 4000
"""Of equal width in [0, 1]; a multiple of 20, so that 0.05, 0.10 ... 0.95 are edges and a sweep over them is exact."""

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class ScoreHistogram:
    """How many true and how many other scores fall into each bin.

    Attributes:
        positives, negatives: int64 (bins,), lowest scores first.
    """

    def __init__(self, bins: int = BINS) -> None:
        """An empty one of `bins` bins of equal width in [0, 1]."""
        self.bins = bins
        self.positives: Counts = np.zeros(bins, dtype=np.int64)
        self.negatives: Counts = np.zeros(bins, dtype=np.int64)

    def add(self, scores: npt.NDArray[np.floating], true: BoolMask) -> None:
        """Count scores in [0, 1] and what is true, of one shape. Raises ValueError where they do not fit."""
        if scores.shape != true.shape:
            raise ValueError(f"scores have shape {scores.shape} and truth {true.shape}")
        # In float64 the product of a float32 score and the number of bins is exact: a score on an edge stays on it.
        slots = (scores.ravel().astype(np.float64) * self.bins).astype(np.int64)
        np.clip(slots, 0, self.bins - 1, out=slots)  # a score of 1 belongs to the last bin
        counts = np.bincount(slots + self.bins * true.ravel(), minlength=2 * self.bins)
        self.negatives += counts[: self.bins]
        self.positives += counts[self.bins :]

    def merge(self, other: ScoreHistogram) -> None:
        """Add what another one of as many bins has counted."""
        self.positives += other.positives
        self.negatives += other.negatives

    def above(self, thresholds: FloatArray) -> tuple[Counts, Counts]:
        """True and other scores from each threshold on; exact where a threshold is an edge of a bin."""
        edges = np.rint(thresholds * self.bins).astype(np.int64)
        positives = np.append(np.cumsum(self.positives[::-1])[::-1], 0)
        negatives = np.append(np.cumsum(self.negatives[::-1])[::-1], 0)
        return positives[edges], negatives[edges]

    def curve(self) -> tuple[FloatArray, FloatArray]:
        """Precision and recall from the highest bin down, one value for each bin that holds a score."""
        found, wrong = np.cumsum(self.positives[::-1]), np.cumsum(self.negatives[::-1])
        filled = (self.positives + self.negatives)[::-1] > 0
        found, wrong = found[filled], wrong[filled]
        return found / np.maximum(found + wrong, 1), found / max(int(self.positives.sum()), 1)

    def average_precision(self) -> float:
        """AP as :func:`~vlm_core.evaluate.average_precision` has it, scores of one bin taken as equal; nan if empty."""
        if not self.positives.any():
            return float("nan")
        precision, recall = self.curve()
        return float(np.sum(np.diff(recall, prepend=0.0) * precision))

    def bounds(self) -> tuple[float, float]:
        """Between what the AP of the scores themselves lies, whatever their order within the bins.

        Let a bin hold p true and n other scores with P and N above it. The precision at its i-th true score is at
        least (P + i) / (P + i + N + n), when all others come first, and at most (P + p) / (P + p + N).
        """
        if not self.positives.any():
            return float("nan"), float("nan")
        p, n = self.positives[::-1].astype(np.float64), self.negatives[::-1].astype(np.float64)
        before_p, before_n = np.cumsum(p) - p, np.cumsum(n) - n
        total = before_p + before_n + n
        # sum over i of (P + i) / (total + i) = p - (N + n) * (H(total + p) - H(total)), H the harmonic numbers
        low = p - (before_n + n) * (digamma(total + p + 1) - digamma(total + 1))
        high = p * (before_p + p) / np.maximum(before_p + p + before_n, 1)
        count = p.sum()
        return float(low.sum() / count), float(high.sum() / count)

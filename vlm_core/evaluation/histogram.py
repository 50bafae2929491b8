"""Precision and recall over more scores than fit in memory: a histogram of them, with a bound of its error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, expit

from vlm_core.runs import BoolMask

THRESHOLDS = np.arange(1, 20) / 20
"""0.05 to 0.95: edges of bins, so that what is said of them is exact."""

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_LOGIT, _STEPS = 20.0, 4000


def _edges() -> npt.NDArray[np.float32]:
    """Lower ends of the bins, float32: those of scores are, and a score on an edge must stay on it."""
    logits = np.linspace(-_LOGIT, _LOGIT, _STEPS + 1)
    edges: npt.NDArray[np.float32] = np.unique(np.concatenate([[0.0], expit(logits), THRESHOLDS]).astype(np.float32))
    return edges


_EDGES = _edges()


class ScoreHistogram:
    """How many true and how many other scores fall into each bin.

    Bins are 0.01 wide in log odds, from -20 to 20, since a model that is sure puts most pixels below 0.001; the
    thresholds of a sweep are edges too.

    Attributes:
        positives, negatives: int64 (bins,), lowest scores first.
    """

    def __init__(self) -> None:
        """An empty one."""
        self.positives: Counts = np.zeros(_EDGES.size, dtype=np.int64)
        self.negatives: Counts = np.zeros(_EDGES.size, dtype=np.int64)

    def add(self, scores: npt.NDArray[np.floating], true: BoolMask) -> None:
        """Count scores in [0, 1], taken as float32, and what is true, of one shape. Raises ValueError otherwise."""
        if scores.shape != true.shape or (scores.size and not (scores.min() >= 0 and scores.max() <= 1)):
            raise ValueError(f"scores in [0, 1] and truth of one shape are needed, got {scores.shape} and {true.shape}")
        slots = np.searchsorted(_EDGES, scores.ravel().astype(np.float32), side="right") - 1
        counts = np.bincount(slots + _EDGES.size * true.ravel(), minlength=2 * _EDGES.size)
        self.negatives += counts[: _EDGES.size]
        self.positives += counts[_EDGES.size :]

    def merge(self, other: ScoreHistogram) -> None:
        """Add what another one has counted."""
        self.positives += other.positives
        self.negatives += other.negatives

    def above(self) -> tuple[Counts, Counts]:
        """True and other scores from each of `THRESHOLDS` on, exactly."""
        edges = np.searchsorted(_EDGES, THRESHOLDS.astype(np.float32))
        positives, negatives = (np.cumsum(c[::-1])[::-1] for c in (self.positives, self.negatives))
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

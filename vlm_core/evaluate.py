"""Measures of masks and of matching, as the papers define them.

Masks: CLIPSeg (arXiv:2112.10003, section 5) after PhraseCut (arXiv:2008.01187). Matching: zero-shot
classification of CLIP (arXiv:2103.00020), here as picking the right description out of k.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlm_core.errors import DataError
from vlm_core.runs import BoolMask

if TYPE_CHECKING:
    from PIL import Image

    from vlm_core.data import PhraseSample
    from vlm_core.model import Model

ABSENT_AREA = 0.01
"""An absent phrase counts as marked when more than this part of the image is predicted for it."""


def iou(predicted: BoolMask, true: BoolMask) -> float:
    """Intersection over union of two masks of one shape, in [0, 1]; 1 when both are empty.

    Raises:
        ValueError: the shapes differ.
    """
    intersection, union = _counts(predicted, true)
    return intersection / union if union else 1.0


def mean_iou(predicted: Sequence[BoolMask], true: Sequence[BoolMask]) -> float:
    """mIoU: the IoU of each phrase, averaged over phrases; every phrase counts the same.

    Raises:
        ValueError: no masks, or not the same number of both.
    """
    _check_pairs(predicted, true)
    return float(np.mean([iou(p, t) for p, t in zip(predicted, true, strict=True)]))


def foreground_iou(predicted: Sequence[BoolMask], true: Sequence[BoolMask]) -> float:
    """IoU_FG: intersection and union summed over all phrases, then divided; every pixel counts the same.

    Raises:
        ValueError: no masks, or not the same number of both.
    """
    _check_pairs(predicted, true)
    counts = [_counts(p, t) for p, t in zip(predicted, true, strict=True)]
    union = sum(u for _, u in counts)
    return sum(i for i, _ in counts) / union if union else 1.0


def binary_iou(predicted: Sequence[BoolMask], true: Sequence[BoolMask]) -> float:
    """IoU_BIN: the mean of `foreground_iou` and of the same figure for the background.

    Raises:
        ValueError: no masks, or not the same number of both.
    """
    background = foreground_iou([~p for p in predicted], [~t for t in true])
    return (foreground_iou(predicted, true) + background) / 2


def average_precision(scores: npt.NDArray[np.floating], true: BoolMask) -> float:
    """AP: area under the precision-recall curve over pixels, the step-wise sum that has no interpolation.

    Args:
        scores: any shape; larger means more likely the object. Equal scores are taken together.
        true: same shape, at least one True.

    Raises:
        ValueError: nothing is true, or the shapes differ.
    """
    if scores.shape != true.shape or not true.any():
        raise ValueError(f"average precision needs true pixels and one shape, got {scores.shape} and {true.shape}")
    order = np.argsort(-scores.ravel(), kind="stable")
    hits = true.ravel()[order]
    ranked = scores.ravel()[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    found = np.cumsum(hits)[ends]
    precision, recall = found / (ends + 1), found / hits.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def one_of_k_accuracy(scores: npt.ArrayLike, right: npt.ArrayLike | int = 0) -> float:
    """How often the right one of k candidates has the highest score; a tie for the highest is no hit.

    Args:
        scores: (N, k).
        right: index of the right candidate, one for all or (N,).

    Raises:
        ValueError: not (N, k) with N >= 1 and k >= 2.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise ValueError(f"scores need shape (N, k) with k >= 2, got {values.shape}")
    rows = np.arange(values.shape[0])
    index = np.broadcast_to(np.asarray(right), rows.shape)
    own = values[rows, index]
    others = values.copy()
    others[rows, index] = -np.inf
    return float(np.mean(own > others.max(axis=1)))


def recall_at_k(ranks: npt.ArrayLike, k: int) -> float:
    """How often the first right candidate is among the k first: the share of ranks up to k.

    Args:
        ranks: (N,), 1 for the first place; what :func:`best_rank` gives.
        k: >= 1.

    Raises:
        ValueError: no rank, a rank below 1, or k < 1.
    """
    values = np.asarray(ranks)
    if values.size == 0 or values.min() < 1 or k < 1:
        raise ValueError(f"recall at k needs ranks and k from 1 on, got {values.size} ranks and k = {k}")
    return float(np.mean(values <= k))


def best_rank(scores: npt.ArrayLike, right: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The place of the best right candidate; wrong ones of the same score stand before it.

    Other right candidates take no place: with five right texts the second best of them pushes nothing back.

    Args:
        scores: (N, M).
        right: (N, M), at least one True a row.

    Returns:
        (N,), from 1 on.

    Raises:
        ValueError: the shapes differ, or a row has nothing right.
    """
    values = np.asarray(scores)
    if values.ndim != 2 or values.shape != right.shape or not right.any(axis=1).all():
        raise ValueError(f"ranks need (N, M) scores and something right a row, got {values.shape} and {right.shape}")
    best = np.where(right, values, -np.inf).max(axis=1, keepdims=True)
    ranks: npt.NDArray[np.int64] = 1 + np.count_nonzero(~right & (values >= best), axis=1)
    return ranks


def expected_one_of_k(below: npt.ArrayLike, wrong: npt.ArrayLike, k: int) -> float:
    """One-of-k accuracy averaged over every possible draw of the k - 1 wrong candidates; no seed, no noise.

    An item with `below` of `wrong` candidates under its right one wins a draw of k - 1 of them with the
    hypergeometric probability C(below, k - 1) / C(wrong, k - 1).

    Args:
        below: (N,), how many wrong candidates score strictly less than the right one.
        wrong: (N,) or one number, how many wrong candidates there are, >= k - 1.
        k: >= 2.

    Raises:
        ValueError: too few wrong candidates, or k < 2.
    """
    under = np.asarray(below, dtype=np.float64)
    count = np.broadcast_to(np.asarray(wrong, dtype=np.float64), under.shape)
    if k < 2 or under.size == 0 or count.min() < k - 1:
        raise ValueError(f"one-of-{k} needs k >= 2 and at least k - 1 wrong candidates")
    chance = np.ones_like(under)
    for drawn in range(k - 1):
        chance *= np.maximum(under - drawn, 0) / (count - drawn)
    return float(chance.mean())


def _counts(predicted: BoolMask, true: BoolMask) -> tuple[int, int]:
    if predicted.shape != true.shape:
        raise ValueError(f"masks have shapes {predicted.shape} and {true.shape}: resample one first")
    return int(np.count_nonzero(predicted & true)), int(np.count_nonzero(predicted | true))


def _check_pairs(predicted: Sequence[BoolMask], true: Sequence[BoolMask]) -> None:
    if not predicted or len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predicted and {len(true)} true masks: one or more pairs are needed")


class Overlaps:
    """Sums over phrases. The figures of a run, of an image or of one phrase all come from here.

    Attributes:
        present, absent: phrases whose object is there, and phrases without one.
        marked: absent phrases for which more than 1 % of the image is predicted.
        iou: IoU of the present phrases, summed.
        counts: over the present phrases, as `overlap_counts` has them: int64 (4,).
    """

    __slots__ = ("absent", "counts", "iou", "marked", "present")

    def __init__(self) -> None:
        """Of no phrase."""
        self.present = self.absent = self.marked = 0
        self.iou = 0.0
        self.counts = np.zeros(4, dtype=np.int64)

    def add(self, predicted: BoolMask, true: BoolMask) -> float | None:
        """Count a phrase, absent where nothing is true; gives the IoU of a present one. Both masks have one shape."""
        area, marked = int(np.count_nonzero(true)), int(np.count_nonzero(predicted))
        if not area:
            self.absent += 1
            self.marked += marked > ABSENT_AREA * true.size
            return None
        hits = int(np.count_nonzero(predicted & true))
        counts = overlap_counts(hits, marked - hits, area, true.size)
        value = float(counts[0] / counts[1])
        self.present += 1
        self.iou += value
        self.counts += counts
        return value

    def merge(self, other: Overlaps) -> None:
        """Add what another one has counted."""
        self.present += other.present
        self.absent += other.absent
        self.marked += other.marked
        self.iou += other.iou
        self.counts += other.counts

    @property
    def mean_iou(self) -> float:
        """mIoU over the present phrases; nan without any."""
        return self.iou / self.present if self.present else float("nan")

    @property
    def foreground_iou(self) -> float:
        """IoU_FG over the present phrases; nan without any."""
        return pooled_iou(self.counts)[0]

    @property
    def binary_iou(self) -> float:
        """IoU_BIN over the present phrases; nan without any."""
        return pooled_iou(self.counts)[1]

    @property
    def absent_marked(self) -> float:
        """Share of the absent phrases that are marked; nan without any."""
        return self.marked / self.absent if self.absent else float("nan")


def overlap_counts(hits: npt.ArrayLike, false: npt.ArrayLike, area: int, size: int) -> npt.NDArray[np.int64]:
    """Foreground intersection and union, background intersection and union, px: (4, ...).

    Args:
        hits: marked pixels that are true; one number, or one for each of several thresholds.
        false: marked pixels that are not, likewise.
        area: true pixels.
        size: all pixels.
    """
    found, wrong = np.asarray(hits, dtype=np.int64), np.asarray(false, dtype=np.int64)
    union = area + wrong
    return np.stack([found, union, size - union, size - found])


def pooled_iou(counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """IoU_FG and IoU_BIN of summed `overlap_counts`, (4,). A background that is nowhere, and predicted nowhere, is met.

    Both are nan without a foreground.
    """
    if not counts[1]:
        return float("nan"), float("nan")
    foreground = float(counts[0] / counts[1])
    return foreground, (foreground + (float(counts[2] / counts[3]) if counts[3] else 1.0)) / 2


@dataclass(frozen=True, slots=True)
class SegmentationReport:
    """How good masks are.

    Attributes:
        mean_iou: over phrases whose object is there; nan without any.
        foreground_iou: over the same phrases.
        absent_marked: share of absent phrases that mark more than 1 % of their image; nan without any.
        present, absent: how many phrases of each kind.
    """

    mean_iou: float
    foreground_iou: float
    absent_marked: float
    present: int
    absent: int

    def to_dict(self) -> dict[str, float]:
        """JSON-able; what could not be measured is left out."""
        return {k: v for k, v in asdict(self).items() if v == v}


def probabilities_of(
    model: Model, samples: Iterable[PhraseSample]
) -> Iterator[tuple[PhraseSample, npt.NDArray[np.float32]]]:
    """Each sample with what the model says of its phrases: (P, H, W), in [0, 1], of the image's own size.

    Raises:
        DataError: there is no sample, or a mask of another size than its image.
        CapabilityError: the model gives no masks.
    """
    empty = True
    for sample in samples:
        if sample.masks.shape[1:] != (sample.image.height, sample.image.width):
            raise DataError(f"masks of {sample.masks.shape[1:]} for an image of {sample.image.size}: use its own size")
        empty = False
        yield sample, model.segment(sample.image, sample.phrases).probabilities().numpy()
    if empty:
        raise DataError("there is nothing to evaluate: no image with phrases was given")


def evaluate_segmentation(
    model: Model, samples: Iterable[PhraseSample], *, threshold: float = 0.5
) -> SegmentationReport:
    """Compare a model's masks with true ones, at each image's own size.

    :func:`vlm_core.evaluation.segmentation.measure_segmentation` says more, and takes longer.

    Args:
        model: one that gives masks.
        samples: images with phrases; masks of the image's size.
        threshold: a pixel is marked from this probability on.

    Raises:
        DataError: there is no sample, or a mask of another size than its image.
    """
    overlaps = Overlaps()
    for sample, probabilities in probabilities_of(model, samples):
        for probability, mask in zip(probabilities, sample.masks, strict=True):
            overlaps.add(probability >= threshold, mask >= 0.5)
    return SegmentationReport(
        mean_iou=overlaps.mean_iou,
        foreground_iou=overlaps.foreground_iou,
        absent_marked=overlaps.absent_marked,
        present=overlaps.present,
        absent=overlaps.absent,
    )


def evaluate_matching(
    model: Model,
    images: Iterable[Image.Image],
    texts: Sequence[str],
    *,
    right: Sequence[Collection[str]] | None = None,
    k: int = 4,
    seed: int = 0,
) -> float:
    """One-of-k matching: each image must rank its own text above k - 1 texts of other images.

    Args:
        model: any model.
        images: N images.
        texts: the text that each of the N images is asked for.
        right: all texts that each image has: none is ever drawn as its wrong one. Default: the one it is asked for.
        k: candidates, >= 2.
        seed: of the draw of wrong texts.

    Returns:
        Accuracy in [0, 1] over the images that have k - 1 wrong texts, as all do in ordinary data; chance is 1 / k.

    Raises:
        DataError: no image has k - 1 wrong texts.
    """
    rows = []
    for candidates, image in zip(draw_candidates(texts, right=right, k=k, seed=seed), images, strict=True):
        if candidates:
            similarity = {score.tag: score.similarity for score in model.rank(image, candidates)}
            rows.append([similarity[candidate] for candidate in candidates])
    return one_of_k_accuracy(rows)


def draw_candidates(
    texts: Sequence[str], *, right: Sequence[Collection[str]] | None = None, k: int = 4, seed: int = 0
) -> list[list[str]]:
    """The k texts that each image chooses among, its own first; none for an image without k - 1 wrong texts.

    Args, and what is raised: as :func:`evaluate_matching` has them.
    """
    if not can_match(texts, right=right, k=k):
        raise DataError(
            f"one-of-{k} matching needs an image with {k - 1} texts that are not its own: of {len(texts)} images with "
            f"{len(set(texts))} different texts none has"
        )
    rng = np.random.default_rng([seed, 21])
    drawn: list[list[str]] = []
    for text, wrong in zip(texts, _wrong_texts(texts, right), strict=True):
        if len(wrong) < k - 1:
            drawn.append([])
        else:
            drawn.append([text, *(wrong[int(i)] for i in rng.choice(len(wrong), size=k - 1, replace=False))])
    return drawn


def can_match(texts: Sequence[str], *, right: Sequence[Collection[str]] | None = None, k: int = 4) -> bool:
    """Whether any image has k - 1 wrong texts, so that :func:`evaluate_matching` has something to ask."""
    return any(len(wrong) >= k - 1 for wrong in _wrong_texts(texts, right))


def _wrong_texts(texts: Sequence[str], right: Sequence[Collection[str]] | None) -> Iterator[list[str]]:
    """For each image the texts that are none of its own, in an order that depends on nothing else."""
    everything = set(texts)
    for text, own in zip(texts, [()] * len(texts) if right is None else right, strict=True):
        yield sorted(everything - {text} - set(own))

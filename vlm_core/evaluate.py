"""Measures of masks and of matching, as the papers define them.

Masks: CLIPSeg (arXiv:2112.10003, section 5) after PhraseCut (arXiv:2008.01187). Matching: zero-shot
classification of CLIP (arXiv:2103.00020), here as picking the right description out of k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlm_core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    from vlm_core.data import PhraseSample
    from vlm_core.model import Model

BoolMask = npt.NDArray[np.bool_]
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


def evaluate_segmentation(
    model: Model, samples: Iterable[PhraseSample], *, threshold: float = 0.5
) -> SegmentationReport:
    """Compare a model's masks with true ones, at each image's own size.

    Args:
        model: one that gives masks.
        samples: images with phrases; masks of the image's size.
        threshold: a pixel is marked from this probability on.

    Raises:
        DataError: there is no sample, or a mask of another size than its image.
    """
    intersections: list[int] = []
    unions: list[int] = []
    marked: list[bool] = []
    for sample in samples:
        if sample.masks.shape[1:] != (sample.image.height, sample.image.width):
            raise DataError(f"masks of {sample.masks.shape[1:]} for an image of {sample.image.size}: use its own size")
        probabilities = model.segment(sample.image, sample.phrases).probabilities().numpy()
        for probability, mask in zip(probabilities, sample.masks, strict=True):
            predicted, true = probability >= threshold, mask >= 0.5
            if true.any():
                intersection, union = _counts(predicted, true)
                intersections.append(intersection)
                unions.append(union)
            else:
                marked.append(bool(predicted.mean() > ABSENT_AREA))
    if not unions and not marked:
        raise DataError("there is nothing to evaluate: no image with phrases was given")
    present = bool(unions)
    return SegmentationReport(
        mean_iou=float(np.mean(np.divide(intersections, unions))) if present else float("nan"),
        foreground_iou=sum(intersections) / sum(unions) if present else float("nan"),
        absent_marked=float(np.mean(marked)) if marked else float("nan"),
        present=len(unions),
        absent=len(marked),
    )


def evaluate_matching(
    model: Model, images: Iterable[Image.Image], texts: Sequence[str], *, k: int = 4, seed: int = 0
) -> float:
    """One-of-k matching: each image must rank its own text above k - 1 texts of other images.

    Args:
        model: any model.
        images: N images.
        texts: their N texts. Texts equal to an image's own are never drawn as its wrong ones.
        k: candidates, >= 2.
        seed: of the draw of wrong texts.

    Returns:
        Accuracy in [0, 1]; chance is 1 / k.

    Raises:
        DataError: there are not k different texts.
    """
    if len(set(texts)) < k:
        raise DataError(f"one-of-{k} matching needs {k} different texts, got {len(set(texts))}")
    rng = np.random.default_rng([seed, 21])
    rows = []
    for index, image in enumerate(images):
        wrong = sorted(set(texts) - {texts[index]})
        drawn = [wrong[int(i)] for i in rng.choice(len(wrong), size=k - 1, replace=False)]
        similarity = {score.tag: score.similarity for score in model.rank(image, [texts[index], *drawn])}
        rows.append([similarity[text] for text in (texts[index], *drawn)])
    return one_of_k_accuracy(rows)

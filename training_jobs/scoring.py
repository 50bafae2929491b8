"""Scores of two versions on the same image, decoded exactly as serving decodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from backend.decoding import decode_label, least_area_px
from backend.manifest import Cuts
from backend.versions import effective_threshold
from training_jobs.corrections import CorrectedImage, TrainLabel
from training_jobs.promote import Score
from vlm_core.evaluate import ABSENT_AREA, iou
from vlm_core.model import Model
from vlm_core.runs import BoolMask
from vlm_core.types import ImageFeatures

See = Callable[[CorrectedImage, Score, BoolMask, BoolMask, BoolMask], None]
"""Told of each label that was scored: image, score, and the masks of old, new and annotator at the compared size."""

_MOST_PIXELS = 1024 * 1024
"""Larger images are compared at this size: on photographs of 12 megapixels IoU changes in the third digit."""


def score_image(
    image: CorrectedImage,
    features: ImageFeatures,
    old: tuple[Model, Cuts],
    new: tuple[Model, Cuts],
    see: See | None = None,
) -> list[Score]:
    """Score the labels that the image's annotation speaks about.

    Args:
        image: with its true masks.
        features: of the whole image, as cached.
        old, new: models, and where they cut.
        see: for who looks at the masks too.
    """
    size_hw, shrink = _compared_size(image.size_hw)
    scores = []
    for label in image.labels:
        true = _shrunk(image.mask(label.name), size_hw)
        present = label.name in image.masks
        if present and not true.any():
            continue  # a region of a few pixels, gone at this size: neither there nor absent
        before, after = (_predict(model, cuts, features, label, size_hw, shrink) for model, cuts in (old, new))
        score = Score(image.sha256, label.name, present, _score(before, true, present), _score(after, true, present))
        scores.append(score)
        if see is not None:
            see(image, score, before, after, true)
    return scores


def _predict(
    model: Model,
    cuts: Cuts,
    features: ImageFeatures,
    label: TrainLabel,
    size_hw: tuple[int, int],
    shrink: float,
) -> BoolMask:
    phrases = (*label.prompts, *label.not_prompts)
    logits = model.decode(features, model.encode_text(phrases)).logits.numpy()
    wanted = len(label.prompts)
    least = label.min_area if label.min_area is None else round(label.min_area * shrink)
    found = decode_label(
        logits[:wanted],
        size_hw,
        threshold=effective_threshold(label.name, label.threshold, cuts.thresholds),
        min_area_px=least_area_px(least, size_hw),
        temperature=cuts.temperatures.get(label.name, 1.0),
        min_part_score=cuts.part_scores.get(label.name, 0.0),
        unwanted=logits[wanted:],
    )
    return np.zeros(size_hw, dtype=bool) if found.mask is None else found.mask.to_array()


def _score(predicted: BoolMask, true: BoolMask, present: bool) -> float:
    if present:
        return iou(predicted, true)
    return 0.0 if predicted.mean() > ABSENT_AREA else 1.0


def _compared_size(size_hw: tuple[int, int]) -> tuple[tuple[int, int], float]:
    """The size at which masks are compared, and its share of the image's area."""
    pixels = size_hw[0] * size_hw[1]
    if pixels <= _MOST_PIXELS:
        return size_hw, 1.0
    side = (_MOST_PIXELS / pixels) ** 0.5
    small = (max(1, round(size_hw[0] * side)), max(1, round(size_hw[1] * side)))
    return small, small[0] * small[1] / pixels


def _shrunk(mask: BoolMask, size_hw: tuple[int, int]) -> BoolMask:
    if mask.shape == size_hw:
        return mask
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    small: BoolMask = np.asarray(picture.resize((size_hw[1], size_hw[0]), Image.Resampling.BOX)) >= 128
    return small

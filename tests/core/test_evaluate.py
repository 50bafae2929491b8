"""Measures against values worked out by hand, and against each other's laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_core.data import PhraseSample
from vlm_core.errors import DataError
from vlm_core.evaluate import (
    Overlaps,
    average_precision,
    binary_iou,
    can_match,
    evaluate_matching,
    evaluate_segmentation,
    foreground_iou,
    iou,
    mean_iou,
    one_of_k_accuracy,
)
from vlm_core.model import Model
from vlm_core.types import MaskLogits, TagScore


def mask(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


# IoU 1/3 (1 of 3 px) and 4/4.
PREDICTED = [mask("##.", "..."), mask("##", "##")]
TRUE = [mask(".##", "..."), mask("##", "##")]


@pytest.mark.parametrize(
    ("predicted", "true", "value"),
    [
        (mask("##", ".."), mask("#.", "#."), 1 / 3),  # overlap of one pixel
        (mask("##", ".."), mask("##", ".."), 1.0),  # the same
        (mask("##", ".."), mask("..", "##"), 0.0),  # apart
        (mask("..", ".."), mask("##", ".."), 0.0),  # nothing found
        (mask("..", ".."), mask("..", ".."), 1.0),  # nothing there, nothing found
    ],
)
def test_iou(predicted: np.ndarray, true: np.ndarray, value: float) -> None:
    assert iou(predicted, true) == pytest.approx(value)


def test_iou_refuses_masks_of_different_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(2, 1\)"):
        iou(np.ones((1, 2), dtype=bool), np.ones((2, 1), dtype=bool))


def test_mean_iou_counts_phrases_and_foreground_iou_counts_pixels() -> None:
    assert mean_iou(PREDICTED, TRUE) == pytest.approx((1 / 3 + 1) / 2)
    assert foreground_iou(PREDICTED, TRUE) == pytest.approx((1 + 4) / (3 + 4))


@pytest.mark.parametrize("measure", [mean_iou, foreground_iou])
def test_measures_over_phrases_need_pairs(measure) -> None:  # type: ignore[no-untyped-def]
    for predicted, true in (([], []), (PREDICTED, TRUE[:1])):
        with pytest.raises(ValueError, match="one or more pairs"):
            measure(predicted, true)


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_iou_is_symmetric_and_between_zero_and_one(a: list[bool], b: list[bool]) -> None:
    one, other = np.array(a).reshape(2, 3), np.array(b).reshape(2, 3)
    assert iou(one, other) == iou(other, one)
    assert 0 <= iou(one, other) <= 1
    assert (iou(one, other) == 1) == bool((one == other).all())


def test_average_precision_by_hand() -> None:
    # ranked: hit, miss, hit, miss -> precision at the hits 1/1 and 2/3
    scores, true = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    assert average_precision(scores, true) == pytest.approx((1 + 2 / 3) / 2)


def test_average_precision_takes_equal_scores_together() -> None:
    true = np.array([True, False, False, True])
    assert average_precision(np.zeros(4), true) == pytest.approx(0.5)
    assert average_precision(np.zeros(4), true[::-1]) == pytest.approx(0.5)


def test_average_precision_needs_something_true() -> None:
    with pytest.raises(ValueError, match="needs true pixels"):
        average_precision(np.zeros(4), np.zeros(4, dtype=bool))


def test_one_of_k_accuracy_counts_only_the_highest_and_no_ties() -> None:
    scores = [[0.9, 0.1, 0.2], [0.1, 0.9, 0.2], [0.5, 0.5, 0.1]]
    assert one_of_k_accuracy(scores) == pytest.approx(1 / 3)
    assert one_of_k_accuracy(scores, right=[0, 1, 1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("scores", [[0.1, 0.2], [[0.1]], np.zeros((0, 3))])
def test_one_of_k_accuracy_refuses_other_shapes(scores: object) -> None:
    with pytest.raises(ValueError, match=r"\(N, k\)"):
        one_of_k_accuracy(cast(np.ndarray, scores))


class FakeModel:
    """Marks the part of the image that a phrase names in figures, and knows which text belongs to which image."""

    def segment(self, image: Image.Image, prompts: Sequence[str]) -> MaskLogits:
        logits = torch.full((len(prompts), image.height, image.width), -5.0)
        for slot, prompt in enumerate(prompts):
            columns = round(float(prompt) * image.width)
            logits[slot, :, :columns] = 5.0
        return MaskLogits(logits, tuple(prompts))

    def rank(self, image: Image.Image, tags: Sequence[str]) -> list[TagScore]:
        width = str(image.width)
        return sorted((TagScore(t, 0.0, float(t == width)) for t in tags), key=lambda s: -s.similarity)


def test_evaluate_segmentation_tells_present_from_absent_phrases() -> None:
    image = Image.new("RGB", (10, 4))
    masks = np.zeros((4, 4, 10), dtype=np.float32)
    masks[0, :, :5] = 1  # predicted: all of it and as much again, IoU 1/2
    masks[1, :, :4] = 1  # predicted exactly
    sample = PhraseSample(image, ("1.0", "0.4", "0.3", "0"), masks)
    report = evaluate_segmentation(cast(Model, FakeModel()), [sample])
    assert (report.present, report.absent) == (2, 2)
    assert report.mean_iou == pytest.approx((0.5 + 1.0) / 2)
    assert report.foreground_iou == pytest.approx((20 + 16) / (40 + 16))
    assert report.absent_marked == pytest.approx(0.5)


def test_a_small_wrong_mark_of_an_absent_phrase_is_forgiven() -> None:
    sample = PhraseSample(Image.new("RGB", (100, 3)), ("0.01",), np.zeros((1, 3, 100), dtype=np.float32))
    report = evaluate_segmentation(cast(Model, FakeModel()), [sample])
    assert report.absent_marked == 0
    assert "mean_iou" not in report.to_dict()


def test_evaluate_segmentation_refuses_nothing_and_masks_of_another_size() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate_segmentation(cast(Model, FakeModel()), [])
    wrong = PhraseSample(Image.new("RGB", (10, 4)), ("1",), np.zeros((1, 2, 2), dtype=np.float32))
    with pytest.raises(DataError, match="its own size"):
        evaluate_segmentation(cast(Model, FakeModel()), [wrong])


def test_evaluate_matching_draws_other_images_texts() -> None:
    images = [Image.new("RGB", (width, 2)) for width in range(1, 9)]
    texts = [str(image.width) for image in images]
    assert evaluate_matching(cast(Model, FakeModel()), images, texts) == 1.0
    shifted = [*texts[1:], texts[0]]
    assert evaluate_matching(cast(Model, FakeModel()), images, shifted) == 0.0


def test_evaluate_matching_needs_enough_different_texts() -> None:
    images = [Image.new("RGB", (2, 2))] * 4
    with pytest.raises(DataError, match="of 4 images with 3 different texts none has"):
        evaluate_matching(cast(Model, FakeModel()), images, ["a", "b", "c", "c"])


def test_another_right_text_of_an_image_is_never_its_wrong_one() -> None:
    texts = ["a", "b", "c", "d", "e", "f"]
    right = [["a", "b"], ["b"], ["c", "d", "x"], ["d"], ["e"], ["f", "a"]]
    asked = []

    class Recorder(FakeModel):
        def rank(self, image: Image.Image, tags: Sequence[str]) -> list[TagScore]:
            asked.append((image.width - 1, list(tags)))
            return super().rank(image, tags)

    images = [Image.new("RGB", (number + 1, 2)) for number in range(6)]
    for seed in range(20):
        evaluate_matching(cast(Model, Recorder()), images, texts, right=right, seed=seed)
    assert len(asked) == 120
    for index, tags in asked:
        assert tags[0] == texts[index]
        assert not set(tags[1:]) & set(right[index])
    assert {tag for index, tags in asked if index == 0 for tag in tags[1:]} == {"c", "d", "e", "f"}


def test_an_image_with_too_few_wrong_texts_is_not_asked() -> None:
    images = [Image.new("RGB", (width, 2)) for width in (1, 2, 3)]
    texts = ["1", "2", "9"]  # the third would be answered wrongly
    assert evaluate_matching(cast(Model, FakeModel()), images, texts, k=3) == pytest.approx(2 / 3)
    right = [["1"], ["2"], ["1", "2", "9"]]
    assert evaluate_matching(cast(Model, FakeModel()), images, texts, right=right, k=3) == 1.0
    assert can_match(texts, right=right, k=3)
    assert not can_match(texts, right=[["1", "9"], ["2", "1"], ["9", "2"]], k=3)


def test_overlaps_of_parts_are_those_of_the_whole() -> None:
    pairs = [*zip(PREDICTED, TRUE, strict=True), (mask("#.", ".."), mask("..", "..")), (mask(".."), mask(".."))]
    whole, merged = Overlaps(), Overlaps()
    for predicted, true in pairs:
        part = Overlaps()
        value = part.add(predicted, true)
        assert value == (pytest.approx(iou(predicted, true)) if true.any() else None)
        assert whole.add(predicted, true) == value
        merged.merge(part)
    for sums in (whole, merged):
        assert (sums.present, sums.absent, sums.marked) == (2, 2, 1)
        assert sums.mean_iou == pytest.approx(mean_iou(PREDICTED, TRUE))
        assert sums.foreground_iou == pytest.approx(foreground_iou(PREDICTED, TRUE))
        assert sums.binary_iou == pytest.approx(binary_iou(PREDICTED, TRUE))
        assert sums.absent_marked == 0.5


def test_overlaps_of_nothing_are_not_numbers() -> None:
    sums = Overlaps()
    assert all(np.isnan([sums.mean_iou, sums.foreground_iou, sums.binary_iou, sums.absent_marked]))

"""The gate on constructed tables of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from training_jobs.promote import Score, judge


def table(label: str, old: Sequence[float], new: Sequence[float], *, present: bool = True) -> list[Score]:
    """One row an image: image i has old[i] and new[i]."""
    return [
        Score(f"{index:03d}", label, present, before, after)
        for index, (before, after) in enumerate(zip(old, new, strict=True))
    ]


def test_a_clear_gain_is_published() -> None:
    verdict = judge(table("star", [0.1] * 10, [0.5] * 10) + table("circle", [0.8] * 10, [0.79] * 10))
    assert verdict.better
    assert verdict.images == 10
    assert verdict.gain == pytest.approx((0.4 - 0.01) / 2)
    assert verdict.reason.startswith("mean IoU +0.195 over 10 images")
    star = next(item for item in verdict.labels if item.label == "star")
    assert (star.old_iou, star.new_iou, star.images) == (pytest.approx(0.1), pytest.approx(0.5), 10)


@pytest.mark.parametrize("new", [0.6, 0.55])
def test_equal_or_worse_is_not(new: float) -> None:
    verdict = judge(table("star", [0.6] * 12, [new] * 12))
    assert not verdict.better
    assert "no gain" in verdict.reason


def test_a_gain_that_rests_on_one_image_is_not_sure() -> None:
    verdict = judge(table("star", [0.5] * 10, [0.5] * 9 + [1.0]))
    assert not verdict.better
    assert "not sure" in verdict.reason
    assert verdict.gain == pytest.approx(0.05)


def test_a_gain_that_nobody_would_see_is_not_worth_a_version() -> None:
    assert judge(table("star", [0.5] * 20, [0.511] * 20)).better
    verdict = judge(table("star", [0.5] * 20, [0.509] * 20))
    assert not verdict.better
    assert "+0.009" in verdict.reason


def test_a_gain_with_noise_around_it_is_judged_by_its_spread() -> None:
    noise = np.linspace(-0.1, 0.1, 20)
    old = np.full(20, 0.5)
    assert judge(table("star", old, old + 0.05 + noise)).better
    assert not judge(table("star", old, old + 0.002 + 3 * noise)).better


def test_a_label_that_pays_for_the_mean_blocks() -> None:
    rows = table("star", [0.1] * 10, [0.8] * 10) + table("cross", [0.8] * 10, [0.74] * 10)
    verdict = judge(rows)
    assert not verdict.better
    assert "'cross' loses 0.060 IoU" in verdict.reason
    # The same loss on four images is not enough to say so.
    few = table("star", [0.1] * 10, [0.8] * 10) + table("cross", [0.8] * 4, [0.74] * 4)
    assert judge(few).better


def test_marking_what_is_not_there_more_often_blocks() -> None:
    gain = table("star", [0.1] * 10, [0.8] * 10)
    absent = table("cross", [1.0] * 10, [1.0] * 7 + [0.0] * 3, present=False)
    verdict = judge(gain + absent)
    assert not verdict.better
    assert "marked 3 instead of 0 times in 10" in verdict.reason
    # One more in twenty is within the margin, one in ten may be chance.
    assert judge(gain + table("cross", [1.0] * 20, [1.0] * 19 + [0.0], present=False)).better
    assert judge(gain + table("cross", [1.0] * 10, [1.0] * 9 + [0.0], present=False)).better
    # The same share in many cases on many images is not.
    spread = [
        row
        for index in range(10)
        for row in table(f"label {index}", [1.0] * 10, [float(image != index) for image in range(10)], present=False)
    ]
    assert not judge(gain + spread).better
    # As often as before, though elsewhere, is allowed.
    assert judge(gain + table("cross", [0.0] + [1.0] * 9, [1.0] * 9 + [0.0], present=False)).better


def test_absent_labels_alone_are_no_gain() -> None:
    verdict = judge(table("cross", [0.0] * 10, [1.0] * 10, present=False))
    assert not verdict.better
    assert "0 of the 8 images" in verdict.reason


def test_too_few_images_decide_nothing() -> None:
    assert not judge(table("star", [0.1] * 7, [0.9] * 7)).better
    assert judge(table("star", [0.1] * 8, [0.9] * 8)).better
    assert judge([]).reason == "0 of the 8 images that a comparison needs show a label"


def test_the_verdict_depends_on_the_scores_alone() -> None:
    rows = table("star", [0.4] * 10, list(np.linspace(0.3, 0.7, 10))) + table("cross", [0.5] * 10, [0.52] * 10)
    assert judge(rows) == judge(list(reversed(rows)))


def test_a_table_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="scored twice"):
        judge([Score("a", "star", True, 0, 0), Score("a", "star", True, 0, 0)])
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        judge([Score("a", "star", True, 0, float("nan"))])


def test_the_verdict_is_json() -> None:
    record = judge(table("star", [0.1] * 8, [0.5] * 8) + table("sun", [1.0] * 8, [1.0] * 8, present=False)).to_json()
    assert record["labels"]["star"]["iou"] == {"old": pytest.approx(0.1), "new": pytest.approx(0.5)}
    assert record["labels"]["sun"]["iou"] == {"old": None, "new": None}
    assert record["labels"]["sun"]["absent_marked"] == {"old": 0.0, "new": 0.0}

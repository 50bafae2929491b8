"""What a training notes for the report on its version."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from backend.label_studio.images import ImageError
from backend.version_report import ReportRecord
from training_jobs.corrections import CorrectedImage, PackedMask
from training_jobs.promote import Score
from training_jobs.report_record import (
    MOST_POINTS,
    PICTURE_PX,
    Extremes,
    LossCurve,
    draw_case,
    intervals,
    report_files,
)

EMPTY: NDArray[np.bool_] = np.zeros((6, 8), dtype=bool)


def image(name: str, task_id: int = 1, opened: Callable[[], Image.Image] | None = None) -> CorrectedImage:
    picture = opened or (lambda: Image.new("RGB", (80, 60), "white"))
    return CorrectedImage(task_id, (1,), name, (60, 80), (), {}, picture)


def quiet(phase: str, share: float, loss: float | None) -> None: ...


def see(extremes: Extremes, name: str, change: float, label: str = "star") -> None:
    score = Score(name, label, True, 0.5, 0.5 + change)
    extremes.see(image(name), score, EMPTY, EMPTY, EMPTY)


def test_the_curve_passes_everything_on_and_keeps_the_losses_of_each_phase() -> None:
    heard: list[tuple[str, float, float | None]] = []
    curve = LossCurve(lambda *now: heard.append(now))
    said = [("reading", 0.0, None), ("training", 0.1, 2.0), ("training", 0.2, 1.0), ("choosing", 0.9, 0.7)]
    said += [("choosing", 1.0, 0.7)]  # the same loss again: nothing was fitted
    for now in said:
        curve(*now)
    assert heard == said
    (found,) = curve.curves()
    assert (found.phase, found.points) == ("training", ((1, 2.0), (2, 1.0)))


def test_giving_up_passes_through_the_curve() -> None:
    def give_up(phase: str, share: float, loss: float | None) -> None:
        raise ValueError("given up")

    with pytest.raises(ValueError, match="given up"):
        LossCurve(give_up)("training", 0.1, 1.0)


def test_a_long_curve_is_means_over_as_many_steps() -> None:
    curve = LossCurve(quiet)
    losses = [float(step) for step in range(1, 10 * MOST_POINTS + 4)]
    for loss in losses:
        curve("training", 0.5, loss)
    (found,) = curve.curves()
    assert len(found.points) <= MOST_POINTS
    width = 11  # the least that needs no more points
    assert found.points[0] == (width, np.mean(losses[:width]))
    assert found.points[-1][0] == len(losses)
    assert found.points[-1][1] == pytest.approx(np.mean(losses[width * (len(losses) // width) :]), abs=1e-4)


def test_the_largest_changes_are_kept_one_label_an_image() -> None:
    extremes = Extremes(2)
    changes = {"a": 0.1, "b": 0.3, "c": -0.2, "d": 0.2, "e": -0.4, "f": -0.3, "g": 0.01, "h": 0.0}
    for name, change in changes.items():
        see(extremes, name, change)
    see(extremes, "b", 0.25, "ring")  # the same image, a smaller change
    see(extremes, "d", 0.45, "ring")  # a larger one
    assert [(s.score.image, s.score.label) for s in extremes.gains()] == [("d", "ring"), ("b", "star")]
    assert [s.score.image for s in extremes.losses()] == ["e", "f"]


def test_of_equal_changes_the_first_stay() -> None:
    extremes = Extremes(2)
    for name in "abcd":
        see(extremes, name, 0.3)
    assert [s.score.image for s in extremes.gains()] == ["a", "b"]


def test_intervals_are_those_of_a_paired_bootstrap() -> None:
    generator = np.random.default_rng(5)
    hard = generator.uniform(0.1, 0.8, 40)  # how well an image is marked at all: varies far more than the gain
    scores = [Score(f"{n:02}", "star", True, float(old), float(old + 0.1)) for n, old in enumerate(hard)]
    found = intervals(scores)["star"]
    assert found.gain == pytest.approx((0.1, 0.1))  # paired: all gain alike
    assert found.old_iou is not None
    low, high = found.old_iou
    # The normal approximation of the mean's interval.
    half = 1.96 * hard.std() / 40**0.5
    assert (low, high) == pytest.approx((hard.mean() - half, hard.mean() + half), abs=0.015)
    assert found.new_iou == pytest.approx((low + 0.1, high + 0.1), abs=1e-3)
    assert found.old_absent_marked is None
    assert intervals(list(reversed(scores))) == intervals(scores)


def test_few_images_have_no_interval_and_absent_ones_are_of_their_own() -> None:
    there = [Score(f"a{n}", "star", True, 0.2, 0.4) for n in range(4)]
    absent = [Score(f"b{n}", "star", False, 1.0, float(n % 2)) for n in range(8)]
    found = intervals([*there, *absent])["star"]
    assert (found.old_iou, found.new_iou, found.gain) == (None, None, None)
    assert found.old_absent_marked == (0.0, 0.0)
    assert found.new_absent_marked is not None
    assert 0.0 < found.new_absent_marked[0] < 0.5 < found.new_absent_marked[1] < 1.0


def test_a_picture_shows_image_correction_old_and_new() -> None:
    masks = {}
    for name, column in (("true", 0), ("old", 1), ("new", 2)):
        mask = np.zeros((600, 800), dtype=bool)
        mask[:, 200 * column : 200 * (column + 1)] = True
        masks[name] = PackedMask.of(mask)
    data = draw_case(Image.new("RGB", (800, 600), (200, 40, 40)), **masks)
    sheet = Image.open(io.BytesIO(data))
    assert sheet.format == "WEBP"
    assert max(sheet.size) <= PICTURE_PX
    width, height = (sheet.width - 4) // 2, (sheet.height - 4) // 2

    def bright(column: int, row: int, part: int) -> bool:
        x, y = column * (width + 4) + round((part + 0.5) / 4 * width), row * (height + 4) + height // 2
        return bool(np.asarray(sheet.convert("RGB"))[y, x, 0] > 150)

    lit = {place: [part for part in range(4) if bright(*place, part)] for place in ((0, 0), (1, 0), (0, 1), (1, 1))}
    assert lit == {(0, 0): [0, 1, 2, 3], (1, 0): [0], (0, 1): [1], (1, 1): [2]}


@pytest.mark.parametrize("size", [(1, 3000), (4000, 30), (1, 1)])
def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    mask = PackedMask.of(np.ones((size[1], size[0]), dtype=bool))
    sheet = Image.open(io.BytesIO(draw_case(Image.new("RGB", size), mask, mask, mask)))
    assert max(sheet.size) <= PICTURE_PX


def test_the_files_are_bounded_and_what_is_away_has_no_picture() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8))

    def away() -> Image.Image:
        raise ImageError("storage away")

    extremes, images, scores = Extremes(), [], []
    for number in range(40):
        name = f"i{number:02}"
        images.append(image(name, 100 + number, away if number == 39 else lambda: noise))
        scores.append(Score(name, "star", True, 0.5, 0.5 + (number - 20) / 50))
        extremes.see(images[-1], scores[-1], EMPTY, EMPTY, EMPTY)
    files = report_files(scores, images, extremes, LossCurve(quiet))
    record = ReportRecord.model_validate_json(files["report/record.json"])
    assert [(c.kind, c.task_id, c.picture) for c in record.cases if c.task_id in (139, 138, 100)] == [
        ("gain", 139, None),
        ("gain", 138, "gain-2.webp"),
        ("loss", 100, "loss-1.webp"),
    ]
    assert len(record.cases) == 12
    assert sorted(files) == sorted(["report/record.json", *(f"report/{c.picture}" for c in record.cases if c.picture)])
    assert sum(map(len, files.values())) < 1_000_000  # noise: the worst that there is
    assert record.images[3].task_id == 103
    assert record.images[3].labels["star"].new == pytest.approx(0.5 - 17 / 50)


def test_without_anything_to_show_there_is_still_a_record(tmp_path: Path) -> None:
    assert list(report_files([], [], Extremes(), LossCurve(quiet))) == ["report/record.json"]

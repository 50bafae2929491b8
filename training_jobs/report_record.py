"""What a training notes for the report on its version: losses, scores of each image, and pictures of some of them.

Nothing here decides anything. `LossCurve` listens to the progress, `Extremes` to the scoring, and `report_files` makes
the files of `backend.version_report` of both.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from backend.label_studio.images import ImageError
from backend.version_report import (
    DIRECTORY,
    MOST_CASES,
    RECORD,
    Answers,
    ImageScores,
    Intervals,
    Losses,
    ReportCase,
    ReportRecord,
    Scored,
    record_bytes,
)
from training_jobs.corrections import CorrectedImage, PackedMask
from training_jobs.promote import MIN_IMAGES_PER_LABEL, Score
from training_jobs.promote_tags import TagAnswer, agreement
from vlm_core.errors import VLMError
from vlm_core.evaluation.bootstrap import PoissonBootstrap
from vlm_core.runs import BoolMask

PICTURE_PX = 480
"""Longest side of a picture: four panels in two rows."""

MOST_POINTS = 50
"""Of one curve: means over steps are smooth, and a phone shows no more."""

LEAST_CHANGE = 0.02
"""A label of an image that changes by less is no case to look at."""

_GAP_PX = 4
_PAPER = (128, 128, 128)
_DIM, _OUTLINE = 0.3, (255, 255, 255)


class LossCurve:
    """Stands between a training and who hears of its progress, and notes the losses."""

    def __init__(self, report: Callable[[str, float, float | None], None]) -> None:
        """Nothing is noted yet; `report` hears everything as before, and may raise to give up."""
        self._report = report
        self._losses: dict[str, list[float]] = {}

    def __call__(self, phase: str, share: float, loss: float | None) -> None:
        """See `training_jobs.training.Report`; called once a step while a fit runs."""
        if loss is not None:
            self._losses.setdefault(phase, []).append(loss)
        self._report(phase, share, loss)

    def curves(self) -> tuple[Losses, ...]:
        """A curve a phase, at most `MOST_POINTS` points each: means over as many steps.

        A phase that only repeats one loss has fitted nothing and has none.
        """
        return tuple(
            Losses(phase=phase, points=_thinned(values))
            for phase, values in self._losses.items()
            if len(set(values)) > 1
        )


@dataclass(frozen=True)
class _Seen:
    """A label of an image as both versions mark it; masks at the size at which they were compared."""

    image: CorrectedImage
    score: Score
    old: PackedMask
    new: PackedMask
    true: PackedMask


class Extremes:
    """Keeps what gained and what lost most, at most one label an image, in bounded memory."""

    def __init__(self, count: int = MOST_CASES) -> None:
        """Keep `count` of each kind."""
        self._count = count
        self._gains: dict[str, _Seen] = {}
        self._losses: dict[str, _Seen] = {}

    def see(self, image: CorrectedImage, score: Score, old: BoolMask, new: BoolMask, true: BoolMask) -> None:
        """One label of one image, scored; bool masks (H, W) of one size."""
        change = score.new - score.old
        if abs(change) < LEAST_CHANGE:
            return
        kept = self._gains if change > 0 else self._losses
        known = kept.get(image.sha256)
        if known is not None and _size(known) >= abs(change):
            return
        kept.pop(image.sha256, None)
        kept[image.sha256] = _Seen(image, score, PackedMask.of(old), PackedMask.of(new), PackedMask.of(true))
        if len(kept) > self._count:
            # Of equal ones the first stay.
            del kept[min(reversed(kept), key=lambda sha256: _size(kept[sha256]))]

    def gains(self) -> list[_Seen]:
        """Largest first."""
        return sorted(self._gains.values(), key=_size, reverse=True)

    def losses(self) -> list[_Seen]:
        """Largest first."""
        return sorted(self._losses.values(), key=_size, reverse=True)


def report_files(
    scores: Sequence[Score],
    images: Sequence[CorrectedImage],
    extremes: Extremes,
    curve: LossCurve,
    *,
    answers: Sequence[TagAnswer] = (),
    seed: int = 0,
) -> dict[str, bytes]:
    """The files of a version's report, by their path in the version's directory.

    Args:
        scores: all that the gate has judged by.
        images: that they are of, and others.
        extremes: has seen what was scored.
        curve: has heard of the training.
        answers: to choices, that the gate has judged by.
        seed: of the bootstrap.
    """
    files: dict[str, bytes] = {}
    cases: list[ReportCase] = []
    for kind, found in (("gain", extremes.gains()), ("loss", extremes.losses())):
        for number, seen in enumerate(found, 1):
            name: str | None = f"{kind}-{number}.webp"
            try:
                files[f"{DIRECTORY}/{name}"] = draw_case(seen.image.open(), seen.old, seen.new, seen.true)
            except (ImageError, VLMError, OSError):  # not in the cache any more, and not to be fetched now
                name = None
            cases.append(
                ReportCase(
                    kind=kind,  # type: ignore[arg-type]  # one of the two above
                    task_id=seen.image.task_id,
                    label=seen.score.label,
                    scored=_scored(seen.score),
                    picture=name,
                )
            )
    cases += _answer_cases(answers, {image.sha256: image for image in images}, files)
    record = ReportRecord(
        losses=curve.curves(), intervals=intervals(scores, seed), cases=tuple(cases), images=_by_image(scores, images)
    )
    return {f"{DIRECTORY}/{RECORD}": record_bytes(record), **files}


def _answer_cases(
    answers: Sequence[TagAnswer], images: Mapping[str, CorrectedImage], files: dict[str, bytes]
) -> list[ReportCase]:
    """The answers that have gained and lost most, of an image at most one; puts their pictures into `files`."""
    cases: list[ReportCase] = []
    for kind, sign in (("gain", 1), ("loss", -1)):
        changes = {id(one): sign * (agreement(one.true, one.new) - agreement(one.true, one.old)) for one in answers}
        ordered = sorted((one for one in answers if changes[id(one)] > LEAST_CHANGE), key=lambda one: -changes[id(one)])
        first = {one.image: one for one in reversed(ordered)}
        shown = sorted(first.values(), key=lambda one: (-changes[id(one)], one.image))[:MOST_CASES]
        for number, one in enumerate(shown, 1):
            name: str | None = f"answer-{kind}-{number}.webp"
            try:
                files[f"{DIRECTORY}/{name}"] = _webp(_thumbnail(images[one.image].open(), PICTURE_PX // 2))
            except (ImageError, VLMError, OSError):
                name = None
            scored = Scored(present=True, old=agreement(one.true, one.old), new=agreement(one.true, one.new))
            cases.append(
                ReportCase(
                    kind=kind,  # type: ignore[arg-type]  # one of the two above
                    task_id=images[one.image].task_id,
                    label=one.question,
                    scored=scored,
                    picture=name,
                    answers=Answers(true=_sorted(one.true), old=_sorted(one.old), new=_sorted(one.new)),
                )
            )
    return cases


def intervals(scores: Sequence[Score], seed: int = 0) -> dict[str, Intervals]:
    """Per label 95 % intervals; see `backend.version_report.Intervals`.

    A label is in an image once, so each image counts once. Both versions are drawn alike, so the gain is paired.
    """
    found = {}
    for label in sorted({score.label for score in scores}):
        there = sorted((s for s in scores if s.label == label and s.present), key=lambda s: s.image)
        absent = sorted((s for s in scores if s.label == label and not s.present), key=lambda s: s.image)
        found[label] = Intervals(
            old_iou=_interval([score.old for score in there], seed),
            new_iou=_interval([score.new for score in there], seed),
            gain=_interval([score.new - score.old for score in there], seed),
            old_absent_marked=_interval([1 - score.old for score in absent], seed),
            new_absent_marked=_interval([1 - score.new for score in absent], seed),
        )
    return found


def draw_case(image: Image.Image, old: PackedMask, new: PackedMask, true: PackedMask) -> bytes:
    """The image, the correction, the old mask and the new one, as one WebP file of at most `PICTURE_PX` px a side."""
    panel = _thumbnail(image, (PICTURE_PX - _GAP_PX) // 2)
    panels = [panel, *(_lit(panel, _shrunk(mask, panel.size)) for mask in (true, old, new))]
    width, height = panel.size
    sheet = Image.new("RGB", (2 * width + _GAP_PX, 2 * height + _GAP_PX), _PAPER)
    for index, one in enumerate(panels):
        sheet.paste(one, ((index % 2) * (width + _GAP_PX), (index // 2) * (height + _GAP_PX)))
    return _webp(sheet)


def _thumbnail(image: Image.Image, side: int) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def _webp(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=82)
    return file.getvalue()


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(labels))


def _lit(image: Image.Image, mask: BoolMask) -> Image.Image:
    """What is marked as it is, with an outline, and the rest dim: to be seen on any colour."""
    pixels = np.array(image)
    pixels[~mask] = (pixels[~mask] * _DIM).astype(np.uint8)
    pixels[ndimage.binary_dilation(mask) & ~mask] = _OUTLINE
    return Image.fromarray(pixels)


def _shrunk(mask: PackedMask, size: tuple[int, int]) -> BoolMask:
    picture = Image.fromarray(mask.unpack().astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    shrunk: BoolMask = np.asarray(picture) >= 128
    return shrunk


def _interval(values: Sequence[float], seed: int) -> tuple[float, float] | None:
    if len(values) < MIN_IMAGES_PER_LABEL:
        return None
    bootstrap = PoissonBootstrap(seed=seed)
    for value in values:
        bootstrap.add(value, 1)
    low, high = bootstrap.interval()
    return round(low, 4), round(high, 4)


def _by_image(scores: Sequence[Score], images: Sequence[CorrectedImage]) -> tuple[ImageScores, ...]:
    tasks: Mapping[str, int] = {image.sha256: image.task_id for image in images}
    labels: dict[str, dict[str, Scored]] = {}
    for score in scores:
        labels.setdefault(score.image, {})[score.label] = _scored(score)
    return tuple(ImageScores(image=sha, task_id=tasks[sha], labels=found) for sha, found in labels.items())


def _scored(score: Score) -> Scored:
    return Scored(present=score.present, old=round(score.old, 4), new=round(score.new, 4))


def _size(seen: _Seen) -> float:
    return abs(seen.score.new - seen.score.old)


def _thinned(values: Sequence[float]) -> tuple[tuple[int, float], ...]:
    every = -(-len(values) // MOST_POINTS)
    return tuple(
        (min(start + every, len(values)), round(float(np.mean(values[start : start + every])), 5))
        for start in range(0, len(values), every)
    )

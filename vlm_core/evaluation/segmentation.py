"""Masks against the truth, phrase by phrase: figures, a threshold sweep, a table of phrases, and cases to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_core.evaluate import ABSENT_AREA, Overlaps, overlap_counts, pooled_iou, probabilities_of
from vlm_core.evaluation.bootstrap import PoissonBootstrap
from vlm_core.evaluation.cases import Case, CaseKeeper, jpeg, thumbnail
from vlm_core.evaluation.histogram import THRESHOLDS, ScoreHistogram
from vlm_core.runs import BoolMask

if TYPE_CHECKING:
    from vlm_core.data import PhraseSample
    from vlm_core.model import Model

IOU_BINS = 50

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class SweepRow:
    """What the masks of one threshold are worth; nan where nothing can be said."""

    threshold: float
    mean_iou: float
    foreground_iou: float
    binary_iou: float
    absent_marked: float


@dataclass(frozen=True, slots=True)
class PhraseRow:
    """One phrase over all images that were asked for it.

    Attributes:
        phrase: the text.
        present, absent: images where its object is and is not.
        mean_iou: over the images where it is; nan without any.
        average_precision: of each image where it is, over its pixels, averaged; nan without any.
        absent_marked: share of the images without it that mark more than 1 % of their area; nan without any.
    """

    phrase: str
    present: int
    absent: int
    mean_iou: float
    average_precision: float
    absent_marked: float


@dataclass(frozen=True, slots=True)
class SegmentationResult:
    """All that was measured. nan where there was nothing to measure on; see docs/evaluation.md for definitions.

    Attributes:
        images, present, absent: how many images, phrases whose object is there, and phrases without one.
        threshold: a pixel is marked from this probability on, in the figures outside the sweep.
        mean_iou, foreground_iou, binary_iou, absent_marked: see :mod:`vlm_core.evaluate`.
        mean_iou_interval, foreground_iou_interval, absent_marked_interval: 95 %, over images.
        average_precision: over the pixels of all phrases that are there, taken together.
        average_precision_bounds: between these lies the AP of the scores before they were put into bins.
        sweep: by threshold.
        best: the row of the sweep with the highest mean IoU. Chosen on the data that it is measured on: optimistic.
        curve: (precision, recall) of the pixels, thinned.
        iou_histogram: phrases in each fiftieth of the IoU from 0 to 1, at `threshold`.
        phrases: by number of images.
        cases: kind -> pictures.
    """

    images: int
    present: int
    absent: int
    threshold: float
    mean_iou: float
    mean_iou_interval: Interval
    foreground_iou: float
    foreground_iou_interval: Interval
    binary_iou: float
    absent_marked: float
    absent_marked_interval: Interval
    average_precision: float
    average_precision_bounds: Interval
    sweep: tuple[SweepRow, ...]
    best: SweepRow | None
    curve: tuple[tuple[float, float], ...]
    iou_histogram: tuple[int, ...]
    phrases: tuple[PhraseRow, ...]
    cases: dict[str, list[Case]]


class _Phrase:
    """Sums of one phrase; `ap` is of its present images, summed."""

    __slots__ = ("ap", "overlaps")

    def __init__(self) -> None:
        self.overlaps = Overlaps()
        self.ap = 0.0

    def row(self, phrase: str) -> PhraseRow:
        sums = self.overlaps
        return PhraseRow(
            phrase, sums.present, sums.absent, sums.mean_iou, _ratio(self.ap, sums.present), sums.absent_marked
        )


class _Sums:
    """Everything that grows while samples go by; its size depends on the number of different phrases alone."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.images = 0
        self.overlaps = Overlaps()
        self.sweep_iou = np.zeros(len(THRESHOLDS))
        self.sweep_counts = np.zeros((4, len(THRESHOLDS)), dtype=np.int64)
        self.sweep_marked = np.zeros(len(THRESHOLDS), dtype=np.int64)
        self.histogram = ScoreHistogram()
        self.ious = np.zeros(IOU_BINS, dtype=np.int64)
        self.phrases: dict[str, _Phrase] = {}
        self.bootstraps = {name: PoissonBootstrap() for name in ("iou", "foreground", "marked")}
        self.keeper = CaseKeeper()

    def sample(self, sample: PhraseSample, probabilities: npt.NDArray[np.float32]) -> None:
        image = Overlaps()
        shown: dict[float, int] = {}
        for slot, (phrase, probability) in enumerate(zip(sample.phrases, probabilities, strict=True)):
            true = sample.masks[slot] >= 0.5
            sums = self.phrases.setdefault(phrase, _Phrase())
            one = Overlaps()
            value = one.add(probability >= self.threshold, true)
            for whole in (sums.overlaps, image):
                whole.merge(one)
            histogram = ScoreHistogram()
            histogram.add(probability, true)
            if value is None:
                self.sweep_marked += histogram.above()[1] > ABSENT_AREA * true.size
            else:
                self._present(sums, histogram, true, value)
                shown.setdefault(value, slot)
        self.images += 1
        self.overlaps.merge(image)
        self.bootstraps["iou"].add(image.iou, image.present)
        self.bootstraps["foreground"].add(float(image.counts[0]), float(image.counts[1]))
        self.bootstraps["marked"].add(image.marked, image.absent)
        # The best and the worst of an image, so that the cases are of different images.
        for value in {max(shown), min(shown)} if shown else ():
            self.keeper.offer(
                value,
                lambda v=value: _case(sample, probabilities, shown[v], v, self.threshold),  # type: ignore[misc]
            )

    def _present(self, sums: _Phrase, histogram: ScoreHistogram, true: BoolMask, value: float) -> None:
        sweep = overlap_counts(*histogram.above(), int(np.count_nonzero(true)), true.size)
        self.sweep_counts += sweep
        self.sweep_iou += sweep[0] / sweep[1]
        self.histogram.merge(histogram)
        self.ious[min(IOU_BINS - 1, int(value * IOU_BINS))] += 1
        sums.ap += histogram.average_precision()

    def result(self) -> SegmentationResult:
        overlaps = self.overlaps
        sweep = tuple(
            SweepRow(
                float(threshold),
                _ratio(self.sweep_iou[i], overlaps.present),
                *pooled_iou(self.sweep_counts[:, i]),
                _ratio(self.sweep_marked[i], overlaps.absent),
            )
            for i, threshold in enumerate(THRESHOLDS)
        )
        precision, recall = self.histogram.curve()
        keep = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), 200)).astype(int))
        curve = ((float(precision[i]), float(recall[i])) for i in keep) if overlaps.present else ()
        median = float(np.searchsorted(np.cumsum(self.ious), overlaps.present / 2) + 0.5) / IOU_BINS
        rows = [sums.row(phrase) for phrase, sums in self.phrases.items()]
        return SegmentationResult(
            images=self.images,
            present=overlaps.present,
            absent=overlaps.absent,
            threshold=self.threshold,
            mean_iou=overlaps.mean_iou,
            mean_iou_interval=self.bootstraps["iou"].interval(),
            foreground_iou=overlaps.foreground_iou,
            foreground_iou_interval=self.bootstraps["foreground"].interval(),
            binary_iou=overlaps.binary_iou,
            absent_marked=overlaps.absent_marked,
            absent_marked_interval=self.bootstraps["marked"].interval(),
            average_precision=self.histogram.average_precision(),
            average_precision_bounds=self.histogram.bounds(),
            sweep=sweep,
            best=max(sweep, key=lambda row: row.mean_iou) if overlaps.present else None,
            curve=tuple(curve),
            iou_histogram=tuple(int(n) for n in self.ious),
            phrases=tuple(sorted(rows, key=lambda row: (-row.present, -row.absent, row.phrase))),
            cases={
                "worst": self.keeper.worst(),
                "typical": self.keeper.typical(median),
                "best": self.keeper.best(),
            },
        )


def measure_segmentation(
    model: Model,
    samples: Iterable[PhraseSample],
    *,
    threshold: float = 0.5,
    advance: Callable[[], None] = lambda: None,
) -> SegmentationResult:
    """Compare a model's masks with true ones, at each image's own size.

    Args:
        model: one that gives masks.
        samples: images with phrases; masks of the image's size. One at a time is held.
        threshold: a pixel is marked from this probability on.
        advance: called after each image.

    Raises:
        DataError: there is no sample, or a mask of another size than its image.
        CapabilityError: the model gives no masks.
    """
    sums = _Sums(threshold)
    for sample, probabilities in probabilities_of(model, samples):
        sums.sample(sample, probabilities)
        advance()
    return sums.result()


def _ratio(total: float, count: int) -> float:
    return float(total / count) if count else float("nan")


def _case(
    sample: PhraseSample, probabilities: npt.NDArray[np.float32], slot: int, value: float, threshold: float
) -> Case:
    small = thumbnail(sample.image)

    def over(mask: BoolMask) -> bytes:
        resized = Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST)
        return jpeg(_spotlight(small, np.asarray(resized)))

    predicted: BoolMask = probabilities[slot] >= threshold
    pictures = (
        ("image", jpeg(small)),
        ("prediction" if predicted.any() else "none found", over(predicted)),
        ("truth", over(sample.masks[slot] >= 0.5)),
    )
    return Case(value, sample.phrases[slot], pictures)


def _spotlight(image: Image.Image, mask: BoolMask) -> Image.Image:
    """The image in colour where the mask is and pale grey elsewhere: seen on any colour, as a tint is not."""
    pale = 255 - (255 - np.asarray(image.convert("L"), dtype=np.float32)) * 0.3
    pixels = np.where(mask[..., None], np.asarray(image), pale[..., None])
    return Image.fromarray(pixels.round().astype(np.uint8))

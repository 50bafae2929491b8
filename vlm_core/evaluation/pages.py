"""What each task's report shows of its result."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from vlm_core.evaluation import plots
from vlm_core.evaluation.matching import MatchingResult
from vlm_core.evaluation.report import Figure, Report, Table
from vlm_core.evaluation.segmentation import SegmentationResult
from vlm_core.evaluation.tagging import TaggingResult


def segmentation_report(result: SegmentationResult, facts: dict[str, str]) -> Report:
    """The report of a segmentation run; `facts` name the model and the data."""
    low, high = result.average_precision_bounds
    figures = [
        Figure("mIoU", result.mean_iou, "IoU of each phrase that is there, averaged.", result.mean_iou_interval),
        Figure(
            "IoU foreground",
            result.foreground_iou,
            "Intersections over unions, both summed over all phrases that are there.",
            result.foreground_iou_interval,
        ),
        Figure("IoU binary", result.binary_iou, "Mean of IoU foreground and the same for the background."),
        Figure(
            "AP",
            result.average_precision,
            f"Average precision over all pixels together; before binning between {low:.4f} and {high:.4f}.",
        ),
        Figure(
            "absent, marked",
            result.absent_marked,
            "Share of phrases true of nothing that mark over 1 % of the image; lower is better.",
            result.absent_marked_interval,
        ),
    ]
    if result.best is not None and result.best.mean_iou > 0:
        figures.append(
            Figure(
                f"mIoU at {result.best.threshold:.2f}",
                result.best.mean_iou,
                "At the threshold that is best for it. Chosen on these same data: optimistic.",
            )
        )
    sweep = {
        "mIoU": [(row.threshold, row.mean_iou) for row in result.sweep],
        "IoU foreground": [(row.threshold, row.foreground_iou) for row in result.sweep],
        "absent, marked": [(row.threshold, row.absent_marked) for row in result.sweep],
    }
    phrases = Table(
        "Phrases",
        "Means over the images asked for the phrase. AP is of the pixels of each image.",
        ("phrase", "present", "mIoU", "AP", "absent", "marked"),
        [
            (row.phrase, row.present, row.mean_iou, row.average_precision, row.absent, row.absent_marked)
            for row in result.phrases
        ],
    )
    thresholds = Table(
        "Thresholds",
        "All figures by the probability from which a pixel is marked.",
        ("threshold", "mIoU", "IoU foreground", "IoU binary", "absent, marked"),
        [(f"{r.threshold:.2f}", r.mean_iou, r.foreground_iou, r.binary_iou, r.absent_marked) for r in result.sweep],
    )
    return Report(
        title="Segmentation",
        facts={
            **facts,
            "images": str(result.images),
            "phrases": f"{result.present} present, {result.absent} absent",
            "threshold": f"{result.threshold:g}",
        },
        figures=tuple(figures),
        plots=(
            (
                "Figures by threshold",
                plots.lines(sweep, "threshold", "share", mark=(result.threshold, "threshold used")),
            ),
            (
                "Precision and recall of pixels",
                plots.lines({"": [(r, p) for p, r in result.curve]}, "recall", "precision"),
            ),
            ("Phrases by IoU", plots.bars(result.iou_histogram, "IoU", "phrases")),
        ),
        tables=(phrases, thresholds),
        cases=result.cases,
        case_value="IoU",
        measured=_measured(result),
    )


def matching_report(result: MatchingResult, facts: dict[str, str]) -> Report:
    """The report of a matching run; `facts` name the model and the data."""
    directions = {"image to text": result.text_of_image, "text to image": result.image_of_text}
    figures = [
        Figure(
            f"recall@{k}, {name}",
            value,
            f"Something right among the first {k} of {way.candidates}; chance {way.chance[k]:.3f}.",
            way.intervals[k],
        )
        for name, way in directions.items()
        for k, value in way.recall.items()
    ]
    figures += [
        Figure(
            f"one of {k}",
            value,
            f"A text of its own before {k - 1} of other images; every draw of them counts; chance {1 / k:.2f}.",
        )
        for k, value in result.one_of_k.items()
    ]
    return Report(
        title="Matching",
        facts={**facts, "images": str(result.images), "different texts": str(result.texts)},
        figures=tuple(figures),
        plots=(
            (
                "Recall",
                plots.grouped(
                    {name: {f"@{k}": v for k, v in way.recall.items()} for name, way in directions.items()},
                    "recall",
                    chance={name: {f"@{k}": v for k, v in way.chance.items()} for name, way in directions.items()},
                ),
            ),
            (
                "Images by the place of their best right text",
                plots.ranks(result.text_of_image.ranks, "place among all texts", "images"),
            ),
        ),
        tables=(),
        cases=result.cases,
        case_value="wrong texts beaten",
        measured={
            **_measured(result),
            "median_rank": {name: way.median_rank for name, way in directions.items()},
        },
    )


def tagging_report(result: TaggingResult, facts: dict[str, str]) -> Report:
    """The report of a tagging run; `facts` name the model and the data."""
    values = [row.average_precision for row in result.tags]
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    return Report(
        title="Tagging",
        facts={**facts, "images": str(result.images), "tags": str(len(result.tags))},
        figures=(
            Figure(
                "mAP",
                result.mean_average_precision,
                "AP of each tag's order of the images, every tag counts the same; range over tags; "
                f"chance about {result.chance:.3f}.",
                result.interval,
            ),
            Figure(
                "AP of images",
                result.image_average_precision,
                "AP of each image's order of all tags, averaged over images.",
                result.image_interval,
            ),
        ),
        plots=(("Tags by AP", plots.bars([int(n) for n in counts], "AP", "tags")),),
        tables=(
            Table(
                "Tags",
                "Chance is the share of images that have the tag: about the AP of a random order.",
                ("tag", "images", "AP", "chance"),
                [(row.tag, row.images, row.average_precision, row.chance) for row in result.tags],
            ),
        ),
        cases=result.cases,
        case_value="AP",
        measured=_measured(result),
    )


def _measured(result: SegmentationResult | MatchingResult | TaggingResult) -> dict[str, Any]:
    """All of a result but its pictures; of cases the titles and values."""
    values = asdict(result)
    values["cases"] = {
        kind: [{"title": case.title, "value": case.value, "lines": [line for line, _ in case.lines]} for case in cases]
        for kind, cases in result.cases.items()
    }
    return values

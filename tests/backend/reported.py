"""Versions with all that a training notes of itself, for tests of what is shown of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from backend.version_report import (
    ImageScores,
    Intervals,
    Losses,
    ReportCase,
    ReportRecord,
    Scored,
    record_bytes,
)
from backend.versions import BaseCheckpoint, DataRecord, ManifestDraft, RecipeRecord, StoredVersion, VersionStore


def webp(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (240, 180), colour).save(file, "WEBP")
    return file.getvalue()


def case(
    kind: Any = "gain", label: str = "crane", *, present: bool = True, old: float = 0.1, new: float = 0.9
) -> ReportCase:
    scored = Scored(present=present, old=old, new=new)
    return ReportCase(kind=kind, task_id=41, label=label, scored=scored, picture=f"{kind}-1.webp")


def scored_images(scores: Mapping[str, Mapping[str, float]]) -> tuple[ImageScores, ...]:
    """Image -> label -> IoU of the new version; the old one had 0."""
    return tuple(
        ImageScores(
            image=image,
            task_id=1,
            labels={label: Scored(present=True, old=0.0, new=new) for label, new in labels.items()},
        )
        for image, labels in scores.items()
    )


def full_record(label: str = "crane", **changes: Any) -> ReportRecord:
    fields: dict[str, Any] = {
        "losses": (
            Losses(phase="choosing", points=((10, 1.0), (20, 0.5))),
            Losses(phase="trying phrases, 1 of 2", points=((10, 0.9), (20, 0.4))),
            Losses(phase="trying phrases, 2 of 2", points=((10, 0.8), (20, 0.3))),
        ),
        "intervals": {label: Intervals(old_iou=(0.2, 0.4), new_iou=(0.5, 0.7), gain=(0.25, 0.35))},
        "cases": (case("gain", label), case("loss", label, present=False, old=1.0, new=0.0)),
    }
    return ReportRecord(**fields | changes)


def write_version(
    data_dir: Path,
    *,
    label: str = "crane",
    record: ReportRecord | None = None,
    better: bool = True,
    figures: Mapping[str, tuple[float | None, float | None]] | None = None,
    **metrics: Any,
) -> StoredVersion:
    """The next version of project 7, not published; without a record as earlier releases wrote it."""
    draft = ManifestDraft(
        base=BaseCheckpoint(name="colours", fingerprint="0" * 64),
        data=DataRecord(
            training_images=("1" * 64, "2" * 64),
            held_out_images=("3" * 64,),
            counts={"tasks": 9, "images": 8, "unreadable": 1, "skipped": 0},
        ),
        recipe=RecipeRecord(name="r", chosen={"steps": 40, "labels": {label: {"conditions": 0.5, "iou": 0.61}}}),
        seed=0,
        metrics={"compared_with": 0, "decided_by": "held-out images", "gain": 0.3, "images": 12, **metrics},
        decision="better" if better else "not better",
        reason="mean IoU +0.300 over 12 images",
    )
    known = {label: (0.3, 0.6)} if figures is None else figures
    verdict = {
        "gain": 0.3,
        "gain_low": 0.21,
        "images": 12,
        "labels": {
            name: {
                "images": 12,
                "absent_images": 4,
                "iou": {"old": old, "new": new},
                "absent_marked": {"old": 0.0, "new": 0.25},
            }
            for name, (old, new) in known.items()
        },
    }
    files = {}
    if record is not None:
        files = {"report/record.json": record_bytes(record)}
        files |= {f"report/{item.picture}": webp() for item in record.cases if item.picture}
    return VersionStore(data_dir).write(7, {"gain": torch.ones(1)}, draft, {"verdict": verdict}, files)

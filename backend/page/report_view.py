"""What the report on one version shows, read from the version's own files; how it looks is `backend.page.report`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from backend.version_report import ReportRecord, read_picture, read_report
from backend.versions import StoredVersion, VersionStore

_COUNTED = ("images", "absent_images")


@dataclass(frozen=True)
class LabelFigures:
    """One label on the images that decided; None where no image can tell. Shares and IoU 0..1.

    Of a choice for whole images, "IoU" is the share of the images that have it and get it.
    """

    name: str
    images: int = 0
    old_iou: float | None = None
    new_iou: float | None = None
    absent_images: int = 0
    old_absent_marked: float | None = None
    new_absent_marked: float | None = None

    @property
    def gain(self) -> float | None:
        """New minus old IoU."""
        return None if self.old_iou is None or self.new_iou is None else self.new_iou - self.old_iou


@dataclass(frozen=True)
class ReportView:
    """One version.

    Attributes:
        project_id: Label Studio's id.
        title: of the project; "" where it is not known.
        number: of the version.
        base: the checkpoint's name.
        made_at: aware.
        serves: it is what answers the project now.
        pinned: and goes on to, whatever is learned.
        better: what the gate said.
        reason: its reason, one sentence.
        compared_with: number of the version that served; 0 is the base model.
        decided_by: which images decided, as the training says it.
        gain: mean gain in IoU over images, and the lower end of its interval; None where nothing was compared.
        images: how many decided.
        about_masks: these three figures are of masks; else of choices for whole images.
        has_choices: some labels are choices; those of a control `kind` are called `kind: label`.
        labels: by name.
        training_images, held_out_images: how many of each the project had.
        counts: what was read, and what was left out.
        chosen: what the training chose, JSON.
        record: what only the report shows; None of a version that an earlier release made.
        pictures: of its cases, WebP, by name.
        release: that draws the report.
    """

    project_id: int
    number: int
    base: str
    made_at: datetime
    serves: bool
    better: bool
    reason: str
    title: str = ""
    pinned: bool = False
    compared_with: int = 0
    decided_by: str = ""
    gain: float | None = None
    gain_low: float | None = None
    images: int = 0
    about_masks: bool = True
    has_choices: bool = False
    labels: tuple[LabelFigures, ...] = ()
    training_images: int = 0
    held_out_images: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    record: ReportRecord | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    release: str = ""


def report_view(store: VersionStore, project_id: int, number: int, *, title: str = "") -> ReportView:
    """Read all that the report on a version shows.

    Raises:
        VersionNotFoundError: there is no such version.
        VersionCorruptError: one of its files cannot be used.
    """
    version = store.get(project_id, number)
    publication = store.publication(project_id)
    manifest, record = version.manifest, read_report(version)
    verdict = version.metrics().get("verdict")
    verdict = verdict if isinstance(verdict, dict) else {}
    pictures = {} if record is None else {case.picture: read_picture(version, case) for case in record.cases}
    compared = manifest.metrics.get("compared_with")
    return ReportView(
        project_id=project_id,
        title=title,
        number=number,
        base=manifest.base.name,
        made_at=manifest.created_at,
        serves=publication is not None and publication.number == number,
        pinned=publication is not None and publication.number == number and publication.pinned,
        better=manifest.decision == "better",
        reason=manifest.reason,
        compared_with=compared if isinstance(compared, int) else 0,
        decided_by=str(manifest.metrics.get("decided_by") or ""),
        gain=_number(verdict.get("gain")),
        gain_low=_number(verdict.get("gain_low")),
        images=verdict["images"] if isinstance(verdict.get("images"), int) else 0,
        about_masks=verdict.get("about", "masks") == "masks",
        has_choices="tags" in manifest.recipe.chosen,
        labels=label_figures(version),
        training_images=len(manifest.data.training_images),
        held_out_images=len(manifest.data.held_out_images),
        counts=manifest.data.counts,
        chosen=manifest.recipe.chosen,
        record=record,
        pictures={name: data for name, data in pictures.items() if name is not None and data is not None},
        release=importlib.metadata.version("label-studio-vlm-backend"),
    )


def label_figures(version: StoredVersion) -> tuple[LabelFigures, ...]:
    """What the gate measured of each label, by name; whatever is missing is None.

    Raises:
        VersionCorruptError: the metrics cannot be read.
    """
    verdict = version.metrics().get("verdict")
    labels = verdict.get("labels") if isinstance(verdict, dict) else None
    found = []
    for name, item in sorted(labels.items()) if isinstance(labels, dict) else ():
        if not isinstance(item, dict):
            continue
        pairs = {key: item[key] if isinstance(item.get(key), dict) else {} for key in ("iou", "absent_marked")}
        found.append(
            LabelFigures(
                name=str(name),
                **{key: item[key] if isinstance(item.get(key), int) else 0 for key in _COUNTED},
                old_iou=_number(pairs["iou"].get("old")),
                new_iou=_number(pairs["iou"].get("new")),
                old_absent_marked=_number(pairs["absent_marked"].get("old")),
                new_absent_marked=_number(pairs["absent_marked"].get("new")),
            )
        )
    return tuple(found)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

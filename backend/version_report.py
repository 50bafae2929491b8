"""What a training notes of itself for the report on its version, beside the weights in `report/`.

    report/record.json      `ReportRecord`: losses, scores of each image, intervals, the cases that are shown
    report/<name>.webp      a picture of a case: at most twelve, at most 480 px a side

The listing of versions and the status page read `metrics.json`, which stays small; this is read for the report only.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.version_files import StoredVersion, corrupt, read_json

DIRECTORY, RECORD = "report", "record.json"
MOST_CASES = 6
"""Shown of each kind."""

MOST_PICTURE_BYTES = 1 << 20
"""Of one picture that is read: what a training writes has some ten kilobytes."""

Score = Annotated[float, Field(ge=0.0, le=1.0)]
Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Losses(_Part):
    """The loss of one fit."""

    phase: str = Field(description="What was fitted, as the job's progress names it.")
    points: tuple[tuple[int, float], ...] = Field(description="Step, and the mean loss of the steps up to it.")


class Intervals(_Part):
    """95 % intervals of one label's figures, from a bootstrap over images; None where too few images tell."""

    old_iou: Interval | None = None
    new_iou: Interval | None = None
    gain: Interval | None = Field(default=None, description="Of new minus old IoU, paired by image.")
    old_absent_marked: Interval | None = None
    new_absent_marked: Interval | None = None


class Scored(_Part):
    """One label of one image: `training_jobs.promote.Score`, which says what the values mean."""

    present: bool
    old: Score
    new: Score


class ImageScores(_Part):
    """All that was scored of one image."""

    image: str = Field(description="Content hash.")
    task_id: int
    labels: dict[str, Scored]


class Answers(_Part):
    """A choice for a whole image: labels by name."""

    true: tuple[str, ...] = Field(description="What the annotators chose.")
    old: tuple[str, ...]
    new: tuple[str, ...]


class ReportCase(_Part):
    """A label of an image that has gained or lost much, or the answer to a control of choices, which `label` names."""

    kind: Literal["gain", "loss"]
    task_id: int
    label: str
    scored: Scored
    picture: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]+\.webp$",
        description="Image, correction, mask before and after, in this order by rows of two; of a choice the image "
        "alone; None: no image any more.",
    )
    answers: Answers | None = Field(default=None, description="Of a choice; then `scored` is the agreement.")


class ReportRecord(_Part):
    """All of `record.json`."""

    schema_version: Literal[1] = 1
    losses: tuple[Losses, ...] = ()
    intervals: dict[str, Intervals] = Field(default_factory=dict, description="Per label.")
    cases: tuple[ReportCase, ...] = Field(default=(), description="Largest gains, then largest losses.")
    images: tuple[ImageScores, ...] = ()


def record_bytes(record: ReportRecord) -> bytes:
    """The record as `read_report` reads it."""
    return record.model_dump_json().encode()


def read_report(version: StoredVersion) -> ReportRecord | None:
    """What the training noted; None where it noted nothing, as older releases did.

    Raises:
        VersionCorruptError: it cannot be read.
    """
    path = version.path / DIRECTORY / RECORD
    if not path.exists():
        return None
    value = read_json(path)
    if value.get("schema_version") != 1:
        raise corrupt(path, f"schema version {value.get('schema_version')!r}, this release reads 1: upgrade it")
    try:
        return ReportRecord.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise corrupt(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def read_picture(version: StoredVersion, case: ReportCase) -> bytes | None:
    """The WebP file of a case; None where there is none, or none that can be shown."""
    if case.picture is None:
        return None
    path = version.path / DIRECTORY / case.picture
    try:
        data = path.read_bytes()
    except OSError:
        return None  # a report without one of its pictures is still a report
    return data if len(data) <= MOST_PICTURE_BYTES and data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None

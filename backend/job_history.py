"""What became of each training job: small JSON files in the data directory, so that Redis may be lost.

<data_dir>/projects/<project id>/jobs/<UTC time>-<job id>.json
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend import atomic

log = logging.getLogger(__name__)

KEPT_PER_PROJECT = 200

JobOutcome = Literal[
    "published",
    "not better",
    "pinned",
    "too few",
    "nothing new",
    "nothing to learn",
    "superseded",
    "cancelled",
    "interrupted",
    "pre-labelled",
    "failed",
]


class LabelChange(BaseModel):
    """Mean IoU of one label on the images that decided, before and after; None where none could tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: float | None
    after: float | None
    images: int


class JobRecord(BaseModel):
    """One ended job.

    Attributes:
        outcome: "published": a better version serves; "not better": kept as a candidate; "pinned": likewise, although
            better, for another one is pinned; "too few", "nothing new" and "nothing to learn": nothing was trained;
            "superseded": another job took over; "cancelled": somebody gave it up; "pre-labelled": a run of
            pre-labelling is over; "failed": an error.
        reason: one sentence for people.
        version: number of the version that was written, None where none was.
        labels: per label before and after.
        counts: what was read and what was left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    job_id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    project_id: int = Field(ge=1)
    requested: str = ""
    outcome: JobOutcome
    reason: str
    started_at: datetime
    ended_at: datetime
    version: int | None = None
    labels: dict[str, LabelChange] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


class JobHistory:
    """The ended jobs of all projects under one data directory."""

    def __init__(self, data_dir: Path | str) -> None:
        """Nothing is read or created here."""
        self._projects = Path(data_dir) / "projects"

    def add(self, record: JobRecord) -> None:
        """Keep a record; the oldest of the project make room.

        Raises:
            OSError: the data directory cannot be written.
        """
        directory = self._projects / str(record.project_id) / "jobs"
        directory.mkdir(parents=True, exist_ok=True)
        stamp = record.ended_at.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        atomic.write_json(directory / f"{stamp}-{record.job_id}.json", record.to_json())
        for path in sorted(directory.glob("*.json"))[:-KEPT_PER_PROJECT]:
            path.unlink(missing_ok=True)

    def latest(self, project_id: int, kind: str) -> JobRecord | None:
        """The job of a project that ended last; None where none has, or its file cannot be read.

        Args:
            project_id: Label Studio's id.
            kind: what its name begins with: "train", "prelabel".
        """
        paths = sorted((self._projects / str(project_id) / "jobs").glob(f"[0-9]*Z-{kind}-*.json"))
        return _read(paths[-1]) if paths else None

    def list(self, project_id: int | None = None) -> list[JobRecord]:
        """Ended jobs, newest first; a file that cannot be read is logged and left out.

        Args:
            project_id: only this project's; None: all.
        """
        pattern = "*/jobs/*.json" if project_id is None else f"{project_id}/jobs/*.json"
        records = []
        for path in self._projects.glob(pattern):
            if not re.match(r"\d{8}T", path.name):
                continue
            record = _read(path)
            if record is not None:
                records.append(record)
        return sorted(records, key=lambda record: record.ended_at, reverse=True)


def _read(path: Path) -> JobRecord | None:
    try:
        return JobRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        log.warning("%s: not a job record (%s)", path, type(error).__name__)
        return None

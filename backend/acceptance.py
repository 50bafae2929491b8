"""Acceptance of predictions: one record an annotation. What they add up to is `backend.acceptance_figures`.

    <data_dir>/projects/<project id>/acceptance.json

Label Studio owns the annotations, so the file is only a memory of comparisons already made: a reading of all
annotations renews it, compares what is new or was changed, and drops what was deleted. The comparison itself is
`backend.label_studio.acceptance`. A record outlives the prediction it was made from, since predictions of former
versions are often deleted.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend import atomic
from backend.label_studio.acceptance import Fate, compare, made_in_bulk, origin_of, time_of
from backend.label_studio.config import PredictionPlan
from backend.label_studio.truth import changed_at

log = logging.getLogger(__name__)

KEPT_PER_PROJECT = 10_000
"""Records; the annotations made longest ago make room. About 2 MB."""

Json = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Outcome(_Part):
    """What became of one label; see `backend.label_studio.acceptance.LabelOutcome`."""

    label: str
    fate: Fate
    iou: float | None = Field(ge=0.0, le=1.0)


class Record(_Part):
    """One annotation, compared with its prediction.

    Attributes:
        annotation: Label Studio's id.
        made_at: when the annotation was made; aware.
        changed_at: when it was changed last, as Label Studio writes it: with another one it is compared anew.
        version: number of the version whose prediction it is compared with.
        afresh: it was drawn beside the prediction, not begun from it.
        labels: outcomes; empty where neither has a label.
    """

    annotation: int
    made_at: datetime
    changed_at: str
    version: int = Field(ge=0)
    afresh: bool = False
    labels: tuple[Outcome, ...] = ()


class Acceptance(_Part):
    """All that is known of a project.

    Attributes:
        read_at: when its annotations were read last; None: never.
        records: by the time at which the annotations were made.
        left_out: annotations that say nothing, by reason: `no prediction` of ours at that time, `bulk` (Label Studio
            made them of predictions without anybody looking), `unreadable`.
    """

    schema_version: Literal[1] = 1
    read_at: datetime | None = None
    records: tuple[Record, ...] = ()
    left_out: dict[str, int] = Field(default_factory=dict)


class AcceptanceStore:
    """The acceptance of all projects under one data directory. Safe to share between threads."""

    def __init__(self, data_dir: Path | str) -> None:
        """Nothing is read or created here."""
        self._projects = Path(data_dir) / "projects"
        self._read: dict[int, tuple[tuple[int, int, int], Acceptance]] = {}

    def get(self, project_id: int) -> Acceptance:
        """What is known; nothing where the file is missing, or cannot be read (which is logged).

        Costs one `stat` while nothing has changed.
        """
        path = self._path(project_id)
        try:
            status = path.stat()
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._read.get(project_id)
            if known is None or known[0] != signature:
                known = (signature, Acceptance.model_validate_json(path.read_bytes()))
                self._read[project_id] = known
            return known[1]
        except FileNotFoundError:
            return Acceptance()
        except (OSError, ValidationError) as error:
            log.warning("%s: taken as empty (%s)", path, type(error).__name__)
            return Acceptance()

    def put(self, project_id: int, acceptance: Acceptance) -> None:
        """Keep it, as far as there is room.

        Raises:
            OSError: the data directory cannot be written.
        """
        kept = acceptance.model_copy(update={"records": acceptance.records[-KEPT_PER_PROJECT:]})
        path = self._path(project_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, json.dumps(kept.model_dump(mode="json"), separators=(",", ":")).encode())

    def _path(self, project_id: int) -> Path:
        return self._projects / str(project_id) / "acceptance.json"


class AcceptanceReading:
    """One reading of all annotations of a project: `see` each task, then take `result`."""

    def __init__(
        self,
        known: Acceptance,
        project_id: int,
        plan: PredictionPlan,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Begin.

        Args:
            known: of the reading before.
            project_id: Label Studio's id.
            plan: its labelling config.
            clock: the time, aware.
        """
        self._known = {record.annotation: record for record in known.records}
        # The store would not keep the record of an older annotation: it need not be compared again and again.
        full = len(known.records) >= KEPT_PER_PROJECT
        self._not_before = known.records[0].made_at if full else None
        self._project_id = project_id
        self._plan = plan
        self._clock = clock
        self._records: list[Record] = []
        self._left_out: Counter[str] = Counter()

    def see(self, task: Json, annotations: Iterable[Json]) -> None:
        """Compare the annotations of a task.

        Args:
            task: with its `predictions`.
            annotations: those of it that count (`backend.label_studio.truth.annotations_that_count`).
        """
        for annotation in annotations:
            known = self._known.get(int(annotation["id"]))
            if known is not None and known.changed_at == changed_at(annotation):
                self._records.append(known)
                continue
            found = self._compared(task, annotation)
            if isinstance(found, str):
                self._left_out[found] += 1
            elif found is not None:
                self._records.append(found)

    def result(self) -> Acceptance:
        """What all tasks come to."""
        return Acceptance(
            read_at=self._clock(),
            records=tuple(sorted(self._records, key=lambda record: (record.made_at, record.annotation))),
            left_out=dict(self._left_out),
        )

    def _compared(self, task: Json, annotation: Json) -> Record | str | None:
        """The record, or why there is none; None where it is too old to be kept."""
        made_at = time_of(annotation.get("created_at"))
        if made_at is None:
            return "unreadable"
        if self._not_before is not None and made_at < self._not_before:
            return None
        if made_in_bulk(annotation):
            return "bulk"
        origin = origin_of(annotation, task.get("predictions") or [], self._project_id)
        if origin is None:
            return "no prediction"
        outcomes = compare(origin.prediction.get("result") or [], annotation["result"], self._plan)
        if outcomes is None:
            return "unreadable"
        return Record(
            annotation=int(annotation["id"]),
            made_at=made_at,
            changed_at=changed_at(annotation),
            version=origin.version,
            afresh=origin.afresh,
            labels=tuple(Outcome(label=item.label, fate=item.fate, iou=item.iou) for item in outcomes),
        )

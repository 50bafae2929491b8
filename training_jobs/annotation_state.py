"""Which annotations a training has read, and whether Label Studio has others now.

Label Studio has no list of annotations without their masks. So first one small question is asked, the project's `Mark`;
only where it differs from the one of the last reading are tasks read, the newest first, back to that reading. A mark
also moves when predictions are stored with annotated tasks, so a moved mark alone is no news.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from backend import atomic
from backend.label_studio.truth import changed_at, well_formed

_FILE = "annotations_read.json"
_SCHEMA_VERSION = 1
_PAGE_TASKS = 20

Json = dict[str, Any]
Stamps = dict[str, str]
"""Per annotation, by its id as a string, when it was changed."""


class AnnotationSource(Protocol):
    """The part of `LabelStudioClient` that is used."""

    def newest_annotated(self, project_id: int) -> Json:
        """The annotated task that was changed last, and totals."""

    def tasks(
        self, project_id: int, *, only_annotated: bool = False, page_size: int = 50, newest_first: bool = False
    ) -> Iterator[Json]:
        """Tasks with their annotations."""


@dataclass(frozen=True)
class Mark:
    """What tells whether a project's annotations may have changed. Skipped annotations do not count.

    Attributes:
        newest: when the annotated task that was changed last was changed, as Label Studio writes times; "" without any.
        tasks: that have annotations.
        annotations: of all tasks.
    """

    newest: str
    tasks: int
    annotations: int

    @classmethod
    def of(cls, client: AnnotationSource, project_id: int) -> Mark:
        """The project's mark as it is now; one call.

        Raises:
            LabelStudioError: no answer, or no such project.
        """
        answer = client.newest_annotated(project_id)
        newest = next((str(task.get("updated_at") or "") for task in answer.get("tasks") or []), "")
        return cls(newest, int(answer.get("total") or 0), int(answer.get("total_annotations") or 0))

    def __str__(self) -> str:
        return f"{self.newest} {self.tasks} {self.annotations}"


@dataclass(frozen=True)
class Reading:
    """What one reading of all annotations has found.

    Attributes:
        mark: of the moment before it.
        tasks: per task, by its id as a string, the stamps of its annotations; tasks without any are left out.
    """

    mark: Mark
    tasks: Mapping[str, Stamps]

    def keep(self, directory: Path) -> None:
        """Write it into the project's directory, which must exist.

        Raises:
            OSError: it cannot be written.
        """
        record = {"mark": asdict(self.mark), "schema_version": _SCHEMA_VERSION, "tasks": self.tasks}
        atomic.write_json(directory / _FILE, record)

    @classmethod
    def last(cls, directory: Path) -> Reading | None:
        """The last one of a project; None where there is none, or none that can be read."""
        try:
            record = json.loads((directory / _FILE).read_bytes())
            if record["schema_version"] != _SCHEMA_VERSION:
                return None
            return cls(Mark(**record["mark"]), {str(task): dict(found) for task, found in record["tasks"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # it only saves work: everything is new then


def stamps_of(task: Mapping[str, Any]) -> Stamps:
    """The annotations of a task that are not skipped, and when each was changed."""
    annotations = [item for item in well_formed(task) if not item.get("was_cancelled")]
    return {str(item.get("id")): changed_at(item) for item in annotations}


def has_news(client: AnnotationSource, project_id: int, now: Mark, last: Reading | None) -> bool:
    """Whether annotations were made, changed or deleted since a reading.

    Args:
        client: of Label Studio.
        project_id: the project.
        now: its mark.
        last: the last reading; None: every annotation is news.

    Raises:
        LabelStudioError: no answer, or no such project.
    """
    if last is None or now.annotations == 0:
        return now.annotations > 0 or bool(last and last.tasks)
    if now == last.mark:
        return False
    known = sum(len(stamps) for stamps in last.tasks.values())
    if (now.tasks, now.annotations) != (len(last.tasks), known):
        return True
    since = _moment(last.mark.newest)
    for task in client.tasks(project_id, only_annotated=True, page_size=_PAGE_TASKS, newest_first=True):
        if _moment(str(task.get("updated_at") or "")) < since:
            return False
        if stamps_of(task) != last.tasks.get(str(task.get("id")), {}):
            return True
    return False


def _moment(text: str) -> datetime:
    """A time as Label Studio writes it; the beginning of all time where it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

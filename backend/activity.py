"""What last happened to each project: for `/status` and the page at `/`, never for a decision.

Noted in memory, so that a webhook pays nothing for it, and written a moment later by a thread of its own to one small
file, `<data_dir>/activity.json`, which outlives a restart. Several servers may share the directory: whoever writes
joins what it knows with the file, and of each fact the newest stays. What was noted in the last seconds before a
process is killed is lost; a disk that is full costs only this.

The file holds names of versions and reasons that were fit for a client: no payload, token or query of an address.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from backend import atomic

log = logging.getLogger(__name__)

MAX_PROJECTS = 500
"""Those that were quiet longest make room."""

MAX_REASON_CHARS = 500
_WRITE_EVERY_S = 2.0


class _Fact(BaseModel):
    # A later release may write more than this one reads.
    model_config = ConfigDict(frozen=True, extra="ignore")

    at: AwareDatetime


class ServedFact(_Fact):
    """The name under which the project was last answered."""

    version: str


class ConfigFact(_Fact):
    """Whether the labelling config could be used at the last `/setup`; "" is yes."""

    problem: str


class PredictionFact(_Fact):
    """The last `/predict`: how many tasks, and how many of them have no prediction."""

    tasks: int
    failed: int


class EventFact(_Fact):
    """The last webhook about the project and what became of it, like "queued" or "ignored"."""

    action: str
    outcome: str


class ErrorFact(_Fact):
    """The last error that somebody was told, and where: "setup", "predict", "webhook" ..."""

    stage: str
    reason: str


class ProjectActivity(BaseModel):
    """What is known of one project; None: it never happened, or was forgotten. Times are UTC."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    served: ServedFact | None = None
    config: ConfigFact | None = None
    prediction: PredictionFact | None = None
    event: EventFact | None = None
    error: ErrorFact | None = None

    @property
    def newest(self) -> datetime | None:
        """When something was last noted."""
        times = [fact.at for fact in self._facts().values()]
        return max(times, default=None)

    def joined(self, other: ProjectActivity) -> ProjectActivity:
        """The newer of each fact."""
        facts = self._facts()
        for name, fact in other._facts().items():
            if name not in facts or facts[name].at < fact.at:
                facts[name] = fact
        return ProjectActivity.model_validate(facts)

    def _facts(self) -> dict[str, _Fact]:
        facts = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: fact for name, fact in facts.items() if fact is not None}


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    projects: dict[int, ProjectActivity] = Field(default_factory=dict)


class Activity:
    """What last happened, by project. Safe to share between threads and processes."""

    def __init__(self, data_dir: Path, *, write_every_s: float = _WRITE_EVERY_S) -> None:
        """Nothing is read, created or started until something is noted.

        Args:
            data_dir: where `activity.json` lies; made when first written.
            write_every_s: what is noted meanwhile is written together.
        """
        self._path = data_dir / "activity.json"
        self._write_every_s = write_every_s
        self._noted: dict[int, ProjectActivity] = {}
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._writer: threading.Thread | None = None

    def served(self, project_id: int, version: str) -> None:
        """The project was answered under this name."""
        self._note(project_id, ProjectActivity(served=ServedFact(at=_now(), version=version)))

    def config(self, project_id: int, problem: str) -> None:
        """The labelling config was read; "" where it can be used."""
        self._note(project_id, ProjectActivity(config=ConfigFact(at=_now(), problem=_short(problem))))

    def predicted(self, project_id: int, tasks: int, failed: int) -> None:
        """A request for predictions was answered."""
        self._note(project_id, ProjectActivity(prediction=PredictionFact(at=_now(), tasks=tasks, failed=failed)))

    def event(self, project_id: int, action: str, outcome: str) -> None:
        """A webhook came."""
        self._note(project_id, ProjectActivity(event=EventFact(at=_now(), action=_short(action), outcome=outcome)))

    def error(self, project_id: int, stage: str, reason: str) -> None:
        """A client was told this reason; it must be one that is fit for that."""
        self._note(project_id, ProjectActivity(error=ErrorFact(at=_now(), stage=stage, reason=_short(reason))))

    def of(self, project_id: int) -> ProjectActivity:
        """What is known of a project, also from other processes and former lives."""
        return self.all().get(project_id, ProjectActivity())

    def all(self) -> dict[int, ProjectActivity]:
        """What is known of every project, by its id."""
        with self._lock:
            noted = dict(self._noted)
        return dict(sorted(_joined(self._read(), noted).items()))

    def close(self) -> None:
        """Write what is noted, and stop."""
        self._closing.set()
        self._dirty.set()
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.join()

    def _note(self, project_id: int, facts: ProjectActivity) -> None:
        with self._lock:
            self._noted = _bounded(_joined(self._noted, {project_id: facts}))
            if self._writer is None and not self._closing.is_set():
                self._writer = threading.Thread(target=self._write_now_and_then, name="activity", daemon=True)
                self._writer.start()
        self._dirty.set()

    def _write_now_and_then(self) -> None:
        last = False
        while not last:
            self._dirty.wait()
            last = self._closing.wait(self._write_every_s)
            self._dirty.clear()
            self._write()

    def _write(self) -> None:
        with self._lock:
            noted = self._noted
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.locked(self._path.with_suffix(".lock")):
                kept = _File(projects=_bounded(_joined(self._read(), noted)))
                atomic.write_json(self._path, kept.model_dump(mode="json", exclude_none=True))
        except OSError as error:
            log.warning("what happened to the projects cannot be written: %s", error)

    def _read(self) -> dict[int, ProjectActivity]:
        try:
            return dict(_File.model_validate_json(self._path.read_bytes()).projects)
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            log.warning("%s is unreadable and taken as empty: %s", self._path.name, type(error).__name__)
            return {}


_Key = TypeVar("_Key")


def _joined(one: dict[_Key, ProjectActivity], other: dict[_Key, ProjectActivity]) -> dict[_Key, ProjectActivity]:
    nothing = ProjectActivity()
    return {**one, **{key: one.get(key, nothing).joined(activity) for key, activity in other.items()}}


def _bounded(projects: dict[int, ProjectActivity]) -> dict[int, ProjectActivity]:
    if len(projects) <= MAX_PROJECTS:
        return projects
    oldest = datetime.min.replace(tzinfo=UTC)
    loudest = sorted(projects, key=lambda project: projects[project].newest or oldest)[-MAX_PROJECTS:]
    return {project: projects[project] for project in loudest}


def _now() -> datetime:
    return datetime.now(UTC)


def _short(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # half of a character pair cannot be written
    return text if len(text) <= MAX_REASON_CHARS else f"{text[: MAX_REASON_CHARS - 3]}..."

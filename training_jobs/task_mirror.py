"""A project's annotated tasks as Label Studio has them, kept on disk, so that only what has changed is read again.

Ten thousand tasks with brush masks are minutes to read, and most of a training's corrections were there the last time.
So each reading first lists the annotated tasks without their annotations: id, when the task was changed last, and how
many annotations it has. Whatever is listed otherwise than it is kept is read anew, in pages; what is not listed any
more is dropped. Label Studio moves a task's time with each annotation that is made, changed or deleted, and with
predictions.

Each page is kept when it has come, so a reading that was cut goes on where it was. The file only saves work: one that
cannot be read, or is of another Label Studio, is made anew.

    <data_dir>/projects/<project id>/annotated_tasks.sqlite
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

FILE = "annotated_tasks.sqlite"
LISTED = ("id", "updated_at", "total_annotations", "cancelled_annotations")
"""Of a task in the listing; all but the id say whether it has changed."""

_SCHEMA_VERSION = "1"
_PAGE = 50
"""Tasks in one request; brush masks make them large."""

Json = dict[str, Any]


class AnnotatedTasks(Protocol):
    """The part of `LabelStudioClient` that is used."""

    def annotated(self, project_id: int, fields: Sequence[str]) -> Iterator[Json]:
        """The annotated tasks, with these fields alone."""

    def tasks_by_id(self, project_id: int, ids: Sequence[int]) -> list[Json]:
        """These tasks with their annotations and predictions, as far as they are there."""


class TaskMirror:
    """One project's annotated tasks. For one process at a time; a context manager."""

    def __init__(self, directory: Path, project_id: int, origin: str) -> None:
        """Open or make the file.

        Args:
            directory: of the project; must exist.
            project_id: Label Studio's id.
            origin: names the Label Studio; of another one nothing is kept.

        Raises:
            OSError: it cannot be written.
        """
        self._path = directory / FILE
        self._project_id = project_id
        self._origin = origin
        self._database = self._open()

    def __enter__(self) -> TaskMirror:
        """Itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the file."""
        self._database.close()

    def sync(self, client: AnnotatedTasks, alive: Callable[[], None] = lambda: None) -> Mapping[str, int]:
        """Read what is new or changed, and drop what is gone.

        Args:
            client: of Label Studio.
            alive: called with each page; raises to give up.

        Returns:
            How many tasks were `read`, `unchanged` and `dropped`.

        Raises:
            LabelStudioError: Label Studio does not answer, or refuses; what has come until then is kept.
            OSError: the disk is full.
        """
        with _as_os_error(self._path):
            kept = dict(self._database.execute("SELECT id, stamp FROM tasks"))
            listed = {}
            for task in client.annotated(self._project_id, LISTED):
                listed[int(task["id"])] = _stamp(task)
                alive()
            gone = sorted(kept.keys() - listed.keys())
            stale = sorted(task_id for task_id, stamp in listed.items() if kept.get(task_id) != stamp)
            with self._database:
                self._database.executemany("DELETE FROM tasks WHERE id = ?", [(task_id,) for task_id in gone])
            read = 0
            for start in range(0, len(stale), _PAGE):
                alive()
                wanted = stale[start : start + _PAGE]
                found = {int(task["id"]): task for task in client.tasks_by_id(self._project_id, wanted)}
                rows = [(one, listed[one], _packed(found[one])) for one in wanted if one in found]
                with self._database:
                    # One that was listed and is not there has just been deleted.
                    self._database.executemany("DELETE FROM tasks WHERE id = ?", [(one,) for one in wanted])
                    self._database.executemany("INSERT INTO tasks VALUES (?, ?, ?)", rows)
                read += len(rows)
        return {"read": read, "unchanged": len(listed) - len(stale), "dropped": len(gone)}

    def tasks(self) -> Iterator[Json]:
        """All tasks that are kept, with their annotations and predictions, by id.

        Raises:
            OSError: one of them is damaged; it is forgotten, so that the next `sync` reads it again.
        """
        for task_id, packed in self._database.execute("SELECT id, task FROM tasks ORDER BY id"):
            try:
                task: Json = json.loads(zlib.decompress(packed))
            except (zlib.error, ValueError) as error:
                with self._database:
                    self._database.execute("DELETE FROM tasks WHERE id = ?", (task_id,))
                reason = f"task {task_id} is damaged: it is read again with the next attempt"
                raise OSError(errno.EIO, reason, str(self._path)) from error
            yield task

    def _open(self) -> sqlite3.Connection:
        there = self._path.exists()
        with contextlib.suppress(sqlite3.DatabaseError):
            database = self._connected()
            try:
                meta = dict(database.execute("SELECT name, value FROM meta"))
                whole = database.execute("PRAGMA quick_check").fetchone() == ("ok",)
                if whole and meta == self._meta:
                    return database
            except BaseException:
                database.close()
                raise
            database.close()
        if there:
            log.warning("project=%d %s is made anew: it is damaged or of another origin", self._project_id, self._path)
        for path in self._path.parent.glob(f"{FILE}*"):
            path.unlink()
        with _as_os_error(self._path):
            database = self._connected()
            with database:
                database.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
                database.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, stamp TEXT NOT NULL, task BLOB NOT NULL)")
                database.executemany("INSERT INTO meta VALUES (?, ?)", self._meta.items())
        return database

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path)

    @property
    def _meta(self) -> dict[str, str]:
        return {"origin": self._origin, "project": str(self._project_id), "schema": _SCHEMA_VERSION}


def _stamp(task: Mapping[str, Any]) -> str:
    """What the listing says of a task; with another stamp it is read anew."""
    return json.dumps([task.get(name) for name in LISTED[1:]])


def _packed(task: Json) -> bytes:
    return zlib.compress(json.dumps(task, separators=(",", ":")).encode(), 1)


@contextlib.contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """A disk that refuses is an OSError, as for all other files."""
    try:
        yield
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error

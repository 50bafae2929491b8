"""What `vlm versions` and `vlm report` do and show: plain JSON values, and tables of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from backend.queue import TrainingQueue
from backend.redis_connection import connect_redis
from backend.redis_server import RedisUnavailableError
from backend.settings import Settings
from backend.tables import add_row, local_time
from backend.versions import Publication, VersionError, VersionNotFoundError, VersionStore, read_version_name


def versions_report(settings: Settings, project_id: int | None = None) -> list[dict[str, Any]]:
    """All versions of a project, or of all, oldest first; JSON values.

    A damaged one carries its `error`. Where the file that names the serving version is damaged, a row with the number
    None says so.
    """
    store = VersionStore(settings.data_dir)
    rows = []
    for project in store.project_ids() if project_id is None else [project_id]:
        publication = None
        try:
            publication = store.publication(project)
        except VersionError as error:
            rows.append({"error": str(error), "number": None, "pinned": False, "project_id": project, "serves": False})
        for number in store.numbers(project):
            with suppress(VersionNotFoundError):  # pruned meanwhile
                rows.append(_version(store, project, number, publication))
    return rows


def print_versions(rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw `versions_report` as a table."""
    table = Table()
    for column in ("project", "version", "serves", "made", "base", "images", "decision"):
        table.add_column(column, overflow="fold")
    for row in rows:
        serves = "pinned" if row["pinned"] else "yes" if row["serves"] else ""
        if row["error"] is not None:
            number = "current" if row["number"] is None else row["number"]
            add_row(table, row["project_id"], number, serves, "", "", "", f"damaged: {row['error']}")
            continue
        images = f"{row['training_images']} + {row['held_out_images']} held out"
        decision = f"{row['decision']}: {row['reason']}"
        add_row(
            table,
            row["project_id"],
            row["number"],
            serves,
            local_time(row["created_at"]),
            row["base"],
            images,
            decision,
        )
    console = Console()
    if table.row_count:
        console.print(table)
    else:
        console.print("No versions yet: the base model serves.")


def use_version(settings: Settings, project_id: int, number: int, *, pinned: bool = False) -> None:
    """Let an earlier version, a candidate, or the base model (0) serve a project.

    A training that runs meanwhile cannot publish over this decision; a later one can, unless the version is pinned.
    A running backend follows with its next request.

    Raises:
        VersionError: there is no such version, it cannot be used, or the data directory cannot be written.
    """
    store = VersionStore(settings.data_dir)
    if number != 0:
        store.get(project_id, number)
    with _writing(settings):
        store.publish(project_id, number, store.next_token(project_id), by_hand=True, pinned=pinned)
    _announce(settings, project_id, number)


def unpin_version(settings: Settings, project_id: int) -> int:
    """Let trainings replace the serving version again; its number, which goes on serving.

    Raises:
        VersionError: as for `use_version`.
    """
    publication = VersionStore(settings.data_dir).publication(project_id)
    number = 0 if publication is None else publication.number
    use_version(settings, project_id, number)
    return number


def prune_versions(
    settings: Settings, project_id: int | None, *, keep: int | None = None, dry_run: bool = False
) -> dict[int, tuple[int, ...]]:
    """Remove old versions of a project, or of all; per project the numbers that are gone.

    Args:
        settings: where they lie, and how many stay.
        project_id: None: all projects.
        keep: so many of the newest stay; None: as the settings say.
        dry_run: remove nothing.

    Raises:
        VersionError: a project's files cannot be read, or not be written.
    """
    store = VersionStore(settings.data_dir)
    with _writing(settings):
        return {
            project: store.prune(project, keep or settings.keep_versions, dry_run=dry_run)
            for project in (store.project_ids() if project_id is None else [project_id])
        }


def find_version(settings: Settings, named: str, number: int | None) -> tuple[int, int]:
    """The project and number of the version that a command names.

    Args:
        settings: where the versions lie.
        named: a project's id, or a version's whole name.
        number: with a project's id; None: its newest version.

    Raises:
        ValueError: it is neither, or names the base model, or both a name and a number are given.
        VersionNotFoundError: the project has no version.
    """
    name = read_version_name(named)
    if name is not None:
        if number is not None:
            raise ValueError(f"{named} names its version already; leave {number} out")
        if name.number == 0:
            raise ValueError(f"{named} is the base model, which no training has made: it has no report")
        return name.project_id, name.number
    if not re.fullmatch(r"[1-9][0-9]{0,17}", named):
        raise ValueError(
            f"{named!r} is neither a project's id, like 7, nor a version's name, like demo-p7-v003-0a1b2c3d"
        )
    project_id = int(named)
    if number is None:
        numbers = VersionStore(settings.data_dir).numbers(project_id)
        if not numbers:
            raise VersionNotFoundError(
                f"project {project_id} has no version yet: the base model serves, and there is nothing to report",
                public=f"project {project_id} has no version yet",
            )
        number = numbers[-1]
    return project_id, number


def write_report(settings: Settings, project_id: int, number: int, path: Path) -> Path:
    """Write the report on a version as one HTML file.

    Raises:
        VersionError: there is no such version, or it cannot be read, or the file cannot be written.
    """
    from backend.page.report import render_report
    from backend.page.report_view import report_view

    page = render_report(report_view(VersionStore(settings.data_dir), project_id, number))
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise VersionError(
            f"{path}: {error.strerror}. Name another file with --out", public="the report cannot be written"
        ) from error
    return path


@contextmanager
def _writing(settings: Settings) -> Iterator[None]:
    """What the disk refuses, said with its remedy."""
    try:
        yield
    except OSError as error:
        raise VersionError(
            f"{error.filename or settings.data_dir}: {error.strerror}. Make room, or mend the permissions",
            public="the data directory cannot be written",
        ) from error


def _announce(settings: Settings, project_id: int, number: int) -> None:
    """Tell the servers; a failure costs nothing, since each notices by itself."""
    with suppress(RedisUnavailableError, redis.RedisError), connect_redis(settings, start=False) as connection:
        TrainingQueue(connection).announce_version(project_id, number)


def _version(store: VersionStore, project_id: int, number: int, publication: Publication | None) -> dict[str, Any]:
    serves = publication is not None and publication.number == number
    row: dict[str, Any] = {
        "error": None,
        "number": number,
        "pinned": serves and publication is not None and publication.pinned,
        "project_id": project_id,
        "serves": serves,
    }
    try:
        manifest = store.get(project_id, number).manifest
    except VersionNotFoundError:
        raise
    except VersionError as error:
        return {**row, "error": str(error)}
    return {
        **row,
        "base": manifest.base.name,
        "created_at": manifest.created_at.isoformat(),
        "decision": manifest.decision,
        "held_out_images": len(manifest.data.held_out_images),
        "metrics": manifest.metrics,
        "reason": manifest.reason,
        "recipe": manifest.recipe.name,
        "training_images": len(manifest.data.training_images),
        "weights_sha256": manifest.weights.sha256,
    }

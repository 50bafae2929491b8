"""What `vlm jobs` and `vlm versions` show: plain JSON values, and tables of them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import redis
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from backend.cancelling import cancel_training
from backend.job_history import JobHistory, JobRecord
from backend.prelabel_queue import PrelabelQueue
from backend.queue import LiveJob, TrainingQueue
from backend.redis_connection import connect_redis
from backend.redis_server import RedisUnavailableError
from backend.settings import Settings
from backend.versions import VersionError, VersionStore
from vlm_core.errors import VLMError


class CancelError(VLMError):
    """A training could not be cancelled."""


def jobs_report(settings: Settings, *, project_id: int | None = None, limit: int = 20) -> dict[str, Any]:
    """Jobs that wait or run, and jobs that have ended, newest first.

    Args:
        settings: where Redis and the data directory are. Redis is not started for this.
        project_id: only this project's; None: all.
        limit: most ended jobs.

    Returns:
        `{"queue": "running" | <why not>, "live": [...], "prelabelling": [...], "ended": [...]}`, JSON values.
    """
    queue_state, live, prelabelling = "running", [], []
    try:
        with connect_redis(settings, start=False) as connection:
            jobs = TrainingQueue(connection).jobs()
            runs = PrelabelQueue(connection).jobs()
        live = [_live(job) for job in jobs if project_id in (None, job.project_id)]
        prelabelling = [run.to_json() for run in runs if project_id in (None, run.project_id)]
    except (RedisUnavailableError, redis.RedisError) as error:
        queue_state = str(error)
    ended = JobHistory(settings.data_dir).list(project_id)[:limit]
    return {
        "ended": [_ended(record) for record in ended],
        "live": live,
        "prelabelling": prelabelling,
        "queue": queue_state,
    }


def cancel_job(settings: Settings, project_id: int) -> str:
    """Give up a project's training; what became of it, for people.

    Raises:
        RedisUnavailableError: Redis is not there; nothing has changed.
        CancelError: it went away meanwhile.
    """
    with connect_redis(settings, start=False) as connection:
        try:
            outcome = cancel_training(TrainingQueue(connection), JobHistory(settings.data_dir), project_id)
        except redis.RedisError as error:
            raise CancelError(f"Redis did not answer ({type(error).__name__}): try again") from error
    return {
        "removed": f"The training of project {project_id} that waited is no more.",
        "stopping": f"The training of project {project_id} is being stopped; vlm jobs shows it as cancelled then.",
        "nothing": f"No training of project {project_id} waits or runs.",
    }[outcome]


def watch_jobs(
    settings: Settings, *, project_id: int | None = None, limit: int = 20, rounds: int | None = None
) -> None:
    """Draw the jobs anew every second until Ctrl-C; arguments as for `jobs_report`, `rounds` for tests."""
    with Live(console=Console(), auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        for number in itertools.count():
            live.update(jobs_table(jobs_report(settings, project_id=project_id, limit=limit)), refresh=True)
            if rounds is not None and number + 1 >= rounds:
                return
            time.sleep(1.0)


def print_jobs(report: Mapping[str, Any]) -> None:
    """Draw `jobs_report` as a table."""
    Console().print(jobs_table(report))


def jobs_table(report: Mapping[str, Any]) -> RenderableType:
    """`jobs_report` for the terminal."""
    table = Table()
    for column in ("project", "job", "state", "when", "what"):
        table.add_column(column, overflow="fold")
    for job in report["live"]:
        when = _time(job["started_at"] or job["enqueued_at"])
        _add(table, job["project_id"], job["job_id"], job["state"], when, _doing(job))
    for run in report["prelabelling"]:
        _add(table, run["project_id"], run["run_id"], run["state"], _time(run["started_at"]), prelabelling_line(run))
    for job in report["ended"]:
        what = job["reason"] + "".join(f"\n{line}" for line in _label_lines(job["labels"]))
        if job["version"] is not None:
            what = f"version {job['version']}: {what}"
        if left_out := _left_out(job["counts"]):
            what += f"\nleft out: {left_out}"
        _add(table, job["project_id"], job["job_id"], job["outcome"], _time(job["ended_at"]), what)
    none = "No job yet. Corrections, or Start Training in Label Studio, ask for one; or vlm prelabel."
    shown: list[RenderableType] = [table if table.row_count else Text(none)]
    if report["queue"] != "running":
        shown.append(Text(f"Waiting and running jobs are not known: {report['queue']}"))
    return Group(*shown)


def versions_report(settings: Settings, project_id: int | None = None) -> list[dict[str, Any]]:
    """All versions of a project, or of all, oldest first; JSON values.

    A damaged one carries its `error`. Where the file that names the serving version is damaged, a row with the number
    None says so.
    """
    store = VersionStore(settings.data_dir)
    rows = []
    for project in store.project_ids() if project_id is None else [project_id]:
        serving, pinned = 0, False
        try:
            publication = store.publication(project)
            serving = 0 if publication is None else publication[1]
            pinned = store.is_pinned(project)
        except VersionError as error:
            rows.append({"error": str(error), "number": None, "pinned": False, "project_id": project, "serves": False})
        for number in store.numbers(project):
            rows.append(_version(store, project, number, serving, pinned=pinned))
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
            _add(table, row["project_id"], number, serves, "", "", "", f"damaged: {row['error']}")
            continue
        images = f"{row['training_images']} + {row['held_out_images']} held out"
        decision = f"{row['decision']}: {row['reason']}"
        _add(table, row["project_id"], row["number"], serves, _time(row["created_at"]), row["base"], images, decision)
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
    try:
        store.publish(project_id, number, store.next_token(project_id), by_hand=True, pinned=pinned)
    except OSError as error:
        raise VersionError(
            f"{error.filename or settings.data_dir}: {error.strerror}. Make room, or mend the permissions",
            public="the data directory cannot be written",
        ) from error
    try:
        with connect_redis(settings, start=False) as connection:
            TrainingQueue(connection).announce_version(project_id, number)
    except (RedisUnavailableError, redis.RedisError):
        pass  # a server notices by itself


def unpin_version(settings: Settings, project_id: int) -> int:
    """Let trainings replace the serving version again; its number, which goes on serving.

    Raises:
        VersionError: as for `use_version`.
    """
    publication = VersionStore(settings.data_dir).publication(project_id)
    number = 0 if publication is None else publication[1]
    use_version(settings, project_id, number)
    return number


def _version(store: VersionStore, project_id: int, number: int, serving: int, *, pinned: bool) -> dict[str, Any]:
    serves = number == serving
    row: dict[str, Any] = {"error": None, "number": number, "project_id": project_id, "serves": serves}
    row["pinned"] = serves and pinned
    try:
        manifest = store.get(project_id, number).manifest
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


def _live(job: LiveJob) -> dict[str, Any]:
    times = {key: value.isoformat() if value else None for key, value in _times(job).items()}
    return {**asdict(job), **times}


def _times(job: LiveJob) -> dict[str, datetime | None]:
    return {"enqueued_at": job.enqueued_at, "started_at": job.started_at}


def _ended(record: JobRecord) -> dict[str, Any]:
    seconds = (record.ended_at - record.started_at).total_seconds()
    return {**record.to_json(), "seconds": round(seconds, 1)}


def _doing(job: Mapping[str, Any]) -> str:
    """What a job that waits or runs does, or why it waits."""
    progress = job["progress"]
    if job["state"] == "retrying":
        return f"will be tried again: {job['problem']}"
    what = f"{progress['phase']}, {progress['percent']} %" if progress else str(job["reason"])
    if progress.get("loss") is not None:
        what += f", loss {progress['loss']:.3g}"
    if progress.get("seconds_left") is not None:
        what += f", {duration(progress['seconds_left'])} left"
    return f"{what}; one more will follow" if job["follow_up"] else what


def prelabelling_line(run: Mapping[str, Any]) -> str:
    """How far a run of pre-labelling is, in one line; `run` is `PrelabelProgress.to_json()`."""
    if not run["total"]:
        what = "pre-labelling: its tasks are being listed"
    else:
        what = f"pre-labelling: {run['done']} of {run['total']} tasks"
    if run["failed"]:
        what += f", {run['failed']} without a prediction"
    if run["rate_per_s"]:
        what += f", {run['rate_per_s']:.1f} a second"
    if run["seconds_left"] is not None and run["state"] == "running":
        what += f", {duration(run['seconds_left'])} left"
    return f"{what}; {run['problem']}" if run["problem"] else what


def duration(seconds: float) -> str:
    """Like "12 s", "3 min" or "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _left_out(counts: Mapping[str, int]) -> str:
    """What a training could not learn from although somebody meant it to."""
    words = {
        "image_failed": "images that could not be fetched",
        "unreadable": "annotations that could not be read",
        "outdated": "images with labels that the config no longer has",
        "no_image": "tasks without an image",
    }
    return ", ".join(f"{counts[key]} {text}" for key, text in words.items() if counts.get(key))


def _add(table: Table, *cells: object) -> None:
    """Add a row as it is: names and reasons may hold what rich would take for markup, like "[/red]"."""
    table.add_row(*(Text(str(cell)) for cell in cells))


def _label_lines(labels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{name}: IoU {item['before']:.2f} to {item['after']:.2f} ({item['images']} images)"
        for name, item in labels.items()
        if item["before"] is not None and item["after"] is not None
    ]


def _time(value: str | None) -> str:
    return "" if value is None else datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")

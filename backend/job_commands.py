"""What `vlm jobs` shows: plain JSON values, and tables of them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping
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
from backend.tables import add_row, local_time
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
        when = local_time(job["started_at"] or job["enqueued_at"])
        add_row(table, job["project_id"], job["job_id"], job["state"], when, _doing(job))
    for run in report["prelabelling"]:
        add_row(
            table, run["project_id"], run["run_id"], run["state"], local_time(run["started_at"]), prelabelling_line(run)
        )
    for job in report["ended"]:
        what = job["reason"] + "".join(f"\n{line}" for line in _label_lines(job["labels"]))
        if job["version"] is not None:
            what = f"version {job['version']}: {what}"
        if left_out := _left_out(job["counts"]):
            what += f"\nleft out: {left_out}"
        add_row(table, job["project_id"], job["job_id"], job["outcome"], local_time(job["ended_at"]), what)
    none = "No job yet. Corrections, or Start Training in Label Studio, ask for one; or vlm prelabel."
    shown: list[RenderableType] = [table if table.row_count else Text(none)]
    if report["queue"] != "running":
        shown.append(Text(f"Waiting and running jobs are not known: {report['queue']}"))
    return Group(*shown)


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


def _label_lines(labels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{name}: IoU {item['before']:.2f} to {item['after']:.2f} ({item['images']} images)"
        for name, item in labels.items()
        if item["before"] is not None and item["after"] is not None
    ]

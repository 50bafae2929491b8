"""`vlm prelabel`: ask for a project's tasks to be pre-labelled, and draw how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from backend.job_commands import duration
from backend.prelabel_queue import PrelabelEnded, PrelabelProgress, PrelabelQueue, PrelabelRequest
from backend.redis_connection import connect_redis
from backend.settings import Settings

_LOOK_S = 0.5

Draw = Callable[[PrelabelProgress], None]


def prelabel(
    settings: Settings,
    project_id: int,
    request: PrelabelRequest,
    *,
    wait: bool,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Ask, and follow what becomes of it.

    Args:
        settings: where Redis is.
        project_id: Label Studio's id.
        request: which tasks.
        wait: until it is done.
        say: tells people what is going on.
        sleep: how to wait between looks.

    Returns:
        JSON values: `request`, and with `wait` `listed` and `ended`; `problem`, "" when all went well.

    Raises:
        RedisUnavailableError: Redis cannot be reached.
    """
    with connect_redis(settings) as connection:
        queue = PrelabelQueue(connection)
        request_id = queue.request(project_id, request)
        if not queue.workers():
            say("no worker listens: start one with `vlm worker`, or the server with --with-worker")
        if not wait:
            return {"request": request_id, "problem": ""}
        with _drawing() as draw:
            return {"request": request_id, **_follow(queue, project_id, request_id, draw, sleep)}


def stop(settings: Settings, project_id: int) -> None:
    """Drop what no job has begun. Raises RedisUnavailableError."""
    with connect_redis(settings) as connection:
        PrelabelQueue(connection).stop(project_id)


def _follow(
    queue: PrelabelQueue, project_id: int, request_id: str, draw: Draw, sleep: Callable[[float], None]
) -> dict[str, Any]:
    while True:
        state = queue.state(project_id, request_id)
        listed, progress, ended = state.listed, state.progress, state.ended
        found = state.to_json()
        if listed is not None and listed.problem:
            return {"listed": found["listed"], "ended": None, "problem": listed.problem}
        if listed is not None and ended is not None and ended.run_id == listed.run_id:
            return {"listed": found["listed"], "ended": found["ended"], "problem": _problem(ended)}
        if progress is not None:
            draw(progress)
            if progress.state == "stopped" and progress.problem:
                return {"listed": found["listed"], "ended": None, "problem": progress.problem}
        sleep(_LOOK_S)


def _problem(ended: PrelabelEnded) -> str:
    if ended.problem:
        return ended.problem
    failed = ended.counts["failed"]
    if not failed:
        return ""
    task_id, reason = next(iter(ended.failures.items()))
    return f"{failed} tasks have no prediction; task {task_id}: {reason}"


def summary(ended: dict[str, Any]) -> str:
    """One line about an ended run, `PrelabelEnded` as JSON values."""
    counts = ended["counts"]
    rate = f", {counts['posted'] / ended['seconds']:.1f} a second" if counts["posted"] and ended["seconds"] else ""
    versions = "".join(f"\n  {count} of {version}" for version, count in sorted(ended["versions"].items()))
    return (
        f"{counts['posted']} predictions imported, {counts['present']} were there already, {counts['failed']} failed, "
        f"in {duration(ended['seconds'])}{rate}{versions}"
    )


@contextmanager
def _drawing() -> Iterator[Draw]:
    """A bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("listing the tasks", total=None, pace="")

        def draw(progress: PrelabelProgress) -> None:
            pace = f"{progress.rate_per_s:.1f}/s" if progress.rate_per_s else ""
            if progress.seconds_left is not None and progress.state == "running":
                pace += f", {duration(progress.seconds_left)} left"
            what = {"queued": "waiting for a worker", "waiting": "waiting", "stopped": "stopped"}.get(
                progress.state, "pre-labelling"
            )
            bar.update(
                task,
                description=f"{what} ({progress.problem})" if progress.problem else what,
                total=progress.total or None,
                completed=progress.done,
                pace=pace,
            )

        yield draw

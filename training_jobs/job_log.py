"""One line of the log for each attempt of a job."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from rq.job import Job

from backend.logs import Line

log = logging.getLogger("training_jobs.job")


def log_job(job: Job, kind: str, outcome: str, **fields: object) -> tuple[datetime, datetime]:
    """Tell what became of an attempt.

    Args:
        job: RQ's; its first argument is Label Studio's id of the project.
        kind: "train", "prelabel" or "list".
        outcome: in a word or two.
        fields: more of it; None is left out.

    Returns:
        When it began and ended; aware, UTC.
    """
    ended = datetime.now(UTC)
    started = job.started_at or ended
    started = started if started.tzinfo else started.replace(tzinfo=UTC)
    seconds = round((ended - started).total_seconds(), 1)
    log.info(Line("job", kind=kind, job=job.id, project=int(job.args[0]), outcome=outcome, s=seconds, **fields))
    return started, ended

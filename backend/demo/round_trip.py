"""Correct, learn, serve the better version: the round trip of `vlm demo --check`.

An annotator is played through Label Studio's API; everything else is the running product: the webhook that
Label Studio sends, the queue, the worker, the gate, the backend that serves the new version, and Label Studio
asking for predictions of that version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from backend.demo.deployment import Deployment
from backend.demo.measure import Measurement, measure
from backend.demo.processes import DemoError, Supervisor
from backend.demo.project import LABELS, NEW_SHAPE, Picture
from backend.job_history import JobHistory, JobRecord
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.errors import LabelStudioError
from vlm_core.demo.scenes import Scene

LEAST_GAIN = 0.25
"""What the new shape must gain, IoU."""
MOST_LOSS = 0.05
"""What a known shape may lose, IoU."""
_TRAINING_S = 1800.0


@dataclass(frozen=True)
class RoundTrip:
    """What the round trip showed."""

    before: Measurement
    after: Measurement

    def failures(self) -> list[str]:
        """Why it does not count as a success; empty if it does."""
        found = []
        if self.after.model_version == self.before.model_version:
            found.append("no better version was published")
        for label in LABELS:
            change = self.after.labels[label].iou - self.before.labels[label].iou
            if label == NEW_SHAPE and change < LEAST_GAIN:
                found.append(f'"{label}" gained {change:+.2f} IoU, at least {LEAST_GAIN:+.2f} is asked for')
            if label != NEW_SHAPE and change < -MOST_LOSS:
                found.append(f'"{label}" lost {-change:.2f} IoU, at most {MOST_LOSS:.2f} is allowed')
        return found


def ml_backend_project(client: LabelStudioClient, project_id: int) -> str:
    """A project as Label Studio names it to backends: id and creation time."""
    created = datetime.fromisoformat(str(client.project(project_id)["created_at"]))
    return f"{project_id}.{int(created.timestamp())}"


def require_predictions(
    client: LabelStudioClient, project_id: int, task_ids: Sequence[int], *, version: str | None = None
) -> str:
    """Make sure that tasks carry predictions in Label Studio, with regions, of one version.

    Args:
        client: Label Studio.
        project_id: the project.
        task_ids: tasks whose predictions are looked at.
        version: the version that they must have; None: any, but one.

    Returns:
        The version.

    Raises:
        DemoError: predictions are missing, empty, or of different versions.
    """
    asked = set(task_ids)
    versions: set[str] = set()
    for task in client.tasks(project_id):
        if int(task["id"]) not in asked:
            continue
        predictions = task["predictions"]
        if version is not None:
            predictions = [item for item in predictions if item["model_version"] == version]
        if not any(item["result"] for item in predictions):
            which = f" of version {version}" if version else ""
            raise DemoError(f"task {task['id']} has no prediction{which} in Label Studio: see the backend's log")
        versions.update(str(item["model_version"]) for item in predictions)
    if len(versions) != 1:
        raise DemoError(f"predictions in Label Studio are of versions {sorted(versions)}, one was expected")
    return versions.pop()


def served_version(client: LabelStudioClient, project_id: int) -> str | None:
    """The version that the backend reports to Label Studio for a project; asks it anew."""
    backends = client.ml_backends(project_id)
    return str(backends[0]["model_version"]) if backends and backends[0].get("model_version") else None


def correct(client: LabelStudioClient, tasks: Mapping[int, Picture], say: Callable[[str], None]) -> None:
    """Submit the true masks and descriptions of tasks as annotations, one after the other like a person.

    As the editor does, each names the prediction that it began from: the task's newest one.
    """
    for number, (task_id, picture) in enumerate(sorted(tasks.items()), start=1):
        begun_from = max((int(item["id"]) for item in client.task_predictions(task_id)), default=None)
        client.create_annotation(task_id, picture.annotation(), lead_time=12.0, parent_prediction=begun_from)
        if number % 16 == 0 or number == len(tasks):
            say(f"  {number} of {len(tasks)} corrections submitted")


def wait_for_training(
    supervisor: Supervisor,
    deployment: Deployment,
    project_id: int,
    say: Callable[[str], None],
    *,
    timeout_s: float = _TRAINING_S,
) -> list[JobRecord]:
    """Wait until the project's jobs, those that follow on others included, are done.

    Args:
        supervisor: watches the processes meanwhile.
        deployment: whose queue and history to look at.
        project_id: the project.
        say: prints a line for the user.
        timeout_s: how long to wait.

    Returns:
        What became of all the project's jobs, the last one first.

    Raises:
        DemoError: no job was made of the corrections, or they take too long.
    """
    queue, last = deployment.connect_queue(), ""

    def idle() -> bool | None:
        nonlocal last
        try:
            job = queue.status(project_id)
        except redis.RedisError:
            return None  # it may be restarted meanwhile
        if job is None:
            return True
        phase = f"{job.state}: {job.progress['phase']}" if job.progress.get("phase") else str(job.state)
        if phase != last:
            say(f"  training job {phase}")
            last = phase
        return None

    # Label Studio sends its webhook within the annotator's submit: a job is there by now, or never will be.
    supervisor.wait_for("the training job to end", idle, timeout_s=timeout_s, hint="`vlm jobs` shows what it does.")
    records = JobHistory(deployment.data_dir).list(project_id)
    if not records:
        raise DemoError("no training job came of the corrections: did Label Studio's webhook reach the backend?")
    for record in reversed(records):
        say(f"  {record.outcome}: {record.reason}")
    return records


def run_round_trip(
    supervisor: Supervisor,
    deployment: Deployment,
    client: LabelStudioClient,
    project_id: int,
    tasks: Mapping[int, Picture],
    scenes: Sequence[Scene],
    *,
    left_alone: int,
    say: Callable[[str], None] = print,
) -> RoundTrip:
    """Do the round trip on a connected project.

    Args:
        supervisor: watches the processes meanwhile.
        deployment: what runs.
        client: its Label Studio.
        project_id: a project whose predictions were retrieved.
        tasks: its pictures by task id.
        scenes: unseen scenes to measure on.
        left_alone: how many tasks are not corrected; their new predictions are looked at.
        say: prints a line for the user.

    Raises:
        DemoError: a step failed. A version that is not better is no error: see `RoundTrip.failures`.
    """
    try:
        retrieved = require_predictions(client, project_id, list(tasks))
        say(f"Label Studio has predictions of {retrieved} for {len(tasks)} pictures")
        project = ml_backend_project(client, project_id)
        before = measure(deployment.backend_url, project, scenes, basic_auth=deployment.basic_auth)
        _same("the predictions in Label Studio", retrieved, "those of /predict", before.model_version)
        ordered = sorted(tasks)
        corrected, others = ordered[: len(ordered) - left_alone], ordered[len(ordered) - left_alone :]
        say(f'Correcting {len(corrected)} pictures; "{NEW_SHAPE}" is new to the model')
        correct(client, {task_id: tasks[task_id] for task_id in corrected}, say)
        wait_for_training(supervisor, deployment, project_id, say)
        after = measure(deployment.backend_url, project, scenes, basic_auth=deployment.basic_auth)
        _same("/setup", served_version(client, project_id), "/predict", after.model_version)
        if after.model_version != before.model_version and others:
            client.retrieve_predictions(project_id, others)
            require_predictions(client, project_id, others, version=after.model_version)
            say(f"Label Studio retrieved predictions of {after.model_version}")
    except LabelStudioError as error:
        raise DemoError(f"Label Studio: {error}") from None
    return RoundTrip(before, after)


def print_round_trip(outcome: RoundTrip, scenes: int, console: Console | None = None) -> None:
    """One table: per label the IoU and the false alarms before and after, and the two versions."""
    table = Table(title=f"Before and after the corrections, on {scenes} unseen scenes", title_justify="left")
    for column in ("label", "in scenes", "IoU before", "IoU after", "change", "false alarms before", "after"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label in LABELS:
        old, new = outcome.before.labels[label], outcome.after.labels[label]
        table.add_row(
            f"{label} (new)" if label == NEW_SHAPE else label,
            str(old.present),
            f"{old.iou:.3f}",
            f"{new.iou:.3f}",
            f"{new.iou - old.iou:+.3f}",
            f"{old.false_alarms} of {old.absent}",
            f"{new.false_alarms} of {new.absent}",
        )
    console = console or Console(width=110)
    console.print(table)
    console.print(f"version before: {outcome.before.model_version}\nversion after:  {outcome.after.model_version}")


def _same(first: str, one: Any, second: str, other: Any) -> None:
    if one != other:
        raise DemoError(f"{first} is of version {one}, {second} of {other}: they must agree")

"""What the routes answer, as models: for the OpenAPI document, which tests hold every answer against.

Answers are made in `backend.api.handlers` as plain JSON; nothing is checked or changed by these while serving. A member
that may be absent has a default here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorReply(_Reply):
    """Why there is no answer."""

    error: str


class HealthReply(_Reply):
    """The server runs, and where loading the model stands."""

    status: Literal["UP"]
    model: Literal["loading", "ready", "failed"]


class ReadyPart(_Reply):
    """One thing that the server works with."""

    state: Literal["up", "loading", "down", "not set"]
    reason: str
    needed_to_predict: bool


class ReadyReply(_Reply):
    """Whether predictions are answered."""

    status: Literal["ready", "degraded", "not ready"]
    parts: dict[Literal["model", "redis", "label_studio"], ReadyPart] = Field(
        default_factory=dict, description="Only for who has credentials."
    )


class LeftAloneTag(_Reply):
    """A control tag that is not predicted."""

    name: str
    tag: str
    reason: str


class SetupReply(_Reply):
    """What serves the project."""

    model_version: str
    left_alone: list[LeftAloneTag] = Field(default_factory=list)
    config_error: str = Field("", description="What is wrong with the labelling config; every prediction says it too.")


class Prediction(_Reply):
    """A task's prediction; `result` is empty where nothing was found."""

    model_version: str
    score: Annotated[float, Field(ge=0, le=1)]
    result: list[dict[str, Any]]


class NoPrediction(_Reply):
    """Why a task has no prediction. Label Studio stores nothing and may ask again."""

    error: str


class PredictReply(_Reply):
    """One item per task, in order."""

    results: list[Prediction | NoPrediction]
    errors: list[str] = Field(default_factory=list, description="The reasons, for an annotator at the screen.")


class WebhookReply(_Reply):
    """What became of an event."""

    status: Literal["noted", "ignored", "queued", "already queued", "will follow"]
    job: str = ""
    action: str = ""


class StoredVersionReply(_Reply):
    """One version of a project."""

    number: int
    created_at: datetime
    base: str
    decision: str
    reason: str
    metrics: dict[str, Any]


class VersionsReply(_Reply):
    """Names that serve now; with `project`, that project's versions."""

    versions: list[str]
    current: int = 0
    history: list[StoredVersionReply] = Field(default_factory=list)


class ModelStatus(_Reply):
    """The base model."""

    status: Literal["loading", "ready", "failed"]
    name: str
    reason: str = ""
    note: str = ""


class JobStatus(_Reply):
    """A job that waits or runs."""

    project: int
    state: Literal["queued", "running", "retrying"]
    progress: dict[str, Any]


class QueueStatus(_Reply):
    """The training queue."""

    status: Literal["up", "down"]
    reason: str = ""
    jobs: list[JobStatus] = Field(default_factory=list)


class PredictionNote(_Reply):
    """The last `/predict` of a project."""

    at: datetime
    tasks: int
    failed: int


class EventNote(_Reply):
    """The last webhook about a project."""

    at: datetime
    action: str
    outcome: str


class ErrorNote(_Reply):
    """The last error that somebody was told about a project."""

    at: datetime
    stage: str
    reason: str


class ProjectStatus(_Reply):
    """What last happened to a project; null: nothing yet."""

    version: str | None
    config_problem: str | None
    last_prediction: PredictionNote | None
    last_event: EventNote | None
    last_error: ErrorNote | None


class StatusReply(_Reply):
    """Where everything stands."""

    version: str
    uptime_s: float
    model: ModelStatus
    queue: QueueStatus
    projects: dict[str, ProjectStatus]


class CancelledReply(_Reply):
    """What became of the project's training: removed from the queue, being stopped, or there was none."""

    status: Literal["removed", "stopping", "nothing"]


class PrelabelAskedReply(_Reply):
    """The workers will list the tasks and predict them."""

    status: Literal["queued"]
    request: str


class ListedNote(_Reply):
    """What a request to pre-label has come to: how many tasks it names, or why it cannot be met."""

    found: int
    run_id: str
    problem: str


class PrelabelProgressNote(_Reply):
    """How far a run of pre-labelling is."""

    project_id: int
    run_id: str
    state: Literal["queued", "running", "waiting", "stopped"]
    started_at: datetime
    total: int
    done: int
    posted: int
    failed: int
    rate_per_s: float | None
    seconds_left: float | None
    versions: dict[str, int]
    problem: str
    job_ids: list[str]


class PrelabelEndedNote(_Reply):
    """What became of the latest run of pre-labelling."""

    run_id: str
    counts: dict[str, int]
    versions: dict[str, int]
    seconds: float
    label_studio_s: float
    problem: str
    failures: dict[str, str]


class PrelabelReply(_Reply):
    """Where the pre-labelling of a project stands; null: nothing is known, or there is nothing to do."""

    listed: ListedNote | None
    progress: PrelabelProgressNote | None
    ended: PrelabelEndedNote | None

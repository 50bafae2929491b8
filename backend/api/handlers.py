"""What each route does, in plain functions: bytes in, a reply out, no web framework.

They run in threads, since parsing a body of megabytes would hold up `/health`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from backend.activity import Activity, ProjectActivity
from backend.api.errors import UnavailableError
from backend.api.events import OTHER_EVENTS, START_TRAINING, TRAINING_EVENTS
from backend.api.schemas import (
    PredictRequest,
    SetupRequest,
    WebhookRequest,
    parse,
    project_of_event,
)
from backend.label_studio.config import LabelConfigError, PredictionPlan
from backend.metrics import OTHER, Metrics
from backend.model_store import ModelLoadingError, ModelStore, ModelUnavailableError
from backend.nudges import Nudges
from backend.plans import ExtraParams, PlanCache
from backend.predictor import Answer, Deadline, servable_controls
from backend.queue import Cancelled, LiveJob, QueueCounts, RequestOutcome
from backend.readiness import Readiness
from backend.versions import VersionError, VersionStore

log = logging.getLogger(__name__)


class QueueUnavailableError(Exception):
    """The training queue cannot be reached.

    Attributes:
        public: the reason without addresses and paths, fit for a client.
    """

    def __init__(self, public: str = "the job queue (Redis) cannot be reached; the server's log says why") -> None:
        super().__init__(public)
        self.public = public


class Training(Protocol):
    """What the routes need of the training queue. Every call may raise `QueueUnavailableError`."""

    def request_training(self, project_id: int, *, reason: str) -> RequestOutcome:
        """Ask for one training that sees everything saved until now."""

    def status(self, project_id: int) -> LiveJob | None:
        """The project's job that waits or runs."""

    def cancel(self, project_id: int) -> Cancelled:
        """Give up the project's training."""

    def jobs(self) -> list[LiveJob]:
        """Jobs that wait or run."""

    def ping(self) -> None:
        """Whether it is there."""

    def counts(self) -> QueueCounts:
        """How many jobs and workers there are."""


class Predicts(Protocol):
    """What the routes need of `backend.predictor.Predictor`."""

    def predict(
        self,
        tasks: Sequence[Any],
        *,
        project_id: int,
        label_config: str,
        deadline: Deadline,
        context: object = None,
    ) -> Answer:
        """Answer tasks of one project."""


@dataclass(frozen=True)
class Reply:
    """What a route answers.

    Attributes:
        body: a JSON object.
        status: HTTP status.
        notes: for the log line of the request; never a payload.
    """

    body: Mapping[str, Any]
    status: int = 200
    notes: Mapping[str, object] = field(default_factory=dict)


class Handlers:
    """The routes' work. Safe to share between threads."""

    def __init__(
        self,
        *,
        store: ModelStore,
        versions: VersionStore,
        predictor: Predicts,
        plans: PlanCache,
        extra_params: ExtraParams,
        training: Training,
        activity: Activity,
        readiness: Readiness,
        metrics: Metrics,
    ) -> None:
        """Starts nothing."""
        self._store = store
        self._versions = versions
        self._predictor = predictor
        self._plans = plans
        self._extra_params = extra_params
        self._training = training
        self._activity = activity
        self._readiness = readiness
        self._metrics = metrics
        self._nudges = Nudges(self._pass_on)
        self._started = time.time()
        self._served: dict[int, str] = {}

    def health(self) -> Reply:
        """That the server runs, and where loading the model stands. Never waits for anything."""
        return Reply({"status": "UP", "model": self._store.state.status})

    def ready(self, *, details: bool) -> Reply:
        """Whether predictions are answered, 503 where not; with `details` the state of each part and the reasons."""
        found = self._readiness.ready()
        body: dict[str, Any] = {"status": found.status}
        if details:
            body["parts"] = {
                part.name: {"state": part.state, "reason": part.reason, "needed_to_predict": part.needed}
                for part in found.parts
            }
        return Reply(body, status=503 if found.status == "not ready" else 200)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """What was counted, and its media type; `accept` is the header."""
        return self._metrics.exposition(accept)

    def setup(self, body: bytes) -> Reply:
        """The name of the version that serves the project.

        A labelling config that cannot be used does not break it: Label Studio would take the backend for dead.
        The reason is logged, part of the reply and of `/status`, and every prediction says it.

        Raises:
            UnavailableError: the version is not known yet.
        """
        request = parse(SetupRequest, body)
        problem, plan = "", None
        try:
            extra = self._extra_params.remember(request.project, request.extra_params)
            plan = self._plans.get(request.label_config, extra).plan
        except LabelConfigError as error:
            problem = str(error)
            log.warning("project=%d unusable: %s", request.project, error)
        except OSError as error:
            log.error("project=%d: the data directory cannot be written: %s", request.project, error)
            raise UnavailableError("the server cannot write to its data directory; its log says why") from error
        try:
            version = self._store.version(request.project, plan.hash_payload() if plan else _unusable(request))
        except (ModelUnavailableError, VersionError) as error:
            if not isinstance(error, ModelLoadingError):  # every start begins with it
                self._activity.error(request.project, "setup", error.public)
            raise _unavailable(error) from error
        self._serves(request.project, version.name)
        self._activity.config(request.project, problem)
        reply: dict[str, Any] = {"model_version": version.name}
        if plan is None:
            reply["config_error"] = problem
        else:
            reply["left_alone"] = self._left_alone(plan)
        return Reply(reply, notes={"project": request.project, "version": version.name})

    def predict(self, body: bytes, deadline: Deadline) -> Reply:
        """One item per task, in order; see `backend.predictor`."""
        request = parse(PredictRequest, body)
        answer = self._predictor.predict(
            request.tasks,
            project_id=request.project,
            label_config=request.label_config,
            deadline=deadline,
            context=request.context,
        )
        if answer.model_version:
            self._serves(request.project, answer.model_version)
        errors = [item["error"] for item in answer.items if "error" in item]
        if request.context is None:
            self._activity.predicted(request.project, len(answer.items), answer.failed)
            if errors:
                self._activity.error(request.project, "predict", errors[0])
        reply: dict[str, Any] = {"results": answer.items}
        if request.context is not None and errors:
            # An annotator waits at the screen: the reason belongs to them, and only a 200 reaches them.
            reply["errors"] = errors
        notes = {
            "project": request.project,
            "tasks": len(answer.items),
            "failed": answer.failed,
            "interactive": request.context is not None,
            "version": answer.model_version or "-",
            **answer.times,
        }
        return Reply(reply, notes=notes)

    def event(self, request: WebhookRequest) -> Reply:
        """Acknowledge an event that is not START_TRAINING; a reason to train is seen to later. Never waits."""
        action = request.action
        if action not in TRAINING_EVENTS:
            self._metrics.event(action if action in OTHER_EVENTS else OTHER, "ignored")
            return Reply({"status": "ignored", "action": action}, notes={"action": action})
        project_id = project_of_event(request)
        self._metrics.event(action, "noted")
        self._nudges.add(project_id, action)
        return Reply({"status": "noted"}, notes={"action": action, "project": project_id})

    def start_training(self, request: WebhookRequest) -> Reply:
        """Queue a training that somebody asked for.

        Raises:
            UnavailableError: the queue is down; nothing else would remember it.
        """
        project_id = project_of_event(request)
        try:
            outcome = self._training.request_training(project_id, reason=START_TRAINING)
        except QueueUnavailableError as error:
            raise self.not_queued(request, error.public) from error
        self._event(project_id, START_TRAINING, outcome.state)
        return Reply(
            {"status": outcome.state, "job": outcome.job_id},
            status=201 if outcome.state == "queued" else 200,
            notes={"action": START_TRAINING, "project": project_id, "queue": outcome.state.replace(" ", "-")},
        )

    def not_queued(self, request: WebhookRequest, reason: str) -> UnavailableError:
        """The error for a training that somebody asked for while the queue is down or too slow."""
        project_id = project_of_event(request)
        self._event(project_id, START_TRAINING, "not queued")
        self._activity.error(project_id, "webhook", reason)
        return UnavailableError(f"no training was queued: {reason}")

    def close(self) -> None:
        """Pass on the events that were acknowledged."""
        self._nudges.close()

    def versions(self, project: int | None) -> Reply:
        """Names of the versions that serve now; with a project, its history.

        Raises:
            UnavailableError: the project's versions cannot be read.
        """
        if project is None:
            return Reply({"versions": sorted(self._served.values())})
        try:
            current = self._versions.current(project)
            stored = self._versions.list(project)
        except VersionError as error:
            raise _unavailable(error) from error
        history = [
            {
                "number": version.number,
                "created_at": version.manifest.created_at.isoformat(),
                "base": version.manifest.base.name,
                "decision": version.manifest.decision,
                "reason": version.manifest.reason,
                "metrics": version.manifest.metrics,
            }
            for version in stored
        ]
        name = self._served.get(project)
        return Reply(
            {
                "versions": [name] if name else [],
                "current": 0 if current is None else current.number,
                "history": history,
            }
        )

    def status(self) -> Reply:
        """Where everything stands, for the operator."""
        state = self._store.state
        queue: dict[str, Any]
        try:
            jobs = self._training.jobs()
        except QueueUnavailableError as error:
            queue = {"status": "down", "reason": error.public}
        else:
            queue = {
                "status": "up",
                "jobs": [{"project": job.project_id, "state": job.state, "progress": job.progress} for job in jobs],
            }
        model: dict[str, Any] = {"status": state.status, "name": state.model}
        if state.reason:
            model["reason"] = state.reason
        if state.model == "demo":
            model["note"] = "the demo checkpoint knows coloured shapes only, nothing of photographs"
        return Reply(
            {
                "version": importlib.metadata.version("label-studio-vlm-backend"),
                "uptime_s": round(time.time() - self._started, 1),
                "model": model,
                "queue": queue,
                "projects": {str(project): _project(known) for project, known in self._activity.all().items()},
            }
        )

    def _serves(self, project_id: int, version: str) -> None:
        self._served[project_id] = version
        self._activity.served(project_id, version)

    def _event(self, project_id: int, action: str, outcome: str) -> None:
        self._activity.event(project_id, action, outcome)
        self._metrics.event(action, outcome)

    def _pass_on(self, project_id: int, action: str) -> bool:
        """Ask for a training after an event; whether the queue has taken it."""
        try:
            outcome = self._training.request_training(project_id, reason=action)
        except QueueUnavailableError as error:
            self._activity.event(project_id, action, "not queued")
            self._activity.error(project_id, "webhook", error.public)
            return False
        self._activity.event(project_id, action, outcome.state)
        return True

    def _left_alone(self, plan: PredictionPlan) -> list[dict[str, str]]:
        """What of the config is not predicted, and why."""
        left = [{"name": item.name, "tag": item.tag, "reason": item.reason} for item in plan.ignored]
        model = self._store.model()
        servable = servable_controls(plan, model)
        reason = f"the model {model.name} ranks tags but gives no masks"
        left += [{"name": c.from_name, "tag": c.kind, "reason": reason} for c in plan.controls if c not in servable]
        return left


def _project(known: ProjectActivity) -> dict[str, Any]:
    """One project of `/status`; what never happened is null."""

    def fact(value: BaseModel | None) -> dict[str, Any] | None:
        return None if value is None else value.model_dump(mode="json")

    return {
        "version": None if known.served is None else known.served.version,
        "config_problem": None if known.config is None else known.config.problem or None,
        "last_prediction": fact(known.prediction),
        "last_event": fact(known.event),
        "last_error": fact(known.error),
    }


def _unavailable(error: ModelUnavailableError | VersionError) -> UnavailableError:
    return UnavailableError(error.public)


def _unusable(request: SetupRequest) -> dict[str, Any]:
    """What stands for a config without a plan in the version's hash: mending it changes the name."""
    text = json.dumps([request.label_config, request.extra_params], sort_keys=True, default=str)
    return {"unusable": hashlib.sha256(text.encode()).hexdigest()}

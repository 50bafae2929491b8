"""What all tasks of one request share, and what each control says of a task."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from backend.label_studio.config import ControlPlan
from backend.label_studio.results import Region
from backend.metrics import Times
from backend.model_store import ServedVersion, ServingModel
from backend.plans import ConfigPlan


class TaskError(Exception):
    """A reason, fit for a client, why one task has no prediction.

    Attributes:
        reason: what it counts as.
    """

    def __init__(self, message: str, reason: Literal["task_data", "config", "late", "refused"] = "task_data") -> None:
        """`message`: for people."""
        super().__init__(message)
        self.reason = reason


class Deadline:
    """A moment by which an answer must be given."""

    def __init__(self, seconds: float) -> None:
        """Starts to run now."""
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, 0.0 when it has passed."""
        return max(0.0, self._ends - time.monotonic())

    @property
    def late(self) -> str:
        """What is said of a task that was not done by then."""
        return f"not done within {self.seconds:g} s: ask again, what is done is not asked twice"


@dataclass(frozen=True)
class PredictionRequest:
    """What all tasks of one request share.

    Attributes:
        config: of the project.
        controls: what to answer; all that the model can answer, or what an annotator asks for.
        version: of the project.
        model: that answers for this version.
        project_id: Label Studio's id.
        deadline: of the whole request.
        times: where its time goes.
        context: of an interactive request, as the editor made it; None for predictions.
    """

    config: ConfigPlan
    controls: tuple[ControlPlan, ...]
    version: ServedVersion
    model: ServingModel
    project_id: int
    deadline: Deadline
    times: Times
    context: object = None

    def check_time(self) -> None:
        """Raise TaskError where the time is up: what takes long asks now and then."""
        if not self.deadline.remaining():
            raise TaskError(self.deadline.late, "late")


@dataclass(frozen=True)
class ControlAnswer:
    """What one control says of one image.

    Attributes:
        regions: its results; empty where nothing was found.
        scores: of what it was asked for, 0..1, also of what was not found.
    """

    regions: list[Region]
    scores: list[float]

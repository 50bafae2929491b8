"""What the page shows, as plain values; how it looks is `backend.page.html`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from backend.acceptance_figures import Summary
from backend.readiness import PartState


@dataclass(frozen=True)
class Note:
    """Something that happened, or an error: when, and one sentence.

    Attributes:
        at: aware; None where it is not known.
        text: for people; no path, token or payload.
    """

    text: str
    at: datetime | None = None


@dataclass(frozen=True)
class JobView:
    """A job that waits or runs.

    Attributes:
        kind: "training", "pre-labelling" ...
        project_id: Label Studio's id.
        state: "running", "queued", "retrying".
        phase: what it does now; "" where it says nothing.
        percent: 0 to 100; None before it says anything.
        since: when it was asked for or began; aware.
        left: time that it needs still, in words; "" where nothing is known.
        problem: why its last attempt failed; "" where none has.
    """

    kind: str
    project_id: int
    state: str
    phase: str = ""
    percent: float | None = None
    since: datetime | None = None
    left: str = ""
    problem: str = ""


@dataclass(frozen=True)
class LabelGain:
    """IoU of one label before and after a training, on the images that decided; None where none could tell."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class VersionView:
    """A version of a project.

    Attributes:
        number: 1, 2, 3 ...
        made_at: aware.
        better: it passed the gate.
        reason: of the gate, one sentence.
        gain: mean IoU more than the version before, on images that neither had learned from; None: not measured.
        images: on how many.
        labels: per label.
    """

    number: int
    made_at: datetime
    better: bool
    reason: str
    gain: float | None = None
    images: int = 0
    labels: Mapping[str, LabelGain] = field(default_factory=dict)


@dataclass(frozen=True)
class ProjectView:
    """One project.

    Attributes:
        project_id: Label Studio's id.
        title: Label Studio's; "" where it is not known.
        serving: number of the version that serves; 0 is the base model.
        serving_name: its whole name; "" until Label Studio has asked for it.
        versions: oldest first.
        acceptance: what annotators made of the predictions.
        last_training: what the last training came to.
        last_prelabelling: the same of pre-labelling; None where there was none.
        last_event: the last event of Label Studio's.
        last_error: the last error.
        problem: why the project cannot be served at all, like a labelling config that cannot be used; "" if it can.
    """

    project_id: int
    title: str = ""
    serving: int = 0
    serving_name: str = ""
    versions: tuple[VersionView, ...] = ()
    acceptance: Summary = field(default_factory=Summary)
    last_training: Note | None = None
    last_prelabelling: Note | None = None
    last_event: Note | None = None
    last_error: Note | None = None
    problem: str = ""


@dataclass(frozen=True)
class LabelStudioView:
    """Whether Label Studio answers the backend; if not, why."""

    state: PartState = "up"
    reason: str = ""


@dataclass(frozen=True)
class StatusView:
    """The whole page.

    Attributes:
        now: aware.
        release: of this package.
        started_at: of the server, aware.
        model: name of the base model.
        model_state: "ready", "loading" or "failed".
        model_reason: why it is not ready; "" if it is.
        jobs: that wait or run; None where the queue cannot be reached.
        queue_reason: why it cannot; "" if it can.
        workers: that are signed on; None where it is not known.
        label_studio: whether it is there.
        projects: in the order of the page.
        others: projects that are not shown, with their titles.
        chosen: only one project was asked for.
        problems: further things that the operator should mend, one sentence each.
    """

    now: datetime
    release: str
    started_at: datetime
    model: str
    model_state: Literal["ready", "loading", "failed"]
    model_reason: str = ""
    jobs: tuple[JobView, ...] | None = ()
    queue_reason: str = ""
    workers: int | None = None
    label_studio: LabelStudioView = LabelStudioView()
    projects: tuple[ProjectView, ...] = ()
    others: tuple[tuple[int, str], ...] = ()
    chosen: bool = False
    problems: tuple[str, ...] = ()

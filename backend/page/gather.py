"""Collects what the page shows, from what lies on the disk and from Redis; asks neither the model nor Label Studio."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from backend.acceptance import Acceptance, AcceptanceStore
from backend.acceptance_figures import Summary, summarise
from backend.activity import Activity, ProjectActivity
from backend.api.handlers import QueueUnavailableError, Training
from backend.job_history import JobHistory, JobRecord
from backend.model_store import ModelStore
from backend.page import words
from backend.page.report_view import ReportView, report_view
from backend.page.views import JobView, LabelGain, LabelStudioView, Note, ProjectView, StatusView, VersionView
from backend.prelabel_queue import PrelabelProgress
from backend.queue import LiveJob
from backend.readiness import Readiness
from backend.versions import StoredVersion, VersionError, VersionStore, read_version_name

log = logging.getLogger(__name__)

SHOWN = 10
"""Projects with all there is to say, those in which something happened last; more are only named."""


class Prelabelling(Protocol):
    """What the page needs of `backend.handing_over.PrelabelLink`."""

    def jobs(self) -> list[PrelabelProgress]:
        """All projects that have something to pre-label. Raises QueueUnavailableError."""


class PageSource:
    """Makes the page's view anew each time. Safe to share between threads."""

    def __init__(
        self,
        *,
        store: ModelStore,
        versions: VersionStore,
        data_dir: Path,
        activity: Activity,
        training: Training,
        prelabelling: Prelabelling,
        readiness: Readiness,
        titles: Callable[[], Mapping[int, str]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Nothing is read here.

        Args:
            store: whose state is shown.
            versions: of the projects.
            data_dir: where acceptance and the history of the jobs lie.
            activity: what happened last.
            training: the queue of trainings.
            prelabelling: what is being pre-labelled.
            readiness: whether Label Studio is there.
            titles: of the projects, as far as they are known; must answer at once.
            clock: the time, aware.
        """
        self._store = store
        self._versions = versions
        self._data_dir = data_dir
        self._acceptance = AcceptanceStore(data_dir)
        self._summaries: dict[int, tuple[Acceptance, Summary]] = {}
        self._history = JobHistory(data_dir)
        self._activity = activity
        self._training = training
        self._prelabelling = prelabelling
        self._readiness = readiness
        self._titles = titles
        self._clock = clock
        self._started = clock()

    def start(self) -> None:
        """Have the titles fetched, so that the first page has them already."""
        self._titles()

    def view(self, project_id: int | None = None) -> StatusView:
        """What there is to see now.

        Args:
            project_id: only this project; None: all.
        """
        state, titles = self._store.state, self._titles()
        jobs: tuple[JobView, ...] | None
        workers, reason = None, ""
        try:
            trainings = [_job(job) for job in self._training.jobs()]
            jobs = (*trainings, *(_prelabelling(run) for run in self._prelabelling.jobs()))
            workers = self._training.counts().workers
        except QueueUnavailableError as error:
            jobs, reason = None, error.public
        activity = self._activity.all()
        known = sorted(set(self._versions.project_ids()) | set(activity))
        if project_id is not None:
            shown, others = [number for number in known if number == project_id], []
        else:
            by_time = sorted(known, key=lambda number: self._last(number, activity), reverse=True)
            shown, others = sorted(by_time[:SHOWN]), sorted(by_time[SHOWN:])
        return StatusView(
            now=self._clock(),
            release=importlib.metadata.version("label-studio-vlm-backend"),
            started_at=self._started,
            model=state.model,
            model_state=state.status,
            model_reason=state.reason,
            jobs=jobs,
            queue_reason=reason,
            workers=workers,
            projects=tuple(
                self._project(number, titles.get(number, ""), activity.get(number, ProjectActivity()))
                for number in shown
            ),
            label_studio=self._label_studio(),
            others=tuple((number, titles.get(number, "")) for number in others),
            chosen=project_id is not None,
        )

    def report(self, project_id: int, number: int) -> ReportView:
        """What the report on a version shows.

        Raises:
            VersionNotFoundError: there is no such version.
            VersionCorruptError: one of its files cannot be used.
        """
        return report_view(self._versions, project_id, number, title=self._titles().get(project_id, ""))

    def _label_studio(self) -> LabelStudioView:
        (part,) = (part for part in self._readiness.ready().parts if part.name == "label_studio")
        return LabelStudioView(part.state, part.reason)

    def _last(self, project_id: int, activity: Mapping[int, ProjectActivity]) -> datetime:
        """When something happened last."""
        times = [activity[project_id].newest] if project_id in activity else []
        read_at = self._acceptance.get(project_id).read_at
        return max([time for time in (*times, read_at) if time is not None], default=datetime.min.replace(tzinfo=UTC))

    def _project(self, project_id: int, title: str, activity: ProjectActivity) -> ProjectView:
        problem = "" if activity.config is None else activity.config.problem
        if problem:
            problem = f"The labelling config cannot be used: {problem}"
        versions: tuple[VersionView, ...] = ()
        serving = 0
        try:
            versions = tuple(_version(stored) for stored in self._versions.list(project_id))
            current = self._versions.current(project_id)
            serving = 0 if current is None else current.number
        except VersionError as error:
            log.error("project=%d: %s", project_id, error)
            problem = f"Its versions cannot be read: {error.public}"
        name = "" if activity.served is None else activity.served.version
        answered = read_version_name(name)
        if answered is not None and answered.number == 0:
            serving = 0  # a version of another checkpoint is current, but does not serve
        elif answered is not None and answered.number != serving:
            name = ""  # of before the last publication
        last, event = self._history.latest(project_id, "train"), activity.event
        prelabelled = self._history.latest(project_id, "prelabel")
        return ProjectView(
            project_id=project_id,
            title=title,
            serving=serving,
            serving_name=name,
            versions=versions,
            acceptance=self._summary(project_id),
            last_training=None if last is None else self._job_note(last),
            last_prelabelling=None if prelabelled is None else self._job_note(prelabelled),
            last_event=None if event is None else Note(f"{event.action}, {event.outcome}", event.at),
            last_error=self._last_error([last, prelabelled], activity),
            problem=problem,
        )

    def _summary(self, project_id: int) -> Summary:
        """The figures, made anew only when the records have changed."""
        records = self._acceptance.get(project_id)
        known = self._summaries.get(project_id)
        if known is None or known[0] is not records:
            known = self._summaries[project_id] = (records, summarise(records))
        return known[1]

    def _job_note(self, record: JobRecord) -> Note:
        # Reasons are written for the operator, and may name a file.
        reason = record.reason.replace(str(self._data_dir), "the data directory")
        said = reason if reason.startswith(record.outcome) else f"{record.outcome}: {reason}"
        return Note(said, record.ended_at)

    def _last_error(self, last: Sequence[JobRecord | None], activity: ProjectActivity) -> Note | None:
        error = activity.error
        notes = [] if error is None else [Note(f"{error.reason} ({error.stage})", error.at)]
        notes += [self._job_note(record) for record in last if record is not None and record.outcome == "failed"]
        return max(notes, key=lambda note: note.at or self._started, default=None)


def _job(job: LiveJob) -> JobView:
    percent = job.progress.get("percent")
    return JobView(
        kind="training",
        project_id=job.project_id,
        state=job.state,
        phase=str(job.progress.get("phase") or ""),
        percent=float(percent) if isinstance(percent, (int, float)) and job.state == "running" else None,
        since=job.started_at if job.state == "running" else job.enqueued_at,
        problem=f"The last attempt failed: {job.problem}" if job.problem else "",
    )


def _prelabelling(run: PrelabelProgress) -> JobView:
    left = "" if run.seconds_left is None else f"about {words.span(timedelta(seconds=run.seconds_left))} left"
    rate = "" if not run.rate_per_s else f", {run.rate_per_s:.1f} tasks a second"
    return JobView(
        kind="pre-labelling",
        project_id=run.project_id,
        state=run.state,
        phase=f"{run.done} of {words.count(run.total, 'task')}{rate}",
        percent=100 * run.done / run.total if run.total else None,
        since=run.started_at,
        left=left,
        problem=run.problem,
    )


def _version(stored: StoredVersion) -> VersionView:
    manifest = stored.manifest
    gain, images = manifest.metrics.get("gain"), manifest.metrics.get("images")
    return VersionView(
        number=stored.number,
        made_at=manifest.created_at,
        better=manifest.decision == "better",
        reason=manifest.reason,
        gain=gain if isinstance(gain, (int, float)) else None,
        images=images if isinstance(images, int) else 0,
        labels=_labels(stored),
    )


def _labels(stored: StoredVersion) -> dict[str, LabelGain]:
    """Per label its IoU before and after, as the gate has measured it."""
    try:
        labels = (stored.metrics().get("verdict") or {}).get("labels") or {}
        return {str(name): LabelGain(item["iou"]["old"], item["iou"]["new"]) for name, item in labels.items()}
    except (VersionError, AttributeError, KeyError, TypeError) as error:
        log.warning("project=%d version=%d: its metrics: %s", stored.project_id, stored.number, error)
        return {}

"""Noting what annotators made of predictions, whenever a job reads a project's annotations anyway.

It is for people to look at, and a training never fails for it: an annotation that surprises the comparison is
logged and left out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from backend.acceptance import AcceptanceReading, AcceptanceStore
from backend.label_studio.config import PredictionPlan
from backend.label_studio.truth import annotations_that_count
from training_jobs.annotation_state import Stamps, stamps_of
from training_jobs.corrections import Json

log = logging.getLogger(__name__)

_SURPRISES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class AcceptanceNotes:
    """Notes of one reading: `see` every annotated task, then `keep` them."""

    def __init__(self, data_dir: Path, project_id: int, plan: PredictionPlan) -> None:
        """Take up what the reading before has noted.

        Args:
            data_dir: of the settings.
            project_id: Label Studio's id.
            plan: its labelling config.
        """
        self._store = AcceptanceStore(data_dir)
        self._project_id = project_id
        self._reading = AcceptanceReading(self._store.get(project_id), project_id, plan)

    def see(self, task: Json, annotations: Sequence[Json]) -> None:
        """Compare the annotations of a task with their predictions; never raises."""
        for annotation in annotations:
            try:
                self._reading.see(task, [annotation])
            except _SURPRISES as error:  # not every Exception: RQ ends a job that takes too long with one
                log.warning(
                    "project=%d annotation=%s cannot be compared with its prediction: %s: %s",
                    self._project_id,
                    annotation.get("id"),
                    type(error).__name__,
                    error,
                )

    def keep(self) -> None:
        """Write what was seen; a disk that refuses is logged."""
        try:
            self._store.put(self._project_id, self._reading.result())
        except OSError as error:
            log.error("project=%d its acceptance could not be noted: %s", self._project_id, error)


def note_acceptance(
    tasks: Iterable[Json], project_id: int, plan: PredictionPlan, data_dir: Path, on_task: Callable[[], Any]
) -> dict[str, Stamps]:
    """Read all annotations of a project for their acceptance alone.

    Args:
        tasks: of the project, with their annotations and predictions.
        project_id: Label Studio's id.
        plan: its labelling config.
        data_dir: of the settings.
        on_task: called once a task, for progress; raises to give up.

    Returns:
        The annotations that were read, by task; see `training_jobs.annotation_state`.
    """
    read: dict[str, Stamps] = {}
    notes = AcceptanceNotes(data_dir, project_id, plan)
    for task in tasks:
        on_task()
        read[str(task["id"])] = stamps_of(task)
        notes.see(task, annotations_that_count(task, Counter()))
    notes.keep()
    return read

"""Predictions into Label Studio, each once.

A batch is taken for writing in the ledger first, then Label Studio is asked which of its tasks lack a prediction of
this version, and only those are imported. Where an import's outcome is not known (no answer, or a failure after
the fact), its tasks stay noted as being imported, and are looked at again once it must have happened.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from backend.label_studio.errors import LabelStudioError, LabelStudioNotFoundError, LabelStudioRejectedError
from backend.label_studio.task_filter import among, with_version
from backend.prelabel_ledger import Ledger
from training_jobs.import_pace import ImportPace

log = logging.getLogger(__name__)

Item = Mapping[str, Any]

MOST_PREDICTIONS = 250
"""In one import, whose cost in Label Studio is mostly per import: it counts the project's predictions anew."""

MOST_BYTES = 16 * 1024 * 1024
"""In one import: the masks of large images are megabytes."""


class PredictionApi(Protocol):
    """What writing needs of `backend.label_studio.client.LabelStudioClient`."""

    def matching_tasks(self, project_id: int, conditions: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Tasks that meet all conditions."""

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Add predictions."""

    def task_predictions(self, task_id: int) -> list[dict[str, Any]]:
        """All predictions of a task."""

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete one."""


class PredictionWriter:
    """Writes the predictions of one job. For one thread."""

    def __init__(
        self,
        project_id: int,
        client: PredictionApi,
        ledger: Ledger,
        owner: str,
        *,
        one_at_a_time: Callable[[], AbstractContextManager[object]],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent here.

        Args:
            project_id: Label Studio's id.
            client: Label Studio.
            ledger: of the project.
            owner: of the claims on the tasks.
            one_at_a_time: a lock that keeps imports into one project apart, for Label Studio's sake only.
            sleep: how to give Label Studio a rest.
        """
        self._project_id = project_id
        self._client = client
        self._ledger = ledger
        self._owner = owner
        self._one_at_a_time = one_at_a_time
        self._sleep = sleep
        self._pace = ImportPace(MOST_PREDICTIONS)
        self._version = ""
        self._waiting: dict[int, str] = {}
        self._bytes = 0

    def add(self, version: str, items: Mapping[int, Item]) -> None:
        """Take predictions by task, and import when there are enough for one import.

        Args:
            version: that they carry.
            items: with `result`, or with `error`: such a task is tried again later.

        Raises:
            LabelStudioError: Label Studio is away or refuses; what was not imported stays claimed, or comes later.
        """
        if version != self._version:
            self.flush()
            self._version = version
        failed = {
            task_id: str(item.get("error", "no answer")) for task_id, item in items.items() if "result" not in item
        }
        if failed:
            self._ledger.fail(self._owner, version, failed)
        for task_id, item in items.items():
            if task_id in failed:
                continue
            # As text, which is a fraction of what the same lists of numbers take.
            text = json.dumps({"task": task_id, **item}, allow_nan=False)
            if self._waiting and (len(self._waiting) >= self._pace.size or self._bytes + len(text) > MOST_BYTES):
                self.flush()
            self._waiting[task_id] = text
            self._bytes += len(text)

    def flush(self) -> None:
        """Import what waits. Raises as `add` does."""
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        if not waiting:
            return
        ledger, owner, version = self._ledger, self._owner, self._version
        begun = ledger.begin_import(owner, version, list(waiting))
        try:
            present = self._among([*begun.own, *begun.doubtful], with_version(version))
        except Exception:  # nothing has been sent, whatever it is
            ledger.abort_import(owner, version, begun.own)
            raise
        if present:
            ledger.finish(owner, version, sorted(present), "present")
        if uncertain := [task_id for task_id in begun.doubtful if task_id not in present]:
            ledger.defer(owner, uncertain, ledger.patience.settle_s)
        self._post({task_id: waiting[task_id] for task_id in begun.own if task_id not in present})

    def _among(self, task_ids: Sequence[int], *conditions: Mapping[str, Any]) -> set[int]:
        """Of these tasks, those that are in Label Studio and meet the conditions."""
        if not task_ids:
            return set()
        found = self._client.matching_tasks(self._project_id, [among(task_ids), *conditions])
        return {int(task["id"]) for task in found}

    def _post(self, predictions: Mapping[int, str]) -> None:
        ledger, owner, version = self._ledger, self._owner, self._version
        try:
            with self._one_at_a_time():
                ids = ledger.sending(owner, version, list(predictions)) if predictions else []
                if not ids:
                    return
                began = time.monotonic()
                created = self._client.import_predictions(
                    self._project_id, [json.loads(predictions[task_id]) for task_id in ids]
                )
                took_s = time.monotonic() - began
        except LabelStudioRejectedError as error:
            self._post_less({task_id: predictions[task_id] for task_id in ids}, error)
            return
        except LabelStudioError as error:
            if error.temporary:  # it may have happened
                ledger.defer(owner, ids, ledger.patience.settle_s)
            else:
                ledger.abort_import(owner, version, ids)
            raise
        if created < len(ids):
            stored = self._among(ids, with_version(version))
            reason = "Label Studio did not accept the prediction as fitting the labelling config; its log says why"
            ledger.fail(owner, version, {task_id: reason for task_id in ids if task_id not in stored})
            ids = [task_id for task_id in ids if task_id in stored]
        lost = ledger.finish(owner, version, ids, "posted")
        if lost:
            self._remove_surplus(lost)
        if rest_s := self._pace.note(created, took_s):
            self._sleep(rest_s)

    def _post_less(self, predictions: Mapping[int, str], error: LabelStudioRejectedError) -> None:
        """Import what of a refused import can be: Label Studio stores nothing of it for one that is wrong."""
        there = self._among(list(predictions))
        gone = [task_id for task_id in predictions if task_id not in there]
        if gone:  # deleted a moment ago
            self._ledger.finish(self._owner, self._version, gone, "present")
        ids = [task_id for task_id in predictions if task_id in there]
        if gone:
            self._post({task_id: predictions[task_id] for task_id in ids})
        elif len(ids) == 1:
            self._ledger.fail(self._owner, self._version, {ids[0]: str(error)})
        else:
            for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
                self._post({task_id: predictions[task_id] for task_id in half})

    def _remove_surplus(self, task_ids: Sequence[int]) -> None:
        """Our claim had ended before our import did, as after a long sleep: another job may have imported them too."""
        for task_id in task_ids:
            own = [p for p in self._client.task_predictions(task_id) if p.get("model_version") == self._version]
            for surplus in sorted(own, key=lambda prediction: int(prediction["id"]))[1:]:
                log.warning("project=%d task=%d was written twice, one is removed", self._project_id, task_id)
                with contextlib.suppress(LabelStudioNotFoundError):  # the other job has found it too
                    self._client.delete_prediction(int(surplus["id"]))

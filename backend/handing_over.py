"""Answers of `/predict` whose rest is handed over: what is not done in time, the jobs predict and post.

Before an answer leaves, the tasks that it holds are noted, so that no job writes them too, and a prediction that a
job has written since Label Studio asked is withheld; see docs/decisions/one-writer-per-task.md. With Redis down the
answer is given as it is, and nothing is handed over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.api.handlers import Predicts, QueueUnavailableError
from backend.predictor import Answer, Deadline, Item
from backend.prelabel_queue import PrelabelProgress, PrelabelQueue, PrelabelRequest, RequestState
from backend.queue import QueueCounts
from backend.queue_link import QueueLink

log = logging.getLogger(__name__)

_PAUSE_S = 10.0
"""Answers do not wait for a Redis that did not answer so shortly ago."""

_LARGEST_ID = 2**63 - 1


class PrelabelLink:
    """The server's line to pre-labelling. Safe to share between threads."""

    def __init__(self, connect: Callable[[], PrelabelQueue]) -> None:
        """Nothing is connected yet.

        Args:
            connect: gives the queue, or raises what `backend.redis_connection.connect_redis` raises.
        """
        self._link = QueueLink(connect)
        self._down_until = 0.0

    def request(self, project_id: int, request: PrelabelRequest) -> str:
        """Ask for tasks to be pre-labelled; names the request. Raises QueueUnavailableError."""
        return self._link.call(lambda queue: queue.request(project_id, request))

    def state(self, project_id: int, request_id: str | None) -> RequestState:
        """Where a project's pre-labelling stands. Raises QueueUnavailableError."""
        return self._link.call(lambda queue: queue.state(project_id, request_id))

    def jobs(self) -> list[PrelabelProgress]:
        """All projects that have something to pre-label. Raises QueueUnavailableError."""
        return self._link.call(lambda queue: queue.jobs())

    def counts(self) -> QueueCounts:
        """How many jobs and workers there are. Raises QueueUnavailableError."""
        return self._link.call(lambda queue: QueueCounts.of(queue.rq))

    def stop(self, project_id: int) -> None:
        """Drop what no job has begun. Raises QueueUnavailableError."""
        self._link.call(lambda queue: queue.stop(project_id))

    def hand_over(
        self, project_id: int, version: str, finished: Sequence[int], unfinished: Sequence[int], *, age_s: float
    ) -> set[int] | None:
        """As `PrelabelQueue.hand_over`; None where Redis is down."""
        if time.monotonic() < self._down_until:
            return None
        try:
            return self._link.call(
                lambda queue: queue.hand_over(project_id, version, finished, unfinished, age_s=age_s)
            )
        except QueueUnavailableError:
            self._down_until = time.monotonic() + _PAUSE_S
            return None


class HandingOver:
    """A predictor whose unfinished tasks go to the jobs. Safe to share between threads."""

    def __init__(self, predictor: Predicts, link: PrelabelLink, *, can_post: bool) -> None:
        """Nothing is connected yet.

        Args:
            predictor: answers.
            link: to the jobs.
            can_post: whether jobs could post: the settings have Label Studio's address and a token.
        """
        self._predictor = predictor
        self._link = link
        self._can_post = can_post

    def predict(
        self,
        tasks: Sequence[Any],
        *,
        project_id: int,
        label_config: str,
        deadline: Deadline,
        context: object = None,
    ) -> Answer:
        """As `backend.predictor.Predictor.predict`; with a context nothing is handed over, for Label Studio stores
        nothing then."""
        waited_s, began = deadline.seconds - deadline.remaining(), time.monotonic()
        answer = self._predictor.predict(
            tasks, project_id=project_id, label_config=label_config, deadline=deadline, context=context
        )
        if context is not None:
            return answer
        # When the time is up, whatever has no prediction may just have had no turn.
        late = not deadline.remaining()
        numbered = [(_task_id(task), item) for task, item in zip(tasks, answer.items, strict=True)]
        finished = [task_id for task_id, item in numbered if task_id is not None and "result" in item]
        unfinished = [task_id for task_id, item in numbered if late and task_id is not None and "result" not in item]
        if unfinished and not self._can_post:
            log.warning(
                "project=%d %d tasks are not done, and not handed over: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, "
                "so that a worker can post their predictions",
                project_id,
                len(unfinished),
            )
        if not self._can_post or not (finished or unfinished):
            return answer
        age_s = waited_s + time.monotonic() - began
        withheld = self._link.hand_over(project_id, answer.model_version, finished, unfinished, age_s=age_s)
        if withheld is None:
            if unfinished:
                log.warning(
                    "project=%d %d tasks are not done, and not handed over: Redis is down", project_id, len(unfinished)
                )
            return answer
        if unfinished:
            log.info("project=%d %d tasks are not done, and handed over to the workers", project_id, len(unfinished))
        told: dict[int, Item] = {task_id: {"error": _handed_over(deadline)} for task_id in unfinished}
        told.update({task_id: {"error": _WITHHELD} for task_id in withheld})
        return replace(
            answer, items=[item if task_id is None else told.get(task_id, item) for task_id, item in numbered]
        )


_WITHHELD = "a worker has just posted this prediction to Label Studio, or is about to"


def _handed_over(deadline: Deadline) -> str:
    return f"not done within {deadline.seconds:g} s: a worker predicts it and posts it to Label Studio"


def _task_id(task: Any) -> int | None:
    value = task.get("id") if isinstance(task, Mapping) else None
    proper = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_ID
    return value if proper else None

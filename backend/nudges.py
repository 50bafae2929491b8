"""Annotation events on their way to the training queue.

An event is acknowledged before the queue is asked: an annotator waits for the answer, and Redis may be slow or away.
Nothing depends on the event: Label Studio keeps the annotation, and where an event is lost with this process the
reconcile job finds it. What happens to one project within a moment is passed on as one, and what cannot be passed on is
tried again until it can.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

_GATHER_S = 0.05
_AGAIN_S = 5.0
_LAST_S = 2.0
"""For what is left when the server ends."""


class Nudges:
    """Passes events on in a thread of its own, at most one a project at a time. Safe to share between threads."""

    def __init__(self, pass_on: Callable[[int, str], bool]) -> None:
        """Starts no thread until the first event.

        Args:
            pass_on: takes a project and the action of its first event that was not passed on; returns whether it is
                done with.
        """
        self._pass_on = pass_on
        self._waiting: dict[int, str] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, project_id: int, action: str) -> None:
        """Note an event; returns at once."""
        with self._changed:
            self._waiting.setdefault(project_id, action)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pass-on-events", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Try once more to pass on what waits, and end."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_LAST_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
            self._closing.wait(_GATHER_S)
            with self._changed:
                taken, self._waiting = self._waiting, {}
            left = {project: action for project, action in taken.items() if not self._passed_on(project, action)}
            if self._closing.is_set():
                return
            if left:
                with self._changed:
                    self._waiting = {**self._waiting, **left}
                self._closing.wait(_AGAIN_S)

    def _passed_on(self, project_id: int, action: str) -> bool:
        try:
            return self._pass_on(project_id, action)
        except Exception:  # one project's trouble must not end the thread; trying again would only repeat it
            log.exception("project=%d an event could not be passed on", project_id)
            return True

"""Titles of projects, for people to read: fetched in the background, so that nobody waits for Label Studio."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.errors import LabelStudioError

log = logging.getLogger(__name__)

_KEEP_S = 300.0
_AGAIN_S = 10.0
"""After a failure."""
_MOST = 2_000


class ProjectTitles:
    """The titles that are known so far. Safe to share between threads."""

    def __init__(self, connect: Callable[[], LabelStudioClient] | None, *, keep_s: float = _KEEP_S) -> None:
        """Nothing is fetched until it is asked for.

        Args:
            connect: a client, which is closed again; None: no titles.
            keep_s: for how long titles are not fetched anew.
        """
        self._connect = connect
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._titles: dict[int, str] = {}
        self._due_at = 0.0
        self._fetching = False

    def __call__(self) -> Mapping[int, str]:
        """Titles by project, at once; renewed in the background when they are old."""
        with self._lock:
            if time.monotonic() >= self._due_at and not self._fetching and self._connect is not None:
                self._fetching = True
                threading.Thread(target=self._fetch, args=(self._connect,), name="titles", daemon=True).start()
            return dict(self._titles)

    def _fetch(self, connect: Callable[[], LabelStudioClient]) -> None:
        titles: dict[int, str] = {}
        keep_s = self._keep_s
        try:
            with connect() as client:
                for project in client.projects():
                    titles[int(project["id"])] = str(project.get("title") or "")
                    if len(titles) >= _MOST:
                        break
        except (LabelStudioError, KeyError, TypeError, ValueError) as error:
            log.info("the titles of the projects are not known: %s", error)
            keep_s = min(keep_s, _AGAIN_S)
        with self._lock:
            self._titles = {**self._titles, **titles}
            self._due_at = time.monotonic() + keep_s
            self._fetching = False

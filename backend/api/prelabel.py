"""`/projects/<id>/prelabel`: ask for a project's tasks to be pre-labelled, and see how far it is."""

from __future__ import annotations

from typing import Any, Protocol

from backend.api.errors import UnavailableError
from backend.api.handlers import QueueUnavailableError, Reply
from backend.api.schemas import PrelabelBody, parse
from backend.prelabel_queue import PrelabelRequest, RequestState


class Prelabelling(Protocol):
    """What the routes need of pre-labelling. Every call may raise `QueueUnavailableError`."""

    def request(self, project_id: int, request: PrelabelRequest) -> str:
        """Ask for tasks to be pre-labelled."""

    def state(self, project_id: int, request_id: str | None) -> RequestState:
        """Where a project's pre-labelling stands."""


class PrelabelHandlers:
    """The routes' work. Safe to share between threads."""

    def __init__(self, prelabelling: Prelabelling) -> None:
        """Starts nothing."""
        self._prelabelling = prelabelling

    def ask(self, project_id: int, body: bytes) -> Reply:
        """Queue it.

        Raises:
            UnavailableError: Redis is down; nothing would remember it.
        """
        asked = parse(PrelabelBody, body)
        request = PrelabelRequest(tuple(asked.filter), asked.tab, asked.only_missing, asked.limit)
        try:
            request_id = self._prelabelling.request(project_id, request)
        except QueueUnavailableError as error:
            raise UnavailableError(f"nothing was queued: {error.public}") from error
        return Reply({"status": "queued", "request": request_id}, status=202, notes={"project": project_id})

    def state(self, project_id: int, request_id: str | None) -> Reply:
        """How far it is; `listed` and `ended` are null as long as they are not known.

        Raises:
            UnavailableError: Redis is down.
        """
        try:
            found = self._prelabelling.state(project_id, request_id)
        except QueueUnavailableError as error:
            raise UnavailableError(error.public) from error
        body: dict[str, Any] = found.to_json()
        return Reply(body, notes={"project": project_id})

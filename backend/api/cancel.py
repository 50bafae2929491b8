"""`DELETE /projects/<id>/training`: give up a project's training."""

from __future__ import annotations

from backend.api.errors import UnavailableError
from backend.api.handlers import QueueUnavailableError, Reply
from backend.cancelling import Queue, cancel_training
from backend.job_history import JobHistory


class CancelHandlers:
    """The route's work. Safe to share between threads."""

    def __init__(self, training: Queue, history: JobHistory) -> None:
        """Starts nothing."""
        self._training = training
        self._history = history

    def cancel(self, project_id: int) -> Reply:
        """Give it up.

        Raises:
            UnavailableError: Redis is down; nothing has changed.
        """
        try:
            outcome = cancel_training(self._training, self._history, project_id)
        except QueueUnavailableError as error:
            raise UnavailableError(f"nothing was cancelled: {error.public}") from error
        return Reply({"status": outcome}, notes={"project": project_id, "queue": outcome})

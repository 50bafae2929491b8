"""A running product seen from outside: what the round trip needs of it, whoever started it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from backend.label_studio.client import LabelStudioClient
from backend.queue import TrainingQueue

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Deployment:
    """Label Studio, a backend and its worker.

    Attributes:
        label_studio_url: no slash at the end.
        api_token: of a user who may make projects.
        backend_url: the same address for Label Studio and for this process.
        data_dir: the backend's and the worker's data directory, as this process sees it.
        connect_queue: the training queue, to look at.
        basic_auth: user and password that the backend wants; None: none.
        webhook_secret: what it wants of webhooks; None: nothing.
    """

    label_studio_url: str
    api_token: str = field(repr=False)
    backend_url: str
    data_dir: Path
    connect_queue: Callable[[], TrainingQueue]
    basic_auth: tuple[str, str] | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)

    def client(self) -> LabelStudioClient:
        """A client of Label Studio; close it after use."""
        return LabelStudioClient(self.label_studio_url, self.api_token, timeout_s=_TIMEOUT_S)

"""`vlm connect`: one project connected, made from a folder first where asked for, and waited for where asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import ConnectReport, connect_project
from backend.label_studio.connection import FIRST_TITLE
from backend.label_studio.errors import LabelStudioError
from backend.label_studio.first_project import ensure_first_project
from backend.settings import Settings

_BETWEEN_TRIES_S = 3.0


class ConnectCommandError(ValueError):
    """The settings do not say which Label Studio, or who asks."""


def connect_when_ready(
    settings: Settings,
    project_id: int | None,
    folder: Path | None,
    *,
    backend_url: str | None,
    title: str | None,
    wait_s: float,
    say: Callable[[str], None],
) -> ConnectReport:
    """Connect a project.

    Args:
        settings: where Label Studio is, and what the backend wants of it.
        project_id: the project; None: that of `folder`, whose tasks get their first predictions too.
        folder: see `backend.label_studio.first_project`; only read where there is no `project_id`.
        backend_url: as Label Studio reaches the backend; None: as the settings say, else this machine.
        title: of the connection; None: the model version, or our own name where the settings say that scores do not
            show.
        wait_s: for how long to try again while Label Studio or the backend does not answer yet.
        say: prints a line for the user.

    Raises:
        ConnectCommandError: no address or token of Label Studio.
        LabelStudioError: it failed, for good or until the time was over.
        ValueError: the folder or the address cannot be used.
    """
    if settings.label_studio_url is None or settings.label_studio_token is None:
        raise ConnectCommandError("set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY (Account & Settings)")
    url = backend_url or settings.backend_url or f"http://127.0.0.1:{settings.port}"
    secret = settings.webhook_secret
    until, said = time.monotonic() + wait_s, ""
    with LabelStudioClient(
        settings.label_studio_url, settings.label_studio_token, timeout_s=settings.label_studio_timeout_s
    ) as client:
        while True:
            try:
                chosen = project_id
                if chosen is None:
                    assert folder is not None  # one of the two is there
                    chosen = ensure_first_project(client, folder, say)
                report = connect_project(
                    client,
                    chosen,
                    url,
                    title=title or (None if settings.show_scores else FIRST_TITLE),
                    basic_auth=settings.basic_auth,
                    webhook_secret=secret.get_secret_value() if secret else None,
                )
                if project_id is None:
                    _first_predictions(client, chosen, say)
                return report
            except LabelStudioError as error:
                if not error.temporary or time.monotonic() + _BETWEEN_TRIES_S > until:
                    raise
                if str(error) != said:
                    said = str(error)
                    say(f"waiting: {said}")
            time.sleep(_BETWEEN_TRIES_S)


def _first_predictions(client: LabelStudioClient, project_id: int, say: Callable[[str], None]) -> None:
    """Let Label Studio retrieve predictions for tasks that have none."""
    bare = [int(task["id"]) for task in client.tasks(project_id) if not task.get("predictions")]
    if bare:
        client.retrieve_predictions(project_id, bare)
        say(f"retrieved predictions for {len(bare)} tasks")

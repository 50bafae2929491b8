"""Whether scores show in the Data Manager and order the tasks, with VLM_SHOW_SCORES and without."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from backend.connect_command import connect_when_ready
from backend.demo.project import create_project, pictures
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.settings import Settings

pytestmark = pytest.mark.e2e


def _connect(stack: Stack, project_id: int, *, show_scores: bool) -> None:
    settings = Settings(
        label_studio_url=stack.label_studio_url,
        label_studio_api_key=stack.credentials.api_token,
        webhook_secret=stack.credentials.webhook_secret,
        show_scores=show_scores,
    )
    connect_when_ready(settings, project_id, None, backend_url=stack.backend_url, title=None, wait_s=60, say=print)


def _get(stack: Stack, path: str, **params: Any) -> Any:
    headers = {"Authorization": f"Token {stack.credentials.api_token}"}
    reply = httpx.get(f"{stack.label_studio_url}{path}", params=params, headers=headers, timeout=100)
    reply.raise_for_status()
    return reply.json()


def _column(stack: Stack, project_id: int) -> dict[int, float | None]:
    """The score column of the Data Manager."""
    view = httpx.post(
        f"{stack.label_studio_url}/api/dm/views/",
        json={"project": project_id, "data": {}},
        headers={"Authorization": f"Token {stack.credentials.api_token}"},
        timeout=100,
    ).json()
    found = _get(stack, "/api/tasks", project=project_id, view=view["id"], fields="all")
    return {int(task["id"]): task["predictions_score"] for task in found["tasks"]}


def test_scores_show_and_order_the_tasks_where_the_setting_says_so(stack: Stack, client: LabelStudioClient) -> None:
    project_id, tasks = create_project(client, list(pictures(4)))
    _connect(stack, project_id, show_scores=True)
    client.retrieve_predictions(project_id)
    stored = {task: client.task_predictions(task)[0]["score"] for task in tasks}
    assert len(set(stored.values())) == len(stored), "scores that differ, or the order says nothing"
    assert _column(stack, project_id) == pytest.approx(stored)
    client.update_project(project_id, sampling="Uncertainty sampling")
    surest_last = sorted(stored, key=stored.__getitem__)
    assert _get(stack, f"/api/projects/{project_id}/next")["id"] == surest_last[0]

    _connect(stack, project_id, show_scores=False)
    assert set(_column(stack, project_id).values()) == {None}
    _connect(stack, project_id, show_scores=True)
    assert _column(stack, project_id) == pytest.approx(stored), "nothing was lost"

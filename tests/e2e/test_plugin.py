"""`label-studio-ml start` with the release on PyPI, under a real Label Studio."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.demo.label_studio import answers
from backend.demo.processes import Supervisor, child_environment, free_port
from backend.demo.project import create_project, pictures
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from tests.e2e.harness import brush_masks

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
WHOLE = {
    "id": "r1",
    "from_name": "smart",
    "to_name": "image",
    "type": "rectangle",
    "value": {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0},
    "original_width": 100,
    "original_height": 100,
    "image_rotation": 0,
}
"""A smart rectangle around the whole image: whatever is inside."""

USER, PASSWORD = "label-studio", "a-password-of-the-plugin"


@pytest.fixture(scope="module")
def plugin_url(supervisor: Supervisor, stack: Stack) -> str:
    """The plugin beside the stack: it shares its data directory, so its trainings go to the stack's worker."""
    port = free_port()
    environment = child_environment(
        ("VLM_DEVICE",),
        VLM_CHECKPOINT="demo",
        VLM_DATA_DIR=str(stack.vlm_dir),
        VLM_HOST="127.0.0.1",
        LABEL_STUDIO_URL=stack.label_studio_url,
        LABEL_STUDIO_API_KEY=stack.credentials.api_token,
        BASIC_AUTH_USER=USER,
        BASIC_AUTH_PASS=PASSWORD,
        VLM_WEBHOOK_SECRET=stack.credentials.webhook_secret,
        PYTHONPATH=str(ROOT),
        PYTHONUNBUFFERED="1",
    )
    # `label-studio-ml start` runs `python`: that of this environment.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = Path(sys.executable).parent / "label-studio-ml"
    argv = [str(program), "start", str(ROOT / "backend"), "-p", str(port)]
    supervisor.start("plugin", argv, env=environment, cwd=stack.options.data_dir, remedy="See its log.")
    url = f"http://127.0.0.1:{port}"
    supervisor.wait_for("the plugin to answer", lambda: answers(f"{url}/health"), timeout_s=300.0)
    return url


@pytest.fixture(scope="module")
def project(client: LabelStudioClient, stack: Stack, plugin_url: str) -> tuple[int, list[int]]:
    project_id, tasks = create_project(client, list(pictures(3)))
    connect_project(
        client,
        project_id,
        plugin_url,
        basic_auth=(USER, PASSWORD),
        webhook_secret=stack.credentials.webhook_secret,
    )
    return project_id, sorted(tasks)


def test_predictions_are_retrieved_and_stored(
    client: LabelStudioClient, supervisor: Supervisor, project: tuple[int, list[int]]
) -> None:
    project_id, tasks = project

    def stored() -> list[list[dict[str, Any]]] | None:
        client.retrieve_predictions(project_id)
        found = {int(task["id"]): list(task["predictions"]) for task in client.tasks(project_id)}
        return [found[task] for task in tasks] if all(found.values()) else None

    # The model may still be loading: then a task has no prediction, and is asked again.
    predictions = supervisor.wait_for("predictions of the plugin", stored, timeout_s=180.0)
    for (prediction,) in predictions:
        assert prediction["model_version"] == "INITIAL", "what 1.0.9 answers to /setup"
        assert 0 < prediction["score"] <= 1
        masks = brush_masks(prediction)
        assert masks
        assert all(mask.any() for mask in masks.values())
        assert [region["type"] for region in prediction["result"]].count("choices") == 1


def test_an_annotator_asks_for_one_task(
    client: LabelStudioClient, stack: Stack, project: tuple[int, list[int]]
) -> None:
    project_id, tasks = project
    (backend,) = client.ml_backends(project_id)
    reply = httpx.post(
        f"{stack.label_studio_url}/api/ml/{backend['id']}/interactive-annotating",
        json={"task": tasks[0], "context": {"result": [WHOLE]}},
        headers={"Authorization": f"Token {stack.credentials.api_token}"},
        timeout=100,
    )
    assert reply.status_code == 200
    assert reply.json().get("errors") in (None, [])
    assert reply.json()["data"]["result"]


def test_the_button_queues_a_training_for_the_worker(
    client: LabelStudioClient, stack: Stack, supervisor: Supervisor, project: tuple[int, list[int]]
) -> None:
    project_id, _ = project
    (backend,) = client.ml_backends(project_id)
    client.train_ml_backend(int(backend["id"]))
    history = stack.vlm_dir / "projects" / str(project_id) / "jobs"
    # 1.0.9 does it in a process of its own, which takes a while to start.
    (record,) = supervisor.wait_for(
        "the worker to end the training", lambda: list(history.glob("*.json")) or None, timeout_s=300.0
    )
    assert '"requested": "START_TRAINING"' in record.read_text()

"""More images than fit into one answer: what is left is predicted by the worker and posted, once each."""

from __future__ import annotations

import base64
import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from backend.demo.label_studio import answers
from backend.demo.processes import Supervisor, child_environment, free_port
from backend.demo.project import label_config
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from backend.prelabel_queue import PrelabelQueue
from backend.redis_connection import connect_redis
from backend.settings import Settings
from vlm_core.demo.scenes import generate_scene

pytestmark = pytest.mark.e2e

TASKS = 300
DEADLINE_S = 5.0
SLOW_S = 0.06
"""For each image: the deadline comes after a third of them."""

SLOWED = f"""
import sys, time
from vlm_core.model import Model
encode = Model.encode_image
def slow(self, images, **kwargs):
    time.sleep({SLOW_S} * (len(images) if isinstance(images, (list, tuple)) else 1))
    return encode(self, images, **kwargs)
Model.encode_image = slow
from backend.cli import main
main()
"""


@dataclass(frozen=True)
class Slow:
    """A backend and a worker whose model takes its time, and whose answers must come soon."""

    url: str
    queue: PrelabelQueue
    worker_log: Path


@pytest.fixture
def slow(supervisor: Supervisor, stack: Stack, tmp_path: Path) -> Iterator[Slow]:
    port = free_port()
    environment = child_environment(
        ("VLM_DEVICE", "VLM_DTYPE"),
        VLM_CHECKPOINT="demo",
        VLM_DATA_DIR=str(tmp_path / "vlm"),
        VLM_PREDICT_DEADLINE_S=str(DEADLINE_S),
        VLM_HOST="127.0.0.1",
        PORT=str(port),
        LABEL_STUDIO_URL=stack.label_studio_url,
        LABEL_STUDIO_API_KEY=stack.credentials.api_token,
        PYTHONUNBUFFERED="1",
    )
    url = f"http://127.0.0.1:{port}"
    with Supervisor(tmp_path / "logs") as own:
        python = [sys.executable, "-c", SLOWED]
        remedy = "See its log."
        own.start("slow backend", [*python, "serve"], env=environment, cwd=tmp_path, remedy=remedy)
        own.wait_for("the slow backend", lambda: answers(f"{url}/health"), timeout_s=300.0)
        worker = own.start("slow worker", [*python, "worker"], env=environment, cwd=tmp_path, remedy=remedy)
        own.wait_for("its model", lambda: _ready(url), timeout_s=300.0)
        with connect_redis(Settings(data_dir=tmp_path / "vlm"), start=False) as connection:
            yield Slow(url, PrelabelQueue(connection), worker.log)


def _ready(url: str) -> bool | None:
    return True if httpx.get(f"{url}/health", trust_env=False).json()["model"] == "ready" else None


def _tasks() -> list[dict[str, dict[str, str]]]:
    found = []
    for seed in range(TASKS):
        buffer = io.BytesIO()
        generate_scene(5_000_000 + seed).image.resize((64, 64)).save(buffer, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        found.append({"data": {"image": uri}})
    return found


def test_what_the_deadline_leaves_is_posted_by_the_worker_and_nothing_twice(
    slow: Slow, supervisor: Supervisor, client: LabelStudioClient
) -> None:
    project_id = int(client.create_project("More than one answer holds", label_config())["id"])
    client.import_tasks(project_id, _tasks())
    connect_project(client, project_id, slow.url)

    client.retrieve_predictions(project_id)
    note = httpx.get(f"{slow.url}/status", trust_env=False).json()["projects"][str(project_id)]["last_prediction"]
    assert note["tasks"] == TASKS
    assert 0 < note["failed"] < TASKS  # the deadline struck in the middle, and Label Studio had its answer
    # Asked again at once: the worker and Label Studio write at the same time.
    client.retrieve_predictions(project_id)

    def over() -> bool | None:
        return True if slow.queue.progress(project_id) is None else None

    supervisor.wait_for("the worker to post the rest", over, timeout_s=300.0, hint=f"See {slow.worker_log}.")
    ended = slow.queue.ended(project_id)
    assert ended is not None
    assert ended.counts["posted"] > 0
    assert ended.counts["failed"] == 0, ended.failures
    predictions = {int(task["id"]): task["predictions"] for task in client.tasks(project_id)}
    versions = {str(one["model_version"]) for found in predictions.values() for one in found}
    assert Counter(len(found) for found in predictions.values()) == {1: TASKS}
    assert len(versions) == 1

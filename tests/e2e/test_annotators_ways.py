"""All that annotators do to annotations, through a real Label Studio, to a better version and its rollback."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from backend.demo.processes import Supervisor
from backend.demo.project import Picture, create_project, pictures
from backend.demo.round_trip import served_version
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from backend.settings import Settings
from backend.version_commands import use_version
from backend.versions import VersionStore

pytestmark = pytest.mark.e2e

NUMBER, BULK = 44, 36
FIRST_SEED = 3_700_000


@dataclass(frozen=True)
class Learned:
    """A project whose annotators did all there is to do, and pressed the button.

    Attributes:
        project_id, tasks: of the project; `tasks` are those that were not imported with their annotations.
        base: the version that served before.
        record: of the job that trained.
        kept: ids of annotations that are there in the end and not skipped, but for the imported ones.
        gone: the id of the one that was deleted.
    """

    project_id: int
    tasks: dict[int, Picture]
    base: str
    record: dict[str, Any]
    kept: set[str]
    gone: str


@pytest.fixture(scope="module")
def learned(stack: Stack, client: LabelStudioClient, supervisor: Supervisor) -> Learned:
    project_id, tasks = create_project(client, list(pictures(NUMBER, first_seed=FIRST_SEED)))
    connect_project(client, project_id, stack.backend_url, webhook_secret=stack.credentials.webhook_secret)
    base = served_version(client, project_id)
    assert base is not None
    ids = sorted(tasks)
    bulk, single = ids[:BULK], ids[BULK:]
    # Tasks that come with their annotations; their pictures are in the project already, which changes nothing.
    data = {int(task["id"]): task["data"] for task in client.tasks(project_id)}
    client.import_tasks(
        project_id,
        [{"data": data[task_id], "annotations": [{"result": tasks[task_id].annotation()}]} for task_id in bulk],
    )
    kept = [client.create_annotation(task_id, tasks[task_id].annotation()) for task_id in single[:4]]
    kept.append(client.create_annotation(single[4], []))
    client.update_annotation(int(kept[-1]["id"]), result=tasks[single[4]].annotation())
    deleted = client.create_annotation(single[5], tasks[single[5]].annotation())
    client.delete_annotation(int(deleted["id"]))
    # One task is skipped by its only annotator, and one by another annotator than the one who did it.
    for task_id in (single[6], single[0]):
        client.create_annotation(task_id, tasks[task_id].annotation(), was_cancelled=True)
    (backend,) = client.ml_backends(project_id)
    client.train_ml_backend(int(backend["id"]))

    def trained() -> dict[str, Any] | None:
        found = (stack.vlm_dir / "projects" / str(project_id) / "jobs").glob("*.json")
        records = [json.loads(path.read_text()) for path in found]
        # Without the button these annotations are too few.
        return next((record for record in records if record["outcome"] not in ("too few", "nothing new")), None)

    record = supervisor.wait_for("the training to end", trained, timeout_s=900.0)
    return Learned(project_id, tasks, base, record, {str(item["id"]) for item in kept}, str(deleted["id"]))


def test_annotations_are_learned_as_they_are_in_the_end(stack: Stack, learned: Learned) -> None:
    assert learned.record["outcome"] == "published", learned.record["reason"]
    counts = learned.record["counts"]
    assert counts["images"] == BULK + len(learned.kept)
    # One task has a skipped one beside that which counts; a task that is only skipped is not read at all.
    assert (counts["annotations"], counts["skipped"]) == (counts["images"] + 1, 1)
    store = VersionStore(stack.vlm_dir)
    data = store.get(learned.project_id, learned.record["version"]).manifest.data
    assert len(data.training_images) + len(data.held_out_images) == counts["images"]
    stamps = json.loads((store.project_dir(learned.project_id) / "last_training.json").read_text())["stamps"]
    assert learned.kept <= set(stamps)
    assert learned.gone not in stamps


def test_label_studio_sees_the_better_version_and_its_rollback(
    stack: Stack, client: LabelStudioClient, supervisor: Supervisor, learned: Learned
) -> None:
    task_id = max(learned.tasks)
    better = served_version(client, learned.project_id)
    assert better is not None
    assert f"-p{learned.project_id}-v001-" in better
    client.retrieve_predictions(learned.project_id, [task_id])
    assert client.task_predictions(task_id)[-1]["model_version"] == better

    def wait_until(version: str) -> None:
        supervisor.wait_for(
            f"{version} to serve", lambda: served_version(client, learned.project_id) == version or None, timeout_s=30.0
        )

    settings = Settings(data_dir=stack.vlm_dir)
    use_version(settings, learned.project_id, 0)
    wait_until(learned.base)
    use_version(settings, learned.project_id, 1)
    wait_until(better)

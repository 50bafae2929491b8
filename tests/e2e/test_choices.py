"""Choices whose words mean nothing to the model, taught by annotators through a real Label Studio."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backend.demo.processes import Supervisor
from backend.demo.project import DESCRIPTIONS, pictures, png, sentence
from backend.demo.round_trip import served_version
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project

pytestmark = pytest.mark.e2e

NAMES = {sentence(pair): name for pair, name in zip(DESCRIPTIONS, ("K1", "K2", "K3", "K4"), strict=True)}
CHOICES = "".join(f'<Choice value="{name}"/>' for name in NAMES.values())
CONFIG = f"""<View><Image name="image" value="$image"/>
<Choices name="kind" toName="image">{CHOICES}</Choices></View>"""
LEARNED, ASKED = 40, 12
FIRST_SEED = 3_900_000


def test_what_annotators_choose_is_learned_and_predicted(
    stack: Stack, client: LabelStudioClient, supervisor: Supervisor
) -> None:
    project_id = int(client.create_project("Kinds", CONFIG)["id"])
    true: dict[int, str] = {}
    for number, picture in enumerate(pictures(LEARNED + ASKED, first_seed=FIRST_SEED)):
        client.upload_file(project_id, f"{number:03d}.png", png(picture.scene), "image/png")
        true[number] = NAMES[picture.description]
    connect_project(client, project_id, stack.backend_url, webhook_secret=stack.credentials.webhook_secret)
    base = served_version(client, project_id)
    ids = [int(task["id"]) for task in client.tasks(project_id)]
    answers = dict(zip(ids, (true[number] for number in sorted(true)), strict=True))
    for task_id in ids[:LEARNED]:
        value = {"choices": [answers[task_id]]}
        client.create_annotation(
            task_id, [{"id": "k", "from_name": "kind", "to_name": "image", "type": "choices", "value": value}]
        )
    (backend,) = client.ml_backends(project_id)
    client.train_ml_backend(int(backend["id"]))

    def trained() -> dict[str, Any] | None:
        found = (stack.vlm_dir / "projects" / str(project_id) / "jobs").glob("*.json")
        records = [json.loads(path.read_text()) for path in found]
        return next((record for record in records if record["outcome"] not in ("too few", "nothing new")), None)

    record = supervisor.wait_for("the training to end", trained, timeout_s=600.0)
    assert record["outcome"] == "published", record["reason"]
    better = served_version(client, project_id)
    assert better is not None
    assert better != base
    client.retrieve_predictions(project_id, ids[LEARNED:])
    right = 0
    for task_id in ids[LEARNED:]:
        prediction = next(p for p in client.task_predictions(task_id) if p["model_version"] == better)
        (region,) = prediction["result"]
        right += region["value"]["choices"] == [answers[task_id]]
    assert right >= ASKED - 2

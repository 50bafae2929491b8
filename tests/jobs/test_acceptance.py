"""Jobs note what annotators made of predictions, whatever else becomes of the job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.acceptance import AcceptanceStore
from backend.acceptance_figures import overall
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import parse_label_config
from backend.label_studio.images import ImageConfig, ImageFetcher
from backend.settings import Settings
from tests.jobs.label_studio import CONFIG, TOKEN, LabelStudio, brush, picture, serve
from training_jobs.acceptance import AcceptanceNotes, note_acceptance
from training_jobs.training import train_version

CHOICES = """<View><Image name="image" value="$image"/>
<Choices name="scene" toName="image"><Choice value="day"/><Choice value="night"/></Choices></View>"""
BEFORE, AFTER = "2025-12-31T00:00:00Z", "2026-01-02T00:00:00Z"


@pytest.fixture
def label_studio() -> Iterator[LabelStudio]:
    with serve(LabelStudio()) as running:
        yield running


def predicted(label_studio: LabelStudio, task_id: int, result: list[Any]) -> int:
    prediction = {"id": 50 + task_id, "model_version": "demo-p7-v002-0a1b2c3d", "created_at": BEFORE, "result": result}
    label_studio.predictions[task_id] = [prediction]
    return 50 + task_id


def train(label_studio: LabelStudio, settings: Settings) -> str:
    with LabelStudioClient(label_studio.url, TOKEN, sleep=lambda seconds: None) as client:
        images = ImageConfig(cache_dir=settings.data_dir / "images", label_studio_url=label_studio.url)
        fetcher = ImageFetcher(images, client)
        result = train_version(
            7, settings, client=client, fetcher=fetcher, token=1, forced=False, report=lambda *_: None
        )
    return result.outcome


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(checkpoint="demo", data_dir=tmp_path, device="cpu", label_studio_url=None)


def test_a_job_that_has_too_little_to_learn_notes_them_all_the_same(
    label_studio: LabelStudio, settings: Settings
) -> None:
    image, masks = picture(2)
    for kept in (True, False):
        task_id = label_studio.add_task(image)
        parent = predicted(label_studio, task_id, [brush(label, mask) for label, mask in masks.items()])
        drawn = [brush("red", masks["red"])] if not kept else [brush(label, mask) for label, mask in masks.items()]
        label_studio.annotate(task_id, drawn, parent_prediction=parent, created_at=AFTER)
    assert train(label_studio, settings) == "too few"
    records = AcceptanceStore(settings.data_dir).get(7).records
    assert [(record.version, record.afresh) for record in records] == [(2, False), (2, False)]
    tally = overall(records)
    assert (tally.kept, tally.removed, tally.total) == (3, 1, 4)


@pytest.mark.parametrize(
    ("config", "outcome"),
    [(CHOICES, "too few"), (CHOICES.replace("/><Choice", ' model_prompt_from="$asked"/><Choice'), "nothing to learn")],
)
def test_a_project_without_masks_has_its_choices_noted(
    label_studio: LabelStudio, settings: Settings, config: str, outcome: str
) -> None:
    label_studio.config = config
    task_id = label_studio.add_task(picture(0)[0])

    def choice(value: str) -> dict[str, Any]:
        return {"from_name": "scene", "to_name": "image", "type": "choices", "value": {"choices": [value]}}

    parent = predicted(label_studio, task_id, [choice("day")])
    label_studio.annotate(task_id, [choice("night")], parent_prediction=parent, created_at=AFTER)
    assert train(label_studio, settings) == outcome
    tally = overall(AcceptanceStore(settings.data_dir).get(7).records)
    assert (tally.removed, tally.added, tally.total) == (1, 1, 2)


def test_an_annotation_that_surprises_costs_only_itself(
    label_studio: LabelStudio, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    image, masks = picture(0)
    task_id = label_studio.add_task(image)
    parent = predicted(label_studio, task_id, [brush("red", masks["red"])])
    label_studio.annotate(task_id, [], parent_prediction=parent, created_at=AFTER)
    other = label_studio.add_task(picture(1)[0])
    label_studio.predictions[other] = [None]  # type: ignore[list-item]  # no prediction at all
    surprising = label_studio.annotate(other, [], parent_prediction=parent, created_at=AFTER)
    with LabelStudioClient(label_studio.url, TOKEN) as client:
        tasks = client.tasks(7, only_annotated=True)
        note_acceptance(tasks, 7, parse_label_config(CONFIG), settings.data_dir, lambda: None)
    assert len(AcceptanceStore(settings.data_dir).get(7).records) == 1
    assert f"annotation={surprising['id']} cannot be compared" in caplog.text


def test_a_disk_that_refuses_costs_only_the_notes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "projects").write_text("no directory")
    AcceptanceNotes(tmp_path, 7, parse_label_config(CONFIG)).keep()
    assert "its acceptance could not be noted" in caplog.text

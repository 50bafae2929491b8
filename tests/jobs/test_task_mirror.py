"""The annotated tasks that are kept: always what Label Studio has, and only what changed is read."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.errors import LabelStudioServerError
from tests.jobs.label_studio import TOKEN, LabelStudio, brush, picture, serve
from training_jobs.task_mirror import FILE, TaskMirror


@pytest.fixture
def label_studio() -> Iterator[LabelStudio]:
    project = LabelStudio()
    for seed in range(6):
        image, masks = picture(seed)
        task = project.add_task(image)
        if seed < 5:
            project.annotate(task, [brush(label, mask) for label, mask in masks.items()])
    with serve(project) as running:
        yield running


@pytest.fixture
def client(label_studio: LabelStudio) -> Iterator[LabelStudioClient]:
    with LabelStudioClient(label_studio.url, TOKEN, sleep=lambda seconds: None) as client:
        yield client


def sync(client: LabelStudioClient, directory: Path, origin: str = "here") -> tuple[dict[str, int], list[Any]]:
    with TaskMirror(directory, 7, origin) as mirror:
        counts = dict(mirror.sync(client))
        return counts, list(mirror.tasks())


def truth(client: LabelStudioClient) -> list[Any]:
    return list(client.tasks(7, only_annotated=True))


def test_the_first_reading_reads_all_and_the_next_nothing(
    client: LabelStudioClient, label_studio: LabelStudio, tmp_path: Path
) -> None:
    assert sync(client, tmp_path) == ({"read": 5, "unchanged": 0, "dropped": 0}, truth(client))
    label_studio.calls.clear()
    assert sync(client, tmp_path) == ({"read": 0, "unchanged": 5, "dropped": 0}, truth(client))
    assert label_studio.calls[0] == "/api/tasks/"
    assert len(label_studio.calls) == 2  # the listing, and `truth` itself


def test_what_is_new_changed_deleted_or_skipped_is_seen(
    client: LabelStudioClient, label_studio: LabelStudio, tmp_path: Path
) -> None:
    sync(client, tmp_path)
    label_studio.annotate(6, [])
    label_studio.annotations[1][0]["result"] = []
    label_studio.change(label_studio.annotations[1][0])
    label_studio.annotate(2, [], was_cancelled=True)
    label_studio.delete(label_studio.annotations[3][0])
    assert sync(client, tmp_path) == ({"read": 3, "unchanged": 2, "dropped": 1}, truth(client))


def test_an_annotation_that_goes_without_moving_the_tasks_time_is_seen(
    client: LabelStudioClient, label_studio: LabelStudio, tmp_path: Path
) -> None:
    label_studio.annotate(2, [], completed_by=2)
    sync(client, tmp_path)
    del label_studio.annotations[2][0]
    assert sync(client, tmp_path) == ({"read": 1, "unchanged": 4, "dropped": 0}, truth(client))


STEPS = st.lists(st.tuples(st.sampled_from(["annotate", "skip", "change", "delete", "sync"]), st.integers(1, 6)))


@given(STEPS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_it_is_what_label_studio_has(
    client: LabelStudioClient, label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory, steps: Any
) -> None:
    directory = tmp_path_factory.mktemp("mirror")
    for step, task in steps:
        found = label_studio.annotations[task]
        if step == "annotate":
            label_studio.annotate(task, [brush("red", picture(task)[1].get("red", picture(0)[1]["red"]))])
        elif step == "skip":
            label_studio.annotate(task, [], was_cancelled=True)
        elif step == "change" and found:
            label_studio.change(found[-1])
        elif step == "delete" and found:
            label_studio.delete(found[0])
        elif step == "sync":
            sync(client, directory)
    assert sync(client, directory)[1] == truth(client)


def test_a_reading_that_was_cut_goes_on(
    client: LabelStudioClient, label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training_jobs.task_mirror._PAGE", 2)
    asked = client.tasks_by_id
    pages: list[list[int]] = []

    def twice(project_id: int, ids: Any) -> list[Any]:
        if len(pages) == 2:
            raise LabelStudioServerError("away")
        pages.append(list(ids))
        return asked(project_id, ids)

    monkeypatch.setattr(client, "tasks_by_id", twice)
    with TaskMirror(tmp_path, 7, "here") as mirror, pytest.raises(LabelStudioServerError):
        mirror.sync(client)
    assert pages == [[1, 2], [3, 4]]
    monkeypatch.setattr(client, "tasks_by_id", asked)
    assert sync(client, tmp_path) == ({"read": 1, "unchanged": 4, "dropped": 0}, truth(client))


def test_a_task_that_is_deleted_while_it_is_read_is_left_out(
    client: LabelStudioClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = client.tasks_by_id
    monkeypatch.setattr(client, "tasks_by_id", lambda project_id, ids: asked(project_id, ids)[1:])
    counts, tasks = sync(client, tmp_path)
    assert (counts["read"], [task["id"] for task in tasks]) == (4, [2, 3, 4, 5])


@pytest.mark.parametrize("damage", ["text", "cut", "flipped", "other schema"])
def test_a_damaged_file_is_made_anew(
    client: LabelStudioClient, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    sync(client, tmp_path)
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"no database")
    elif damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[4096:8192] = bytes(byte ^ 0xFF for byte in data[4096:8192])
    else:
        with sqlite3.connect(path) as database:
            database.execute("UPDATE meta SET value = '0' WHERE name = 'schema'")
        data = bytearray(path.read_bytes())
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert sync(client, tmp_path) == ({"read": 5, "unchanged": 0, "dropped": 0}, truth(client))
    assert "is made anew" in caplog.text


def test_a_damaged_task_is_read_again(client: LabelStudioClient, tmp_path: Path) -> None:
    sync(client, tmp_path)
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("UPDATE tasks SET task = x'00' WHERE id = 3")
    with pytest.raises(OSError, match="task 3 is damaged"), TaskMirror(tmp_path, 7, "here") as mirror:
        list(mirror.tasks())
    assert sync(client, tmp_path) == ({"read": 1, "unchanged": 4, "dropped": 0}, truth(client))


def test_nothing_is_kept_of_another_label_studio(client: LabelStudioClient, tmp_path: Path) -> None:
    sync(client, tmp_path, origin="one")
    assert sync(client, tmp_path, origin="other")[0] == {"read": 5, "unchanged": 0, "dropped": 0}

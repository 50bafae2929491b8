"""What goes wrong around a training: it ends in a clear error or in another attempt, and the serving version stays.

The full disk, a Redis that restarts and workers that are killed are in `test_worker`, memory that is short in
`test_micro_batches`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from backend import queue as queue_module
from backend.job_history import JobHistory
from backend.label_studio.config import parse_label_config
from backend.label_studio.truth import annotations_that_count, read_drawing
from backend.queue import START_TRAINING, TrainingQueue
from backend.settings import Settings
from backend.versions import VersionStore
from tests.jobs.label_studio import CONFIG, Json, LabelStudio, brush, corrected_project, picture, serve
from tests.jobs.one_training import train
from tests.jobs.test_training import QUICK, equal
from tests.jobs.test_worker import NOTHING, burst, fetch, start_worker, until
from training_jobs.annotation_state import stamps_of
from training_jobs.errors import ImagesAwayError


def weights(data_dir: Path, number: int = 1) -> dict[str, Any]:
    return VersionStore(data_dir).get(7, number).load_weights()


# Label Studio -----------------------------------------------------------------------------------------------
@pytest.fixture
def queue(connection: redis.Redis) -> TrainingQueue:
    return TrainingQueue(connection, timeout_s=300)


@pytest.mark.parametrize("goes", ["before the job", "while it runs"])
def test_label_studio_that_is_down_is_waited_for_and_the_serving_version_stays(
    queue: TrainingQueue,
    connection: redis.Redis,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    goes: str,
) -> None:
    monkeypatch.setattr(queue_module, "RETRY_INTERVALS_S", (1, 1))
    store, history = VersionStore(settings.data_dir), JobHistory(settings.data_dir)
    with serve(corrected_project(24)) as label_studio:
        queue.request_training(7, reason=START_TRAINING)
        burst(settings, label_studio.url)
        assert [record.outcome for record in history.list(7)] == ["published"]
        for task_id in label_studio.images:  # news, so that there is something to read
            label_studio.change(label_studio.annotations[task_id][0])
        label_studio.asked.clear()
        if goes == "before the job":
            label_studio.status = 503
        else:
            label_studio.free.clear()
        worker = start_worker(settings, label_studio.url)
        try:
            job_id = queue.request_training(7, reason=START_TRAINING).job_id
            if goes == "while it runs":
                assert label_studio.asked.wait(60)
                label_studio.status = 503
                label_studio.free.set()
            until(lambda: (queue.status(7) or NOTHING).problem != "", "an attempt has failed", 60)
            live = queue.status(7)
            assert live is not None
            assert live.job_id == job_id
            assert "503" in live.problem
            assert [path.name for path in (store.project_dir(7) / "versions").iterdir()] == ["001"]
            current = store.current(7)
            assert current is not None
            assert current.number == 1
            label_studio.status = 200
            until(lambda: len(history.list(7)) == 2, "the training has ended", 120)
            until(lambda: fetch(connection, job_id).get_status().value == "finished", "and the job")
        finally:
            worker.terminate()
            worker.wait(30)
    record = history.list(7)[0]
    # The same corrections: it has learned, and is no better.
    assert (record.job_id, record.outcome, record.version) == (job_id, "not better", 2)
    assert fetch(connection, job_id).return_value()["outcome"] == "not better"
    assert queue.status(7) is None


def test_label_studio_that_stays_down_fails_the_job_with_its_reason_and_the_serving_version_stays(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "RETRY_INTERVALS_S", (0, 0))
    with serve(corrected_project(24)) as label_studio:
        queue.request_training(7, reason=START_TRAINING)
        burst(settings, label_studio.url)
        label_studio.status = 503
        job_id = queue.request_training(7, reason=START_TRAINING).job_id
        burst(settings, label_studio.url)
    record = JobHistory(settings.data_dir).list(7)[0]
    assert (record.job_id, record.outcome, record.version) == (job_id, "failed", None)
    assert "503" in record.reason
    assert fetch(connection, job_id).get_status().value == "failed"
    current = VersionStore(settings.data_dir).current(7)
    assert current is not None
    assert current.number == 1
    assert queue.status(7) is None


# Cache files ------------------------------------------------------------------------------------------------
def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(data: bytes) -> bytes:
    return b""


def one_bit_flipped(data: bytes) -> bytes:
    middle = len(data) * 3 // 4
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_in_half, emptied, one_bit_flipped])
def test_damaged_cache_files_are_made_anew_and_the_weights_are_the_same_bits(
    damage: Callable[[bytes], bytes], checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = (
        Settings(checkpoint=str(checkpoint), data_dir=tmp_path / name, device="cpu", label_studio_url=None)
        for name in ("good", "bad")
    )

    def killed(phase: str, share: float, loss: float | None) -> None:
        if phase == "trying the decoder, 2 of 2":
            raise ImagesAwayError("as if it were killed")

    with serve(corrected_project(24)) as label_studio:
        assert train(label_studio, good, QUICK).outcome == "published"
        with pytest.raises(ImagesAwayError):
            train(label_studio, bad, QUICK, report=killed)
        kinds = {
            "features": bad.data_dir / "cache" / "features",
            "images": bad.data_dir / "images",
            "fit": bad.data_dir / "projects" / "7" / "training",
        }
        whole = {path: path.read_bytes() for folder in kinds.values() for path in folder.rglob("*") if path.is_file()}
        for folder in kinds.values():
            assert any(path.is_relative_to(folder) for path in whole)
        for path, data in whole.items():
            path.write_bytes(damage(data))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert train(label_studio, bad, QUICK).outcome == "published"
    assert equal(weights(good.data_dir), weights(bad.data_dir))
    cached = [path for path in whole if not path.is_relative_to(kinds["fit"])]  # fits go when the training has ended
    assert all(path.read_bytes() == whole[path] for path in cached)
    assert "features: " in caplog.text
    assert "images: " in caplog.text
    assert caplog.text.count("is damaged, and is made anew") == len(cached)
    assert caplog.text.count("that part is learned again") == len(whole) - len(cached)


# Annotations ------------------------------------------------------------------------------------------------
def region(**changes: Any) -> Json:
    mask = np.zeros((48, 48), dtype=bool)
    mask[5:20, 5:20] = True
    return brush("red", mask, **changes)


def polygon(points: Any, **changes: Any) -> Json:
    value = {"points": points, "closed": True, "polygonlabels": ["red"]}
    return region(type="polygonlabels", value=value, **changes)


SQUARE = [[10, 10], [60, 10], [60, 60], [10, 60]]

BAD_RESULTS: dict[str, Any] = {
    "no list": {"a": 1},
    "text": "[]",
    "null": None,
    "no value": [{key: value for key, value in region().items() if key != "value"}],
    "value null": [region(value=None)],
    "value a list": [region(value=[1, 2])],
    "code cut": [region(value={"format": "rle", "rle": [1, 2, 3], "brushlabels": ["red"]})],
    "code of texts": [region(value={"format": "rle", "rle": ["a", None], "brushlabels": ["red"]})],
    "code of wrong numbers": [region(value={"format": "rle", "rle": [1e9, -7, 10**400], "brushlabels": ["red"]})],
    "code an object": [region(value={"format": "rle", "rle": {"0": 1}, "brushlabels": ["red"]})],
    "code null": [region(value={"format": "rle", "rle": None, "brushlabels": ["red"]})],
    "labels a text": [region(value={**region()["value"], "brushlabels": "red"})],
    "labels of numbers": [region(value={**region()["value"], "brushlabels": [1, None]})],
    "type null": [region(type=None)],
    "type a list": [region(type=["brushlabels"])],
    "image null": [region(to_name=None)],
    "point not a number": [polygon([[math.nan, 1], *SQUARE])],
    "point endless": [polygon([[math.inf, 1], *SQUARE])],
    "point huge": [polygon([[1e300, 1], *SQUARE])],
    "point of 400 digits": [polygon([[10**400, 1], *SQUARE])],
    "points of texts": [polygon([["a", "b"], *SQUARE])],
    "points null": [polygon(None)],
    "points of different lengths": [polygon([[1], [1, 2, 3], [4, 5]])],
    "two points": [polygon(SQUARE[:2])],
    "another size": [region(original_width=99)],
    "size null": [region(original_width=None)],
    "size endless": [region(original_width=math.inf, original_height=math.inf)],
    "size a text": [region(original_width="48", original_height="48")],
    "size negative": [region(original_width=-48)],
    "rectangle of 400 digits": [
        region(
            type="rectanglelabels",
            value={"x": 10**400, "y": 0, "width": 5, "height": 5, "rotation": 0, "rectanglelabels": ["red"]},
        )
    ],
}
BAD_FIELDS: dict[str, dict[str, Any]] = {
    "id null": {"id": None},
    "id a text": {"id": "seven"},
    "id a list": {"id": [1]},
    "id a truth": {"id": True},
}


JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, math.nan, math.inf, 10**400, "x", ""),
    *([], {}, [None], [[]], {"a": 1}),
)


@pytest.mark.parametrize(
    "whole",
    [
        region(),
        polygon(SQUARE),
        region(
            type="rectanglelabels",
            value={"x": 1, "y": 1, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["red"]},
        ),
        region(
            type="ellipselabels",
            value={"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "rotation": 0, "ellipselabels": ["red"]},
        ),
        region(type="bitmasklabels", value={"imageDataURL": "data:image/png;base64,aaaa", "bitmasklabels": ["red"]}),
    ],
    ids=lambda whole: whole["type"],
)
def test_a_region_with_anything_in_any_field_is_read_or_unreadable_and_never_an_error(whole: Json) -> None:
    plan = parse_label_config(CONFIG)
    changed = [{**whole, name: junk} for name in whole for junk in JUNK]
    changed += [{**whole, "value": {**whole["value"], name: junk}} for name in whole["value"] for junk in JUNK]
    for one in changed:
        found = read_drawing([one], plan, "image", {"red", "blue"}, (48, 48))
        assert found is None or found.masks.keys() <= {"red", "blue"}


def test_bad_annotations_are_counted_and_left_out_and_the_rest_teaches_the_same(
    checkpoint: Path, tmp_path: Path
) -> None:
    good, bad = (
        Settings(checkpoint=str(checkpoint), data_dir=tmp_path / name, device="cpu", label_studio_url=None)
        for name in ("good", "bad")
    )
    with serve(corrected_project(24)) as label_studio:
        assert train(label_studio, good, QUICK).outcome == "published"
        image, masks = picture(500)
        true = [brush(label, mask) for label, mask in masks.items()]
        for result in BAD_RESULTS.values():
            label_studio.annotate(label_studio.add_task(image), [])["result"] = result
        for fields in BAD_FIELDS.values():
            label_studio.annotate(label_studio.add_task(image), true, **fields)
        result = train(label_studio, bad, QUICK)
    unreadable = len(BAD_RESULTS) + len(BAD_FIELDS)
    assert result.outcome == "published", result.reason
    assert result.counts["unreadable"] == unreadable
    assert result.counts["annotations"] == 24 + unreadable
    assert result.counts["images"] == 24
    assert VersionStore(bad.data_dir).get(7, 1).manifest.data.counts["unreadable"] == unreadable
    assert equal(weights(good.data_dir), weights(bad.data_dir))


@pytest.mark.parametrize(
    ("annotations", "unreadable"), [([None, 5, "a", []], 4), ({"id": 1}, 1), ("text", 1), (7, 1), (None, 0), ([], 0)]
)
def test_what_is_no_list_of_annotations_is_counted(annotations: Any, unreadable: int) -> None:
    counts: Counter[str] = Counter()
    assert annotations_that_count({"id": 1, "annotations": annotations}, counts) == []
    assert counts["unreadable"] == counts["annotations"] == unreadable
    assert stamps_of({"id": 1, "annotations": annotations}) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"completed_by": [1]},
        {"completed_by": {"id": {"a": 1}}},
        {"completed_by": None},
        {"updated_at": 17},
        {"updated_at": None},
        {"was_cancelled": None},
        {"ground_truth": None},
    ],
)
def test_fields_that_say_nothing_about_the_image_do_no_harm(
    changes: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    settings = Settings(checkpoint=str(checkpoint), data_dir=tmp_path, device="cpu", label_studio_url=None)
    with serve(corrected_project(6)) as label_studio:
        label_studio.annotations[3][0].update(changes)
        result = train(label_studio, settings, QUICK)
    assert result.outcome == "too few"
    assert result.counts == {"tasks": 6, "annotations": 6, "images": 6}


def test_a_region_of_an_unknown_type_teaches_neither_that_its_label_is_there_nor_that_it_is_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    settings = Settings(checkpoint=str(checkpoint), data_dir=tmp_path, device="cpu", label_studio_url=None)
    unknown = region(type="cuboidlabels", value={"depth": 3, "cuboidlabels": ["red"]})
    with serve(LabelStudio()) as label_studio:
        image, masks = picture(1)
        label_studio.annotate(label_studio.add_task(image), [brush("blue", masks["blue"]), unknown])
        result = train(label_studio, settings, QUICK)
    assert result.outcome == "too few"
    assert result.counts == {"tasks": 1, "annotations": 1, "images": 1}


def test_when_all_annotations_are_bad_the_job_says_so(checkpoint: Path, tmp_path: Path) -> None:
    settings = Settings(checkpoint=str(checkpoint), data_dir=tmp_path, device="cpu", label_studio_url=None)
    with serve(corrected_project(9)) as label_studio:
        for found in label_studio.annotations.values():
            found[0]["result"] = [region(value=None)]
        result = train(label_studio, settings, QUICK)
    assert result.outcome == "too few"
    assert "0 of 8 annotated images; 9 annotations could not be read" in result.reason

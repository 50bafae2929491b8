"""`vlm jobs`, `vlm versions` and the history of jobs that they read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from backend import job_commands, job_history
from backend.cli import app
from backend.job_commands import cancel_job, jobs_report, watch_jobs
from backend.job_history import JobHistory, JobRecord, LabelChange
from backend.queue import TrainingQueue
from backend.redis_connection import connect_redis
from backend.redis_server import RedisUnavailableError, release_server
from backend.settings import Settings
from backend.version_commands import use_version, versions_report
from backend.versions import (
    BaseCheckpoint,
    ManifestDraft,
    PinnedError,
    RecipeRecord,
    VersionError,
    VersionNotFoundError,
    VersionStore,
)

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield Settings(data_dir=tmp_path, checkpoint="demo")
    release_server(tmp_path / "redis")


def record(number: int, project_id: int = 7, **changes: object) -> JobRecord:
    fields: dict[str, object] = {
        "job_id": f"train-p{project_id}-{number:03d}",
        "project_id": project_id,
        "outcome": "published",
        "reason": "mean IoU +0.200 over 10 images",
        "started_at": START + timedelta(minutes=number),
        "ended_at": START + timedelta(minutes=number, seconds=30),
        "version": number,
        "labels": {"star": LabelChange(before=0.1, after=0.6, images=10)},
    }
    return JobRecord(**{**fields, **changes})  # type: ignore[arg-type]


def make_version(settings: Settings, project_id: int = 7, decision: str = "better") -> None:
    draft = ManifestDraft(
        base=BaseCheckpoint(name="demo", fingerprint="a" * 64),
        recipe=RecipeRecord(name="finetune_decoder"),
        seed=0,
        decision=decision,  # type: ignore[arg-type]
        reason="because",
    )
    VersionStore(settings.data_dir).write(project_id, {"w": torch.zeros(1)}, draft, {})


def run(settings: Settings, *arguments: str) -> tuple[int, str]:
    environment = {"VLM_DATA_DIR": str(settings.data_dir), "COLUMNS": "200", "REDIS_URL": ""}
    result = CliRunner().invoke(app, list(arguments), env=environment)
    return result.exit_code, result.output


def test_history_comes_back_newest_first(settings: Settings) -> None:
    history = JobHistory(settings.data_dir)
    for item in (record(2), record(1), record(3, project_id=8)):
        history.add(item)
    assert [item.job_id for item in history.list()] == ["train-p8-003", "train-p7-002", "train-p7-001"]
    assert history.list(7) == [record(2), record(1)]
    assert history.list(9) == []


def test_history_is_bounded_and_survives_a_damaged_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_history, "KEPT_PER_PROJECT", 3)
    history = JobHistory(settings.data_dir)
    for number in range(5):
        history.add(record(number))
    assert [item.version for item in history.list(7)] == [4, 3, 2]
    newest = max((settings.data_dir / "projects" / "7" / "jobs").iterdir())
    newest.write_text("{")
    assert [item.version for item in history.list(7)] == [3, 2]


def test_jobs_are_shown_without_redis(settings: Settings) -> None:
    JobHistory(settings.data_dir).add(record(1))
    code, output = run(settings, "jobs", "--project", "7", "--json")
    report = json.loads(output)
    assert code == 0
    assert report["live"] == []
    assert "no Redis runs" in report["queue"]
    assert not (settings.data_dir / "redis").exists()  # looking starts nothing
    (ended,) = report["ended"]
    assert (ended["outcome"], ended["version"], ended["seconds"]) == ("published", 1, 30.0)
    code, table = run(settings, "jobs")
    assert code == 0
    assert "version 1: mean IoU +0.200 over 10 images" in table
    assert "star: IoU 0.10 to 0.60 (10 images)" in table


def test_waiting_jobs_are_shown(settings: Settings) -> None:
    queue = TrainingQueue(connect_redis(settings))
    queue.request_training(7, reason="ANNOTATION_CREATED")
    queue.request_training(8, reason="ANNOTATION_CREATED")
    report = jobs_report(settings, project_id=8)
    assert report["queue"] == "running"
    (live,) = report["live"]
    assert (live["project_id"], live["state"], live["reason"]) == (8, "queued", "ANNOTATION_CREATED")
    json.dumps(report)
    assert "ANNOTATION_CREATED" in run(settings, "jobs")[1]


def test_a_waiting_training_is_cancelled_from_the_command_line_and_noted(settings: Settings) -> None:
    queue = TrainingQueue(connect_redis(settings))
    job_id = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
    code, output = run(settings, "jobs", "--cancel", "7")
    assert (code, "that waited is no more" in output) == (0, True)
    assert queue.status(7) is None
    (note,) = JobHistory(settings.data_dir).list(7)
    assert (note.job_id, note.outcome, note.requested) == (job_id, "cancelled", "ANNOTATION_CREATED")
    code, output = run(settings, "jobs", "--cancel", "7")
    assert (code, "No training of project 7" in output) == (0, True)
    assert len(JobHistory(settings.data_dir).list(7)) == 1


def test_cancelling_without_redis_says_so(settings: Settings) -> None:
    with pytest.raises(RedisUnavailableError, match="no Redis runs"):
        cancel_job(settings, 7)


def test_watching_draws_what_changes(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = TrainingQueue(connect_redis(settings))
    queue.request_training(7, reason="ANNOTATION_CREATED")
    monkeypatch.setattr(
        job_commands.time, "sleep", lambda seconds: queue.request_training(8, reason="found by the reconcile job")
    )
    watch_jobs(settings, project_id=None, limit=5, rounds=2)
    drawn = capsys.readouterr().out
    assert "ANNOTATION" in drawn
    assert "reconcile job" in drawn  # of the second round


def test_a_running_training_tells_loss_and_time_left() -> None:
    progress = {"phase": "training", "percent": 40, "loss": 0.1234, "seconds_left": 200}
    job = {"state": "running", "reason": "", "problem": "", "follow_up": False, "progress": progress}
    assert job_commands._doing(job) == "training, 40 %, loss 0.123, 3 min left"


def test_versions_are_shown_and_chosen(settings: Settings) -> None:
    make_version(settings)
    make_version(settings, decision="not better")
    make_version(settings, project_id=8)
    assert [row["serves"] for row in versions_report(settings, 7)] == [False, False]
    assert run(settings, "versions", "7", "--use", "2")[0] == 0
    assert [(row["number"], row["serves"]) for row in versions_report(settings, 7)] == [(1, False), (2, True)]
    code, output = run(settings, "versions", "--json")
    rows = json.loads(output)
    assert code == 0
    assert [(row["project_id"], row["number"]) for row in rows] == [(7, 1), (7, 2), (8, 1)]
    assert "not better: because" in run(settings, "versions", "7")[1]
    use_version(settings, 7, 0)
    assert VersionStore(settings.data_dir).current(7) is None


def test_a_running_training_cannot_publish_over_a_choice(settings: Settings) -> None:
    make_version(settings)
    store = VersionStore(settings.data_dir)
    token = store.next_token(7)
    use_version(settings, 7, 0)
    with pytest.raises(Exception, match="newest token"):
        store.publish(7, 1, token)


def test_a_pinned_version_is_replaced_by_hand_only(settings: Settings) -> None:
    make_version(settings)
    make_version(settings)
    store = VersionStore(settings.data_dir)
    assert run(settings, "versions", "7", "--pin", "1")[0] == 0
    assert [(row["number"], row["serves"], row["pinned"]) for row in versions_report(settings, 7)] == [
        (1, True, True),
        (2, False, False),
    ]
    assert "pinned" in run(settings, "versions", "7")[1]
    with pytest.raises(PinnedError, match="vlm versions 7 --unpin"):
        store.publish(7, 2, store.next_token(7))
    assert store.publication(7)[:2] == (1, 1)
    assert run(settings, "versions", "7", "--unpin")[0] == 0
    assert versions_report(settings, 7)[0]["serves"]  # it serves on
    store.publish(7, 2, store.next_token(7))
    # The base model can be pinned too, and choosing by hand lifts the pin.
    assert run(settings, "versions", "7", "--pin", "0")[0] == 0
    assert store.is_pinned(7)
    assert run(settings, "versions", "7", "--use", "2")[0] == 0
    assert not store.is_pinned(7)
    code, output = run(settings, "versions", "7", "--use", "2", "--unpin")
    assert (code, "give one of --use, --unpin" in output) == (2, True)
    assert run(settings, "versions", "--pin", "1")[0] == 2


def test_a_damaged_version_is_shown_as_such(settings: Settings) -> None:
    make_version(settings)
    make_version(settings)
    use_version(settings, 7, 2)
    (settings.data_dir / "projects" / "7" / "versions" / "002" / "weights.safetensors").unlink()
    rows = versions_report(settings, 7)
    assert rows[0]["error"] is None
    assert "weights.safetensors" in rows[1]["error"]
    assert run(settings, "versions", "7", "--use", "1")[0] == 0  # the remedy that the error names
    with pytest.raises(VersionNotFoundError):
        use_version(settings, 7, 9)


def test_a_damaged_pointer_is_shown_and_mended_by_choosing(settings: Settings) -> None:
    make_version(settings)
    use_version(settings, 7, 1)
    (settings.data_dir / "projects" / "7" / "current").write_text('{"vers')
    (settings.data_dir / "projects" / "0").mkdir()  # no project of ours
    rows = versions_report(settings)
    assert [(row["number"], row["serves"]) for row in rows] == [(None, False), (1, False)]
    assert "current: not JSON" in rows[0]["error"]
    code, table = run(settings, "versions")
    assert (code, "damaged: " in table) == (0, True)
    assert run(settings, "versions", "7", "--use", "1")[0] == 0
    assert [(row["number"], row["serves"]) for row in versions_report(settings)] == [(1, True)]


def test_names_are_shown_as_they_are(settings: Settings) -> None:
    change = LabelChange(before=0.1, after=0.6, images=10)
    labels = {"[red]": change, "[/]": change, ":star:": change}
    counts = {"image_failed": 2, "unreadable": 1, "skipped": 4}
    JobHistory(settings.data_dir).add(record(1, labels=labels, reason="[Errno 28] [/blue]", counts=counts))
    code, table = run(settings, "jobs")
    assert code == 0
    for name in labels:
        assert f"{name}: IoU 0.10 to 0.60" in table
    assert "[Errno 28] [/blue]" in table
    assert "left out: 2 images that could not be fetched, 1 annotations that could not be read" in table


def test_a_job_that_will_be_tried_again_says_why(settings: Settings) -> None:
    queue = TrainingQueue(connect_redis(settings))
    job = queue.rq.fetch_job(queue.request_training(7, reason="ANNOTATION_CREATED").job_id)
    assert job is not None
    job.started_at, job.retries_left = START, 1
    job.meta["problem"] = "Label Studio at http://ls:8080 cannot be reached"
    job.save()
    table = run(settings, "jobs")[1]
    assert "retrying" in table
    assert "will be tried again: Label Studio at http://ls:8080 cannot be reached" in table


def test_a_data_directory_that_cannot_be_written_is_one_message(settings: Settings) -> None:
    make_version(settings)
    fence = settings.data_dir / "projects" / "7" / "fence.json"
    fence.mkdir()
    (fence / "full").touch()
    with pytest.raises(VersionError, match="fence"):
        use_version(settings, 7, 1)


def test_choosing_needs_a_project(settings: Settings) -> None:
    assert run(settings, "versions", "--use", "1")[0] == 2

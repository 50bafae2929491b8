"""What last happened to each project, over restarts and beside other servers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backend import activity
from backend.activity import Activity, ProjectActivity


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_what_was_noted_is_known_at_once_and_after_a_restart(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    noted = Activity(tmp_path / "data")
    noted.served(7, "demo-p7-v001-0123abcd")
    noted.config(7, "no image")
    noted.predicted(7, 3, 1)
    noted.event(7, "ANNOTATION_CREATED", "queued")
    noted.error(7, "predict", "a.png: there is no such image")
    known = noted.of(7)
    noted.close()
    again = Activity(tmp_path / "data").of(7)
    assert again == known
    assert again.served is not None
    assert again.served.version == "demo-p7-v001-0123abcd"
    assert before <= again.served.at <= datetime.now(UTC)
    assert again.config is not None
    assert again.config.problem == "no image"
    assert again.prediction is not None
    assert (again.prediction.tasks, again.prediction.failed) == (3, 1)
    assert again.event is not None
    assert (again.event.action, again.event.outcome) == ("ANNOTATION_CREATED", "queued")
    assert again.error is not None
    assert (again.error.stage, again.error.reason) == ("predict", "a.png: there is no such image")


def test_nothing_is_made_where_nothing_happened(tmp_path: Path) -> None:
    quiet = Activity(tmp_path / "data")
    assert quiet.of(7) == ProjectActivity()
    assert quiet.all() == {}
    quiet.close()
    assert not (tmp_path / "data").exists()


def test_it_is_written_without_being_closed(tmp_path: Path) -> None:
    noted = Activity(tmp_path, write_every_s=0.01)
    for project in (7, 8):
        noted.event(project, "START_TRAINING", "queued")
        _wait(lambda project=project: project in Activity(tmp_path).all())  # type: ignore[misc]
    noted.close()


def test_of_each_fact_the_newest_stays_whoever_wrote_it(tmp_path: Path) -> None:
    one, other = Activity(tmp_path, write_every_s=0.01), Activity(tmp_path, write_every_s=0.01)
    one.served(7, "old")
    one.event(7, "ANNOTATION_CREATED", "queued")
    other.served(7, "new")
    other.event(8, "ANNOTATION_CREATED", "ignored")
    other.close()
    one.close()  # the older one writes last
    kept = Activity(tmp_path).all()
    assert list(kept) == [7, 8]
    assert kept[7].served is not None
    assert kept[7].served.version == "new"
    assert kept[7].event is not None
    assert one.all() == kept, "what others wrote is known too"


def test_the_projects_that_were_quiet_longest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "MAX_PROJECTS", 3)
    noted = Activity(tmp_path)
    for project in (1, 2, 3, 1, 4, 5):
        noted.event(project, "PROJECT_UPDATED", "ignored")
    assert list(noted.all()) == [1, 4, 5]
    noted.close()
    assert list(Activity(tmp_path).all()) == [1, 4, 5]


def test_long_and_broken_text_can_be_kept(tmp_path: Path) -> None:
    noted = Activity(tmp_path)
    noted.error(7, "predict", "x" * 10_000)
    noted.event(7, "half \ud800 of a pair", "ignored")
    noted.close()
    kept = Activity(tmp_path).of(7)
    assert kept.error is not None
    assert len(kept.error.reason) == activity.MAX_REASON_CHARS
    assert kept.event is not None
    assert kept.event.action == "half ? of a pair"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"projects": {"x": {}}}', '{"schema_version": 2}'])
def test_a_file_that_cannot_be_read_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "activity.json").write_text(text)
    noted = Activity(tmp_path)
    assert noted.all() == {}
    assert "activity.json" in caplog.text
    noted.served(7, "name")
    noted.close()
    assert list(Activity(tmp_path).all()) == [7]


def test_what_a_later_release_wrote_beside_is_not_minded(tmp_path: Path) -> None:
    event = {"at": "2026-01-01T00:00:00Z", "action": "A", "outcome": "queued", "by": "x"}
    file = {"schema_version": 1, "projects": {"7": {"event": event, "more": 1}}, "more": 1}
    (tmp_path / "activity.json").write_text(json.dumps(file))
    kept = Activity(tmp_path).of(7).event
    assert kept is not None
    assert kept.at == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_disk_that_cannot_be_written_costs_only_this(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a directory")
    noted = Activity(tmp_path / "file")
    noted.served(7, "name")
    assert list(noted.all()) == [7]
    noted.close()
    assert "cannot be written" in caplog.text

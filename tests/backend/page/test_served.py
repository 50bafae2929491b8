"""The page as a server gives it: who gets it, who gets JSON, and what stands on the disk."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.acceptance import Acceptance, AcceptanceStore
from backend.job_history import JobHistory, JobRecord
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.errors import LabelStudioUnreachableError
from backend.label_studio.titles import ProjectTitles
from backend.page import gather
from backend.prelabel_queue import PrelabelProgress
from backend.versions import BaseCheckpoint, ManifestDraft, RecipeRecord, VersionStore
from tests.backend.page.views import record
from tests.backend.serving import Server, serving, until

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(tmp_path, monkeypatch) as made:
        yield made.ready()


def publish(data_dir: Path, *, better: bool = True) -> None:
    store = VersionStore(data_dir)
    draft = ManifestDraft(
        base=BaseCheckpoint(name="colours", fingerprint="0" * 64),
        recipe=RecipeRecord(name="r"),
        seed=0,
        metrics={"gain": 0.125, "images": 9},
        decision="better" if better else "not better",
        reason="mean gain 0.125",
    )
    metrics = {"verdict": {"labels": {"Red": {"iou": {"old": 0.25, "new": 0.75}, "images": 9}}}}
    version = store.write(7, {"gain": torch.ones(1)}, draft, metrics)
    store.publish(7, version, store.next_token(7))


def ended(data_dir: Path, outcome: Any, reason: str, job_id: str = "train-p7-1") -> None:
    now = datetime.now(UTC)
    JobHistory(data_dir).add(
        JobRecord(job_id=job_id, project_id=7, outcome=outcome, reason=reason, started_at=now, ended_at=now)
    )


def page(server: Server, path: str = "/") -> str:
    answer = server.client.get(path, headers=HTML)
    assert answer.status_code == 200
    return str(answer.text)


def test_a_browser_gets_the_page_and_everyone_else_what_they_always_got(server: Server) -> None:
    answer = server.client.get("/", headers=HTML)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text.startswith("<!doctype html>")
    assert "No project yet" in answer.text
    for accept in ("*/*", "application/json", ""):
        other = server.client.get("/", headers={"Accept": accept})
        assert other.json() == {"status": "UP", "model": "ready"}
    assert server.client.head("/", headers=HTML).status_code == 200


def test_a_browser_is_told_to_keep_it_to_itself(server: Server) -> None:
    headers = server.client.get("/", headers=HTML).headers
    assert headers["cache-control"] == "no-store"
    assert headers["vary"] == "Accept"
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]


def test_it_wants_the_credentials_that_all_routes_want(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch, basic_auth_user="u", basic_auth_pass="p") as server:
        refused = server.ready().client.get("/", headers=HTML)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic")  # so the browser asks
        assert "No project" not in refused.text
        right = "Basic " + base64.b64encode(b"u:p").decode()
        assert server.client.get("/", headers=HTML | {"Authorization": right}).status_code == 200
        assert server.client.get("/").status_code == 200  # JSON: for the health checks of containers


def test_a_project_appears_with_what_happened_to_it(server: Server, tmp_path: Path) -> None:
    server.setup()
    server.event("ANNOTATION_CREATED")
    server.predict("nowhere")
    until(lambda: "ANNOTATION_CREATED, queued" in page(server))
    found = page(server)
    assert "Project 7" in found
    assert "The base model serves as colours-p7-v000-" in found
    assert "there is no such image (predict)" in found
    server.setup(schema="<View/")
    assert "The labelling config cannot be used" in page(server)


def test_versions_acceptance_and_the_last_training_come_from_the_disk(server: Server, tmp_path: Path) -> None:
    publish(tmp_path)
    records = (record(1, ("Red", "kept", 1.0), version=1), record(2, ("Red", "removed", 0.0), version=1))
    AcceptanceStore(tmp_path).put(7, Acceptance(read_at=datetime.now(UTC), records=records))
    ended(tmp_path, "failed", f"{tmp_path}/projects/7: No space left on device")
    found = page(server)
    assert "Version 1 serves" in found
    assert "+0.125" in found
    assert "compared on 9 images" in found
    assert "Red 0.25 → 0.75" in found
    assert "1 of 2 masks" in found
    assert found.count("failed: the data directory/projects/7: No space left on device") == 2  # training, error
    assert str(tmp_path) not in found


def test_a_damaged_version_is_said_and_the_rest_still_stands(server: Server, tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "projects" / "7" / "versions" / "001" / "manifest.json").write_text("{")
    found = page(server)
    assert "Its versions cannot be read" in found
    assert str(tmp_path) not in found


def test_pre_labelling_has_its_progress_and_what_became_of_the_last(server: Server, tmp_path: Path) -> None:
    run = PrelabelProgress(
        project_id=7,
        run_id="prelabel-1",
        state="running",
        started_at=datetime.now(UTC),
        total=400,
        done=100,
        posted=90,
        failed=10,
        rate_per_s=2.5,
        seconds_left=120.0,
        versions={},
        problem="Label Studio is away",
    )
    server.prelabelling.live.append(run)
    ended(tmp_path, "pre-labelled", "90 predictions imported", job_id="prelabel-0")
    ended(tmp_path, "too few", "too few corrections: 3 of 8")
    found = page(server)
    assert '<progress max="100" value="25"' in found
    assert "running, 100 of 400 tasks, 2.5 tasks a second, 25 %, about 2 minutes left" in found
    assert "Label Studio is away" in found
    assert "pre-labelled: 90 predictions imported" in found
    assert ": too few corrections: 3 of 8" in found


def test_a_queue_that_is_down_is_said(server: Server) -> None:
    server.training.down = True
    found = page(server)
    assert "queue down" in found
    assert "The job queue (Redis) cannot be reached" in found


def test_one_project_can_be_asked_for_and_the_quiet_ones_are_only_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "SHOWN", 2)
    for project in (5, 6, 7):
        server.setup(project=str(project))
    found = page(server)
    assert [f'id="project-{n}"' in found for n in (5, 6, 7)] == [False, True, True]
    assert '<a href="/?project=5"' in found
    alone = page(server, "/?project=5&refresh=off")
    assert [f'id="project-{n}"' in alone for n in (5, 6, 7)] == [True, False, False]
    assert "http-equiv" not in alone
    assert "No such project" in page(server, "/?project=99")
    assert server.client.get("/?project=x", headers=HTML).status_code == 422


# Titles -------------------------------------------------------------------------------------------------------


class Titles(LabelStudioClient):
    """A Label Studio that answers when it is let."""

    def __init__(self) -> None:
        self.free, self.asked, self.away = threading.Event(), 0, False

    def close(self) -> None: ...

    def projects(self) -> Iterator[dict[str, Any]]:
        self.asked += 1
        self.free.wait(20)
        if self.away:
            raise LabelStudioUnreachableError("away")
        yield {"id": 7, "title": "Zoo"}


def test_titles_come_later_and_nobody_waits_for_them() -> None:
    client = Titles()
    titles = ProjectTitles(lambda: client)
    assert titles() == {}
    assert titles() == {}  # Label Studio has not answered yet
    client.free.set()
    until(lambda: titles() == {7: "Zoo"})
    assert client.asked == 1


def test_titles_stay_while_label_studio_is_away() -> None:
    client = Titles()
    client.free.set()
    titles = ProjectTitles(lambda: client, keep_s=0.0)
    until(lambda: titles() == {7: "Zoo"})
    client.away = True
    asked = client.asked
    until(lambda: bool(titles()) and client.asked > asked + 1)
    assert titles() == {7: "Zoo"}


def test_without_a_label_studio_there_are_no_titles() -> None:
    assert ProjectTitles(None)() == {}

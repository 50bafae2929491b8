"""A first project from a folder, in the real Label Studio: predictions before anybody has clicked."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from backend.connect_command import connect_when_ready
from backend.demo.project import pictures, png
from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.first_project import stored_name
from backend.settings import Settings

pytestmark = pytest.mark.e2e

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="circle"/><Label value="square"/></BrushLabels></View>"""
NAMES = ("one circle.png", "b-2 (copy).png", "Ümläut & co.png")


def test_a_folder_becomes_one_project_with_predictions(stack: Stack, client: LabelStudioClient, tmp_path: Path) -> None:
    folder = tmp_path / "first"
    (folder / "images").mkdir(parents=True)
    (folder / "label-config.xml").write_text(CONFIG)
    (folder / "title.txt").write_text("Made from a folder\n")
    (folder / "images" / "notes.txt").write_text("no image")
    *early, late = zip(NAMES, pictures(3, first_seed=3_500_000), strict=True)
    for name, picture in early:
        (folder / "images" / name).write_bytes(png(picture.scene))
    settings = Settings(
        label_studio_url=stack.label_studio_url,
        label_studio_api_key=stack.credentials.api_token,  # type: ignore[arg-type]  # pydantic makes a secret of it
        webhook_secret=stack.credentials.webhook_secret,  # type: ignore[arg-type]
    )

    def connect() -> list[str]:
        said: list[str] = []
        connect_when_ready(
            settings, None, folder, backend_url=stack.backend_url, title=None, wait_s=60.0, say=said.append
        )
        return said

    assert "uploaded 2 of 2 images" in connect()
    projects = [item for item in client.projects() if item["title"] == "Made from a folder"]
    assert len(projects) == 1
    project_id = int(projects[0]["id"])
    assert [bool(task["predictions"]) for task in client.tasks(project_id)] == [True, True]
    assert connect() == ["all 2 images are there"]
    (folder / "images" / late[0]).write_bytes(png(late[1].scene))
    assert connect() == ["uploaded 1 of 3 images", "retrieved predictions for 1 tasks"]
    tasks = list(client.tasks(project_id))
    assert [len(task["predictions"]) for task in tasks] == [1, 1, 1]
    assert {unquote(str(task["data"]["image"])).rpartition("/")[2].partition("-")[2] for task in tasks} == {
        stored_name(name) for name in NAMES
    }
    assert connect() == ["all 3 images are there"]
    assert [item["title"] for item in client.projects()].count("Made from a folder") == 1

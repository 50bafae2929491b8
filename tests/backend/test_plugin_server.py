"""What stands before label-studio-ml's server, and how people start it."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.demo.processes import free_port
from backend.plugin_server import Guard
from backend.settings import Settings, child_environment
from tests.core.factories import make_clipseg_directory

ROOT = Path(__file__).parents[2]
BASIC = "Basic " + base64.b64encode(b"me:a-password").decode()
SECRET = "a-secret-of-webhooks"


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answers with the body that it could read; 500 for a body that says so, as 1.0.9 does."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    status = "500 INTERNAL SERVER ERROR" if b"fail" in body else "200 OK"
    start_response(status, [("Content-Type", "text/plain")])
    return [b"traceback of the server: " + body]


def call(app: Any, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    seen: list[str] = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "POST", "wsgi.input": io.BytesIO(body)}
    environ |= {"CONTENT_LENGTH": str(len(body))} | {f"HTTP_{name}": value for name, value in headers.items()}
    content = b"".join(app(environ, lambda status, _: seen.append(status)))
    return int(seen[0].split()[0]), content


def guard(tmp_path: Path, **settings: Any) -> Guard:
    return Guard(echo, Settings(data_dir=tmp_path, **settings))


AUTH = {"basic_auth_user": "me", "basic_auth_pass": "a-password"}
EVENT = json.dumps({"action": "ANNOTATION_CREATED"}).encode()
BUTTON = json.dumps({"action": "START_TRAINING"}).encode()


@pytest.mark.parametrize(
    ("settings", "path", "body", "headers", "status"),
    [
        ({}, "/predict", b"{}", {}, 200),
        (AUTH, "/predict", b"{}", {}, 401),
        (AUTH, "/predict", b"{}", {"AUTHORIZATION": "Basic bWU6d3Jvbmc="}, 401),
        (AUTH, "/predict", b"{}", {"AUTHORIZATION": BASIC}, 200),
        (AUTH, "/setup", b"{}", {}, 401),
        (AUTH, "/health", b"", {}, 200),
        (AUTH, "/", b"", {}, 200),
        (AUTH, "/train", b"{}", {}, 401),
        ({"webhook_secret": SECRET}, "/webhook", EVENT, {}, 401),
        ({"webhook_secret": SECRET}, "/webhook", EVENT, {"X_VLM_WEBHOOK_SECRET": SECRET}, 200),
        ({"webhook_secret": SECRET}, "/webhook", BUTTON, {}, 200),
        (AUTH | {"webhook_secret": SECRET}, "/webhook", BUTTON, {}, 401),
        ({}, "/webhook", b"[1]", {}, 400),
        ({}, "/webhook", b"[" * 100_000, {}, 400),
        ({"request_max_bytes": 1024}, "/predict", b"x" * 1025, {}, 413),
        ({"request_max_bytes": 1024}, "/predict", b"x" * 1024, {}, 200),
    ],
)
def test_who_may_call_and_how_much_they_may_send(
    tmp_path: Path, settings: dict[str, Any], path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answered, content = call(guard(tmp_path, **settings), path, body, **headers)
    assert answered == status
    assert content == b"traceback of the server: " + body if status == 200 else "error" in json.loads(content)


def test_a_failure_is_told_without_its_traceback(tmp_path: Path) -> None:
    status, content = call(guard(tmp_path), "/predict", b"fail")
    assert status == 500
    assert b"traceback" not in content


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plugin-server") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=64)
    return directory


def _environment(checkpoint: Path, data_dir: Path) -> dict[str, str]:
    settings = Settings(checkpoint=str(checkpoint), device="cpu", data_dir=data_dir, **AUTH)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it runs `python` and means this one
    return child_environment(settings) | {"PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def started(checkpoint: Path, tmp_path: Path) -> Iterator[str]:
    """`label-studio-ml start backend`, in a checkout; its address."""
    port = free_port()
    process = subprocess.Popen(
        [Path(sys.executable).parent / "label-studio-ml", "start", "backend", "-p", str(port)],
        cwd=ROOT,
        env=_environment(checkpoint, tmp_path / "data"),
        start_new_session=True,
    )
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, 15)
    process.wait(30)


def test_label_studio_ml_starts_it_by_the_name_of_its_folder(started: str, tmp_path: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            health = httpx.get(f"{started}/health", timeout=5)
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert health.json()["status"] == "UP"
    assert health.json()["model_dir"] == str(tmp_path / "data" / "label-studio-ml"), "not in the package"
    body = {"project": "7.1", "schema": '<View><Image name="i" value="$i"/></View>'}
    assert httpx.post(f"{started}/setup", json=body).status_code == 401
    reply = httpx.post(f"{started}/setup", json=body, auth=("me", "a-password"), timeout=30)
    assert reply.json() == {"model_version": "INITIAL"}
    assert sorted(path.name for path in ROOT.glob("backend/[0-9]*")) == []


def test_label_studio_ml_makes_a_folder_of_it(tmp_path: Path) -> None:
    made = subprocess.run(
        [Path(sys.executable).parent / "label-studio-ml", "init", "mine", "--script", ROOT / "backend" / "model.py"],
        cwd=tmp_path,
        env=_environment(tmp_path, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "from model import VLMBackend" in (tmp_path / "mine" / "_wsgi.py").read_text()
    # The folder needs the package only.
    ran = subprocess.run(
        [sys.executable, "-c", "import model; print(model.VLMBackend.__module__)"],
        cwd=tmp_path / "mine",
        env=_environment(tmp_path, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "backend.plugin", ran.stderr


def test_importing_them_brings_no_flask() -> None:
    script = "import backend.model, backend._wsgi, backend.plugin_server, sys; sys.exit('flask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0

"""No token, payload or signed address in any log, of server and worker, whatever goes wrong, at LOG_LEVEL=DEBUG.

Everything that must not be logged carries a mark; every line that the processes write is searched for it.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.redis_server import release_server
from backend.settings import Settings, child_environment
from tests.jobs import label_studio as fake
from tests.jobs.buggy import LIBRARIES, MARK, PROJECT
from tests.jobs.label_studio import LabelStudio, brush, picture, serve

TOKEN = f"{MARK}-token-of-label-studio"
USER, PASSWORD = "me", f"{MARK}-password"
SECRET = f"{MARK}-secret-of-webhooks"

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="red"/><Label value="blue"/></BrushLabels></View>"""


class Process:
    """`vlm serve` or `vlm worker`, with bugs, and the lines that it writes."""

    def __init__(self, command: str, settings: Settings) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.buggy", command],
            cwd=Path(__file__).parents[2],
            env=child_environment(settings) | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def until(self, *texts: str) -> str:
        """Wait for a line that holds all the texts."""
        deadline = time.monotonic() + 120
        while True:
            for line in list(self.lines):
                if all(text in line for text in texts):
                    return line
            assert time.monotonic() < deadline, f"{texts} was not written:\n{''.join(self.lines)}"
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.02)

    def told(self, *texts: str) -> bool:
        """Whether a line held all the texts."""
        return any(all(text in line for text in texts) for line in self.lines)

    def end(self) -> None:
        """End it; all its lines are read then."""
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self._reader.join()


class Marked(LabelStudio):
    """A Label Studio whose answers hold marks wherever there is no reason to log them."""

    def answer(self, path: str, query: Mapping[str, list[str]]) -> tuple[int, str, bytes]:
        if path == "/data/upload/broken.png":
            return 200, "image/png", f"{MARK}-bytes-of-a-file".encode()
        if path == "/data/upload/away.png":
            return 503, "text/plain", f"{MARK}-what-a-storage-said".encode()
        status, media_type, body = super().answer(path, query)
        if path.startswith("/api/projects/"):
            body = body.replace(b"{", f'{{"token": "{MARK}-token-of-a-project", '.encode(), 1)
        return status, media_type, body


@pytest.fixture
def label_studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[LabelStudio]:
    monkeypatch.setattr(fake, "TOKEN", TOKEN)
    project = Marked()
    for seed in range(3):
        image, masks = picture(seed)
        project.annotate(
            project.add_task(image),
            [brush(label, mask, meta={"text": [f"{MARK}-note-of-an-annotator"]}) for label, mask in masks.items()],
        )
    text = {"type": "textarea", "from_name": "text", "to_name": "image", "value": {"text": [f"{MARK}-typed"]}}
    project.annotate(1, [text, {**text, "type": f"{MARK}-type", "value": f"{MARK}-value"}])
    with serve(project) as running:
        yield running


@pytest.fixture
def processes(tmp_path: Path, checkpoint: Path, label_studio: LabelStudio) -> Iterator[tuple[Process, Process]]:
    settings = Settings(
        checkpoint=str(checkpoint),
        device="cpu",
        data_dir=tmp_path,
        port=0,
        label_studio_url=label_studio.url,
        label_studio_api_key=TOKEN,
        basic_auth_user=USER,
        basic_auth_pass=PASSWORD,
        webhook_secret=SECRET,
        request_max_bytes=10_000,
        image_timeout_s=5,
        log_level="DEBUG",
    )
    server, worker = Process("serve", settings), Process("worker", settings)
    try:
        yield server, worker
    finally:
        worker.end()
        server.end()
        release_server(tmp_path / "redis")


def _address(server: Process) -> str:
    return "http" + server.until("listening on http").partition("listening on http")[2].strip().split('"')[0]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _bodies(origin: str) -> Iterator[tuple[str, Any]]:
    """Routes and what they are sent: right, wrong and broken, all with marks."""
    private = {"login": f"{MARK}-login", "password": f"{MARK}-password-of-tasks"}
    setup = {"project": "7.17", "schema": CONFIG, "hostname": f"http://{MARK}:{MARK}@ls", "access_token": f"{MARK}-t"}
    yield "/setup", setup
    yield "/setup", setup | {"extra_params": {"api_key": f"{MARK}-key"}}
    yield "/setup", setup | {"project": 9, "extra_params": f"{MARK}-not-json"}
    yield "/setup", setup | {"project": f"{MARK}-project"}
    uris = [
        f"/data/upload/1.png?token={MARK}",
        f"/data/upload/missing.png?token={MARK}",
        f"/data/upload/broken.png?token={MARK}",
        f"/data/upload/away.png?token={MARK}",
        f"{origin}/data/upload/1.png?X-Amz-Signature={MARK}#{MARK}=1",
        f"http://{MARK}:{MARK}@127.0.0.1:9/a.png?X-Amz-Signature={MARK}",
        f"https://169.254.169.254/a.png?X-Amz-Signature={MARK}",
        f"s3://bucket/a.png?versionId={MARK}",
        f"data:image/png;base64,{MARK}" + "A" * 100,
        f"ftp://{MARK}@host/a?{MARK}=1",
        f"http://[bad?token={MARK}",
    ]
    tasks = [
        {"id": n, "data": {"image": uri, "text": f"{MARK}-of-a-task"}, "annotations": [{"result": f"{MARK}-drawn"}]}
        for n, uri in enumerate(uris, 1)
    ]
    predict = {"tasks": tasks, "project": "7.17", "label_config": CONFIG, "params": private}
    yield "/predict", predict
    yield "/predict", predict | {"tasks": [f"{MARK}-no-task", {"data": {"image": [f"{MARK}-no-address"]}}]}
    typed = {"type": "textarea", "from_name": "text", "to_name": "image", "value": {"text": [f"{MARK}-typed"]}}
    drawn = {"type": "brushlabels", "from_name": "brush", "value": {"brushlabels": ["red"], "rle": f"{MARK}-rle"}}
    for result in ([typed], [drawn], f"{MARK}-result", [{"value": f"{MARK}-value"}]):
        yield "/predict", predict | {"tasks": tasks[:1], "params": private | {"context": {"result": result}}}
    yield "/predict", predict | {"params": f"{MARK}-params"}
    yield "/predict", predict | {"label_config": " ", "tasks": f"{MARK}-tasks"}
    yield "/predict", {"tasks": [f"{MARK}-much" * 10_000]}
    for action in ("ANNOTATION_CREATED", "PROJECT_UPDATED", "START_TRAINING"):
        project = {"id": 7, "token": f"{MARK}-token-of-a-project", "title": f"{MARK}-title"}
        yield "/webhook", {"action": action, "project": project, "annotation": {"result": f"{MARK}-drawn"}}
    yield "/webhook", {"action": "START_TRAINING", "project": {"id": f"{MARK}-id"}}
    yield "/webhook", {"action": "START_TRAINING", "project": {"id": PROJECT}}


def test_no_mark_is_in_any_line(processes: tuple[Process, Process], label_studio: LabelStudio, tmp_path: Path) -> None:
    server, worker = processes
    address = _address(server)
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    good = {"Authorization": f"Basic {encoded}", "Cookie": f"session={MARK}", "X-Forwarded-For": MARK}
    wrong = {
        "Authorization": "Basic " + base64.b64encode(f"{MARK}:{MARK}".encode()).decode(),
        "X-VLM-Webhook-Secret": f"{MARK}-wrong",
    }
    query = {"token": MARK, "project": f"{MARK}-project"}
    with httpx.Client(base_url=address, timeout=120, params=query) as client:
        _until(lambda: client.get("/health").json()["model"] == "ready")
        for headers in (good, wrong, good | {"Authorization": f"Token {MARK}12345"}):
            for path in ("/", "/health", "/ready", "/status", "/metrics", "/versions", "/openapi.json", "/nowhere"):
                for method in ("GET", "POST", "DELETE"):
                    client.request(method, path, headers=headers)
        assert client.get("/versions", headers=good, params={"project": "7"}).status_code == 500
        for headers in (wrong, good):
            for path, body in _bodies(label_studio.url):
                client.post(path, json=body, headers=headers)
            for path in ("/setup", "/predict", "/webhook"):
                client.post(path, content=f'{{"{MARK}": {MARK}'.encode(), headers=headers)
        client.post("/webhook", json={"action": "x", "project": MARK}, headers={"X-VLM-Webhook-Secret": SECRET})
    for job in ("train-p7-", f"train-p{PROJECT}-"):
        worker.until(job, "outcome")
    worker.until("builtins.ValueError: ")  # written after the outcome; a worker that ends cuts its job short
    worker.end()
    server.end()
    # All of it has happened, and was told.
    expected = [
        (server, ("/predict", "failed")),
        (server, ("/webhook", "START_TRAINING", "queued")),
        (server, ("builtins.KeyError: (its text is left out",)),
        (worker, ("builtins.ValueError: (its text is left out",)),
        *((process, (f"warning of {name}: /storage/a.png?...",)) for process in processes for name in LIBRARIES),
        (server, ("the key is [removed]",)),
        (server, ("info of uvicorn.error: https://bucket/a.png?...",)),
    ]
    for process, texts in expected:
        assert process.told(*texts), f"{texts} was not written:\n{''.join(process.lines)}"
    lines = server.lines + worker.lines
    assert not [line for line in lines if MARK in line or encoded in line]
    assert not [line for line in lines if "debug of" in line or "info of httpx" in line]
    for path in tmp_path.glob("*.json"):
        assert MARK not in path.read_text(), path.name

"""The app over fakes, started, and what tests ask of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import backend.app
from backend.app import create_app
from backend.settings import Settings
from tests.backend.fakes import ColourModel, MemoryImages, MemoryPrelabelling, MemoryTraining, squares

CONFIG = """<View><Image name="i" value="$image"/>
<BrushLabels name="b" toName="i"><Label value="Red" prompt="red"/></BrushLabels></View>"""
PROJECT = "7.1700000000"


class Server:
    """The app over fakes, started."""

    def __init__(
        self, client: TestClient, training: MemoryTraining, prelabelling: MemoryPrelabelling, model: ColourModel
    ) -> None:
        self.client, self.training, self.prelabelling, self.model = client, training, prelabelling, model

    def ready(self) -> Server:
        deadline = time.monotonic() + 10
        while self.client.get("/health").json()["model"] != "ready":
            assert time.monotonic() < deadline
        return self

    def setup(self, **changes: Any) -> Any:
        body = {"project": PROJECT, "schema": CONFIG, "hostname": "http://ls", "access_token": "t", "extra_params": {}}
        return self.client.post("/setup", json=body | changes)

    def predict(self, *uris: str, **changes: Any) -> Any:
        tasks = [{"id": n, "project": 7, "data": {"image": uri}} for n, uri in enumerate(uris)]
        params = {"login": None, "password": None, "context": None}
        body = {"tasks": tasks, "project": PROJECT, "label_config": CONFIG, "params": params}
        return self.client.post("/predict", json=body | changes)

    def event(self, action: str, project: Any = None, **fields: Any) -> Any:
        body = {"action": action, "project": {"id": 7, "token": "secret"} if project is None else project}
        return self.client.post("/webhook", json=body | fields)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def serving(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, gate: threading.Event | None = None, **settings: Any
) -> Iterator[Server]:
    model = ColourModel()

    def load(_: Settings) -> ColourModel:
        if gate is not None:
            gate.wait(10)
        return model

    monkeypatch.setattr(backend.app, "load_model", load)
    images = MemoryImages({"squares": squares(), "white": Image.new("RGB", (40, 30), "white")})
    training, prelabelling = MemoryTraining(), MemoryPrelabelling()
    app = create_app(
        Settings(data_dir=data_dir, **settings),
        images=images,
        training=training,
        prelabelling=prelabelling,  # type: ignore[arg-type]  # what the server asks of it when nothing is late
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Server(client, training, prelabelling, model)

"""One backend process on a free port, without Label Studio; for benchmarks and the soak test."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from backend.demo.processes import Child, Supervisor, child_environment, free_port
from backend.demo.project import label_config, png
from vlm_core.demo.scenes import generate_scene

PROJECT = "1.1700000000"
ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def running_backend(checkpoint: str, **variables: str) -> Iterator[tuple[httpx.Client, Child]]:
    """A backend that has loaded its checkpoint, and a client for it; `variables` are more of its environment."""
    with tempfile.TemporaryDirectory() as folder, Supervisor(Path(folder) / "logs") as supervisor:
        port = free_port()
        own = {
            "VLM_CHECKPOINT": checkpoint,
            "VLM_DATA_DIR": f"{folder}/data",
            "VLM_HOST": "127.0.0.1",
            "PORT": str(port),
            # The code beside this file, whatever is installed.
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        environment = child_environment(("VLM_DEVICE", "VLM_DTYPE"), **own | variables)
        argv = [sys.executable, "-m", "backend.cli", "serve"]
        child = supervisor.start("backend", argv, env=environment, cwd=Path(folder), remedy="See its log.")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0, trust_env=False) as client:

            def ready() -> bool | None:
                try:
                    return True if client.get("/health").json()["model"] == "ready" else None
                except httpx.HTTPError:
                    return None

            supervisor.wait_for("the backend to load its checkpoint", ready, timeout_s=300.0)
            yield client, child


def tasks(first_seed: int, number: int) -> list[dict[str, Any]]:
    """Scenes as tasks whose pictures travel with them."""
    scenes = [generate_scene(first_seed + index) for index in range(number)]
    pictures = ["data:image/png;base64," + base64.b64encode(png(scene)).decode() for scene in scenes]
    return [{"id": first_seed + index, "data": {"image": picture}} for index, picture in enumerate(pictures)]


def predict_body(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A request for predictions, as Label Studio sends it."""
    return {"tasks": items, "project": PROJECT, "label_config": label_config(), "params": {"context": None}}

"""Label Studio, a backend and a worker of their own, started together on this machine.

The demo and the end-to-end tests use the same stack. All its data is in one directory:

credentials.json   sign-in, token and secret (mode 600)
label-studio/      Label Studio's database and uploads
vlm/               the backend's data directory: versions, caches, the embedded Redis
logs/              one file a process
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from backend.demo.deployment import Deployment
from backend.demo.label_studio import Credentials, answers, find_label_studio, start_label_studio, wait_for_label_studio
from backend.demo.processes import Child, DemoError, Supervisor, child_environment, require_free_port
from backend.label_studio.client import LabelStudioClient
from backend.queue import TrainingQueue
from backend.redis_connection import connect_redis

_KEPT = ("VLM_DEVICE", "VLM_DTYPE", "LOG_LEVEL")
"""Settings of the user's shell that are the machine's business and are passed on; all others are the demo's."""
_MODEL_LOAD_S = 600.0


@dataclass(frozen=True)
class StackOptions:
    """What to start, and where.

    Attributes:
        data_dir: directory for everything that is written; made if missing.
        label_studio: the `label-studio` command; None looks for it.
        port: Label Studio's, on 127.0.0.1.
        backend_port: the backend's, on 127.0.0.1.
        checkpoint: what the backend serves before anything is learned.
        train_after: new annotations that start a training by themselves.
    """

    data_dir: Path
    port: int
    backend_port: int
    label_studio: Path | None = None
    checkpoint: str = "demo"
    train_after: int = 4


@dataclass(frozen=True)
class EmbeddedRedis:
    """Where the stack's Redis is, for `connect_redis`, whatever the environment says."""

    data_dir: Path
    redis_url: str | None = None


@dataclass(frozen=True)
class Stack:
    """A running stack.

    Attributes:
        options: what it was started with.
        credentials: how to sign in.
        label_studio_url: with 127.0.0.1, no slash at the end.
        backend_url: the same for the backend.
        processes: Label Studio, backend and worker.
    """

    options: StackOptions
    credentials: Credentials
    label_studio_url: str
    backend_url: str
    processes: tuple[Child, ...]

    @property
    def vlm_dir(self) -> Path:
        """The backend's and the worker's data directory."""
        return self.options.data_dir / "vlm"

    @property
    def deployment(self) -> Deployment:
        """The stack as the round trip sees it."""
        return Deployment(
            label_studio_url=self.label_studio_url,
            api_token=self.credentials.api_token,
            backend_url=self.backend_url,
            data_dir=self.vlm_dir,
            connect_queue=self.queue,
            webhook_secret=self.credentials.webhook_secret,
        )

    def client(self) -> LabelStudioClient:
        """A client that acts as the demo's user; close it after use."""
        return self.deployment.client()

    def queue(self) -> TrainingQueue:
        """The stack's training queue, to look at."""
        return TrainingQueue(connect_redis(EmbeddedRedis(self.vlm_dir), start=False))


def start_stack(supervisor: Supervisor, options: StackOptions, say: Callable[[str], None] = print) -> Stack:
    """Start everything and wait until it can be used.

    Args:
        supervisor: watches and ends what is started.
        options: what to start.
        say: prints a line for the user.

    Raises:
        DemoError: a port is taken, a tool is missing, or a process ends or does not answer.
    """
    executable = find_label_studio(options.label_studio)
    if options.port == options.backend_port:
        raise DemoError(f"Label Studio and the backend cannot both use port {options.port}: choose two ports")
    require_free_port(options.port, "Label Studio", "Choose another: make demo DEMO_PORT=8081 (vlm demo --port)")
    require_free_port(
        options.backend_port, "the backend", "Choose another: make demo BACKEND_PORT=9091 (vlm demo --backend-port)"
    )
    data_dir = options.data_dir.absolute()
    data_dir.mkdir(parents=True, exist_ok=True)
    credentials = Credentials.load_or_create(data_dir / "credentials.json")
    label_studio_url = f"http://127.0.0.1:{options.port}"
    backend_url = f"http://127.0.0.1:{options.backend_port}"
    environment = child_environment(
        _KEPT,
        VLM_CHECKPOINT=options.checkpoint,
        VLM_DATA_DIR=str(data_dir / "vlm"),
        VLM_TRAIN_MIN_ANNOTATIONS=str(options.train_after),
        VLM_HOST="127.0.0.1",
        PORT=str(options.backend_port),
        VLM_WEBHOOK_SECRET=credentials.webhook_secret,
        LABEL_STUDIO_URL=label_studio_url,
        LABEL_STUDIO_API_KEY=credentials.api_token,
        PYTHONUNBUFFERED="1",
    )
    vlm = [sys.executable, "-m", "backend.cli"]
    say("Starting Label Studio, the backend and the worker")
    label_studio = start_label_studio(supervisor, executable, data_dir / "label-studio", options.port, credentials)
    remedy = "Mend what its log says and start again."
    # The backend before the worker: it makes the embedded Redis that both use.
    backend = supervisor.start("backend", [*vlm, "serve"], env=environment, cwd=data_dir, remedy=remedy)
    supervisor.wait_for("the backend to answer", lambda: answers(f"{backend_url}/health"), timeout_s=300.0)
    worker = supervisor.start("worker", [*vlm, "worker"], env=environment, cwd=data_dir, remedy=remedy)
    wait_for_label_studio(supervisor, label_studio_url)
    supervisor.wait_for(
        f"the backend to load the checkpoint {options.checkpoint!r}",
        lambda: _model_is_loaded(backend_url, backend),
        timeout_s=_MODEL_LOAD_S,
    )
    return Stack(options, credentials, label_studio_url, backend_url, (label_studio, backend, worker))


def _model_is_loaded(backend_url: str, backend: Child) -> bool | None:
    """True when it is, None while it is not.

    Raises:
        DemoError: it cannot be loaded.
    """
    try:
        status = httpx.get(f"{backend_url}/health", timeout=5.0, trust_env=False).json().get("model")
    except (httpx.HTTPError, ValueError):
        return None
    if status == "failed":
        raise DemoError(f"the backend cannot load its checkpoint. The end of {backend.log}:\n{backend.tail()}")
    return True if status == "ready" else None

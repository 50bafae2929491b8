"""What a job on the same machine costs those who wait for predictions.

    python -m benchmarks.beside_jobs --write

One server process, one request after the other with a new picture each, as annotators who open tasks. In turns nothing
else runs, or a worker at its own settings trains on demo scenes with true masks, or pre-labels tasks. Writes a part of
benchmarks/serving.md. On one GPU that both share: `--device cuda --checkpoint base`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import redis
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.prelabel_queue import PrelabelQueue, PrelabelRequest
from backend.queue import START_TRAINING, TrainingQueue
from backend.settings import Settings
from benchmarks.checkpoint import make_checkpoint
from benchmarks.server import predict_body, running_backend, tasks
from benchmarks.serving import Latencies, keep, machine, table
from tests.jobs.demo_project import scenes_project
from tests.jobs.label_studio import serve
from tests.jobs.prelabelled import PrelabelLabelStudio
from tests.jobs.test_worker import start_worker, until
from tests.private_redis import private_redis

PROJECT, REQUESTS, TASKS, LIMIT_S = 7, 60, 2000, 600.0
LEARNING = ("trying", "learning", "choosing")
"""How the phases begin in which a training computes."""

Job = Callable[[Settings, redis.Redis], contextlib.AbstractContextManager[None]]


def ask(client: httpx.Client, seed: int) -> list[float]:
    """Seconds of one request after the other."""
    found = []
    for number in range(REQUESTS):
        body = predict_body(tasks(seed + number, 1))
        began = time.monotonic()
        (result,) = client.post("/predict", json=body).raise_for_status().json()["results"]
        found.append(time.monotonic() - began)
        assert "result" in result, result
    return found


@contextlib.contextmanager
def training(scenes: int, settings: Settings, connection: redis.Redis) -> Iterator[None]:
    """A training that computes for as long as this lasts."""
    queue = TrainingQueue(connection)

    def learns() -> bool:
        status = queue.status(PROJECT)
        progress = {} if status is None or status.progress is None else status.progress
        return str(progress.get("phase", "")).startswith(LEARNING)

    with serve(scenes_project(scenes)) as label_studio:
        queue.request_training(PROJECT, reason=START_TRAINING)
        with _worker(settings, label_studio.url):
            until(learns, "a training that computes", LIMIT_S)
            yield
            assert learns(), "the training ended before the requests did"


@contextlib.contextmanager
def prelabelling(settings: Settings, connection: redis.Redis) -> Iterator[None]:
    """A pre-labelling job that computes for as long as this lasts."""
    with serve(PrelabelLabelStudio(TASKS)) as label_studio:
        PrelabelQueue(connection).request(PROJECT, PrelabelRequest())
        with _worker(settings, label_studio.url):
            until(label_studio.stored.is_set, "a first import", LIMIT_S)
            yield
            assert len(label_studio.imported) < TASKS, "the pre-labelling ended before the requests did"


@contextlib.contextmanager
def _worker(settings: Settings, url: str) -> Iterator[None]:
    """With as many threads as it takes by itself; killed at the end, its job with it."""
    own = {"VLM_TRAIN_RECIPE": "", "OMP_NUM_THREADS": str(os.cpu_count()), "VLM_DEVICE": settings.device}
    worker = start_worker(settings, url, **own)
    try:
        yield
    finally:
        children = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        worker.wait()
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--device", default="cpu", help="of both; on one GPU they share it")
    parser.add_argument("--checkpoint", default="demo", help="a name, a directory, or `base`: ViT-B/16, random weights")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=100, help="that the training learns from")
    arguments = parser.parse_args()
    note = f"{arguments.turns} turns of {REQUESTS} requests each, one picture a request, every picture new"
    if arguments.device != "cpu":
        note += f"; both on one {torch.cuda.get_device_name(arguments.device)}, {arguments.checkpoint}"
    facts = machine(note)
    checkpoint = arguments.checkpoint
    if checkpoint == "base":
        checkpoint = str(make_checkpoint(Path(__file__).parent / "checkpoint"))
    jobs: dict[str, Job] = {
        "nothing": lambda settings, connection: contextlib.nullcontext(),
        "a training": lambda settings, connection: training(arguments.scenes, settings, connection),
        "pre-labelling": prelabelling,
    }
    found: dict[str, list[float]] = {name: [] for name in jobs}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_backend(checkpoint, VLM_DEVICE=arguments.device, VLM_DATA_DIR=folder) as (client, _),
        private_redis(Path(folder)) as connection,
    ):
        settings = Settings(checkpoint=checkpoint, data_dir=Path(folder), device=arguments.device)
        ask(client, 5_000_000)  # uncounted
        seed = 6_000_000
        for _ in range(arguments.turns):
            for name, job in jobs.items():
                with job(settings, connection):
                    found[name] += ask(client, seed)
                seed += 5_000
                connection.flushall()
    page = table(
        ["beside it", "p50 ms", "p99 ms", "longest ms"],
        [[name, *Latencies(values).cells()] for name, values in found.items()],
    )
    print(page)
    if arguments.write:
        keep("Beside jobs" + ("" if arguments.device == "cpu" else " on one GPU"), [facts, page])


if __name__ == "__main__":
    main()

"""What a training on the same machine costs those who wait for predictions.

    python -m benchmarks.training_beside --write

One server process with the demo checkpoint, one request after the other with a new picture each, as annotators who open
tasks. In turns nothing else runs, or a worker trains on demo scenes with true masks, at its own settings. Writes a part
of benchmarks/serving.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.queue import START_TRAINING, TrainingQueue
from backend.settings import Settings
from benchmarks.checkpoint import make_checkpoint
from benchmarks.server import predict_body, running_backend, tasks
from benchmarks.serving import Latencies, keep, machine, table
from tests.jobs.demo_project import scenes_project
from tests.jobs.label_studio import serve
from tests.jobs.test_worker import start_worker
from tests.private_redis import private_redis

PROJECT, REQUESTS = 7, 60
LEARNING = ("trying", "learning", "choosing")
"""How the phases begin in which a training computes."""


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


def wait_for(condition: Callable[[], bool], limit_s: float = 600.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"it took longer than {limit_s:.0f} s")
        time.sleep(0.2)


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
    alone: list[float] = []
    beside: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_backend(checkpoint, VLM_DEVICE=arguments.device, VLM_DATA_DIR=folder) as (client, _),
        serve(scenes_project(arguments.scenes)) as label_studio,
        private_redis(Path(folder)) as connection,
    ):
        settings = Settings(checkpoint=checkpoint, data_dir=Path(folder), device=arguments.device)
        queue = TrainingQueue(connection)
        ask(client, 5_000_000)  # uncounted
        for turn in range(arguments.turns):
            seed = 6_000_000 + 10_000 * turn
            alone += ask(client, seed)
            queue.request_training(PROJECT, reason=START_TRAINING)
            own = {"VLM_TRAIN_RECIPE": "", "OMP_NUM_THREADS": str(os.cpu_count()), "VLM_DEVICE": arguments.device}
            worker = start_worker(settings, label_studio.url, **own)
            try:
                wait_for(lambda: _phase(queue).startswith(LEARNING))
                beside += ask(client, seed + 5_000)
                assert _phase(queue).startswith(LEARNING), "the training ended before the requests did"
            finally:
                children = psutil.Process(worker.pid).children(recursive=True)
                worker.kill()
                worker.wait()
                for process in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(children)
            connection.flushall()
    rows = [["nothing", *Latencies(alone).cells()], ["a training", *Latencies(beside).cells()]]
    page = table(["beside it", "p50 ms", "p99 ms", "longest ms"], rows)
    print(page)
    if arguments.write:
        keep("Beside a training" + ("" if arguments.device == "cpu" else " on one GPU"), [facts, page])


def _phase(queue: TrainingQueue) -> str:
    status = queue.status(PROJECT)
    return "" if status is None or status.progress is None else str(status.progress.get("phase", ""))


if __name__ == "__main__":
    main()

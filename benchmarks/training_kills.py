"""Trainings under random kills: part of `make soak`.

    python -m benchmarks.training_kills --kills 50 --write

A project of demo scenes with true masks, the demo checkpoint, a real Redis, `vlm worker` as a process of its own. While
corrections keep coming, the worker, the process of its job, or both are killed (SIGKILL) at random moments, and the
worker is started again. After each kill every version on the disk must be whole and what serves must load. In the end
nothing may be lost: the last training has read every annotation as it is then, no job is left, and the weights of what
it made are those of an undisturbed training of the same annotations in another place, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import psutil
import redis
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend import queue as queue_module
from backend.job_history import JobHistory
from backend.queue import START_TRAINING, TrainingQueue
from backend.settings import Settings
from backend.versions import StoredVersion, VersionStore
from tests.jobs.demo_project import scenes_project
from tests.jobs.label_studio import LabelStudio, serve
from tests.jobs.test_worker import start_worker
from tests.private_redis import private_redis

HERE = Path(__file__).parent
PAGE = HERE / "KILLS.md"
PROJECT = 7
SCENES = 36
RECIPE = {"conditions": {"steps": 60}, "decoder_from": 10_000}
LONGEST_S = 12.0
"""Between the start of a worker and its kill: about what a whole training takes here."""


def worker(settings: Settings, url: str) -> subprocess.Popen[bytes]:
    """`vlm worker`, which looks after things each second."""
    return start_worker(
        settings,
        url,
        PYTHONPATH=str(HERE.parent),
        VLM_TRAIN_RECIPE=json.dumps(RECIPE),
        VLM_RECONCILE_S="1",
        LOG_LEVEL="ERROR",
    )


def kill(process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kill the worker, a process of it, or all of them; what it was."""
    children = psutil.Process(process.pid).children(recursive=True)
    target = chance.choice(["worker", "job", "both"] if children else ["worker"])
    for child in children if target != "worker" else []:
        try:
            child.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    if target != "job":
        process.kill()
        process.wait()
    return target


def check(store: VersionStore) -> StoredVersion | None:
    """All that is on the disk is whole; what serves.

    Raises:
        VersionError: it is not.
    """
    for number in store.numbers(PROJECT):
        store.get(PROJECT, number).load_weights()
    return store.current(PROJECT)


def correct(label_studio: LabelStudio, queue: TrainingQueue, chance: random.Random) -> None:
    """An annotator submits an annotation again, or somebody presses the button."""
    if chance.random() < 0.3:
        queue.request_training(PROJECT, reason=START_TRAINING)
        return
    annotation = chance.choice([found for found in label_studio.annotations.values() if found])[0]
    if len(annotation["result"]) > 1 and chance.random() < 0.3:
        annotation["result"].pop()
    label_studio.change(annotation)
    queue.request_training(PROJECT, reason="ANNOTATION_UPDATED")


def wait_until_idle(queue: TrainingQueue, limit_s: float = 600.0) -> None:
    """Until no job waits or runs."""
    deadline = time.monotonic() + limit_s
    while queue.status(PROJECT) is not None:
        if time.monotonic() > deadline:
            raise SystemExit(f"a job is still there after {limit_s:.0f} s: {queue.status(PROJECT)}")
        time.sleep(0.2)


def train_undisturbed(label_studio: LabelStudio, settings: Settings, split: Path) -> StoredVersion:
    """One training of what is annotated now, with a queue and a store of its own.

    Which images are held out was decided when each was first seen, by what was annotated then: that much is taken over.
    """
    project = VersionStore(settings.data_dir).project_dir(PROJECT)
    project.mkdir(parents=True)
    shutil.copy(split, project)
    with private_redis(settings.data_dir) as connection:
        queue = TrainingQueue(connection)
        queue.request_training(PROJECT, reason=START_TRAINING)
        process = worker(settings, label_studio.url)
        try:
            wait_until_idle(queue)
        finally:
            process.terminate()
            process.wait()
    store = VersionStore(settings.data_dir)
    return store.get(PROJECT, store.numbers(PROJECT)[-1])


def soak(kills: int, seed: int, directory: Path) -> list[tuple[str, str]]:
    """Run it; rows for the page. SystemExit where something was lost."""
    queue_module.RETRY_INTERVALS_S = (0, 0)  # the kills are the test, not the waiting
    chance = random.Random(seed)
    settings = Settings(checkpoint="demo", data_dir=directory / "disturbed", device="cpu")
    settings.data_dir.mkdir()
    store, killed = VersionStore(settings.data_dir), Counter[str]()
    began = time.monotonic()
    with serve(scenes_project(SCENES)) as label_studio, private_redis(settings.data_dir) as connection:
        queue = TrainingQueue(connection)
        process = worker(settings, label_studio.url)
        try:
            while killed.total() < kills:
                correct(label_studio, queue, chance)
                time.sleep(chance.uniform(0.5, LONGEST_S))
                target = kill(process, chance)
                killed[target] += 1
                serving = check(store)
                print(
                    f"{time.monotonic() - began:6.0f} s  kill {killed.total()}: {target}; versions "
                    f"{store.numbers(PROJECT)}, serves {serving.number if serving else 0}",
                    flush=True,
                )
                if target != "job":
                    process = worker(settings, label_studio.url)
            queue.request_training(PROJECT, reason=START_TRAINING)
            wait_until_idle(queue)
        finally:
            process.terminate()
            process.wait()
        check(store)
        left = _jobs_left(connection)
        last = store.get(PROJECT, store.numbers(PROJECT)[-1])
        read = json.loads((store.project_dir(PROJECT) / "last_training.json").read_text())["stamps"]
        now = {str(item["id"]): item["updated_at"] for found in label_studio.annotations.values() for item in found}
        undisturbed = train_undisturbed(
            label_studio,
            settings.model_copy(update={"data_dir": directory / "undisturbed"}),
            store.project_dir(PROJECT) / "split.json",
        )
    seconds = time.monotonic() - began
    outcomes = Counter(record.outcome for record in JobHistory(settings.data_dir).list(PROJECT))
    same = _equal(last.load_weights(), undisturbed.load_weights())
    problems = [
        *(["jobs are left: " + ", ".join(left)] if left else []),
        *(["the last training has not read every annotation as it is"] if read.keys() != now.keys() else []),
        *([] if same else ["the weights are not those of an undisturbed training"]),
    ]
    if problems:
        raise SystemExit("; ".join(problems))
    return [
        ("kills: worker, its job's process, both", ", ".join(str(killed[name]) for name in ("worker", "job", "both"))),
        ("seconds in all, an undisturbed training included", f"{seconds:.0f}"),
        ("ended jobs", ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))),
        ("versions written, all whole after each kill", str(last.number)),
        ("jobs left in the end, annotations not read", "none, none"),
        ("weights of the last training and of an undisturbed one", "the same bits"),
    ]


def _jobs_left(connection: redis.Redis) -> list[str]:
    rq = TrainingQueue(connection).rq
    return [*rq.job_ids, *rq.started_job_registry.get_job_ids(), *rq.scheduled_job_registry.get_job_ids()]


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/KILLS.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = soak(arguments.kills, arguments.seed, Path(directory))
    load = os.getloadavg()[1]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    page = (
        "# Trainings under kills, measured\n\n"
        f"`python -m benchmarks.training_kills --kills {arguments.kills} --seed {arguments.seed}`; its head says\n"
        "what happens. Part of `make soak`.\n\n"
        f"{table}\n\n{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} (5 minutes), "
        f"{datetime.now(UTC):%Y-%m-%d}.\n"
    )
    print(page)
    if arguments.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

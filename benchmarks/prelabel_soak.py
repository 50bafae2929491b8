"""Thousands of tasks pre-labelled on a real Label Studio, with kills in the middle: part of `make soak`.

    python benchmarks/prelabel_soak.py --tasks 10000 --label-studio .venv-label-studio/bin/label-studio --write

Label Studio (SQLite), the backend and a worker are started, a project gets so many pictures of 64 px, and
all of them are asked for. After a third the job's process is killed (SIGKILL), after two thirds the worker and its
job's process; another worker is started 5 s later. Then every task must have exactly one prediction. Printed, and with
`--write` kept in benchmarks/PRELABEL.md: tasks a second, and what the jobs waited for Label Studio.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.demo.label_studio import Credentials, find_label_studio, start_label_studio, wait_for_label_studio
from backend.demo.processes import Supervisor, child_environment, free_port
from backend.demo.project import label_config
from backend.label_studio.client import LabelStudioClient
from backend.prelabel_queue import PrelabelEnded, PrelabelQueue, PrelabelRequest
from backend.redis_connection import connect_redis
from backend.settings import Settings
from vlm_core.demo.scenes import generate_scene

SIZE_PX = 64
FIRST_SEED = 6_000_000
IMPORT = 1000
PAUSE_S = 5.0
REPORT = Path(__file__).parent / "PRELABEL.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--label-studio", type=Path, help="its command (default: .venv-label-studio, then PATH)")
    parser.add_argument("--data-dir", type=Path, help="for everything that is written (default: a temporary one)")
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {REPORT.name}")
    arguments = parser.parse_args()
    executable = find_label_studio(arguments.label_studio)
    with tempfile.TemporaryDirectory() as temporary:
        directory = (arguments.data_dir or Path(temporary)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        with Supervisor(directory / "logs") as supervisor:
            ended, seconds, per_task, imported_s = soak(supervisor, executable, directory, arguments.tasks)
    wrong = {count: tasks for count, tasks in per_task.items() if count != 1}
    lines = report(arguments.tasks, ended, seconds, imported_s)
    print("\n".join(lines))
    if arguments.write:
        REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if wrong or ended.counts["failed"]:
        print(f"WRONG: predictions per task, and how many tasks: {dict(per_task)}; {ended.failures}")
        sys.exit(1)


def soak(
    supervisor: Supervisor, executable: Path, directory: Path, tasks: int
) -> tuple[PrelabelEnded, float, Counter[int], float]:
    """Run it; what became of it, its seconds, predictions per task, and seconds that the tasks' import took."""
    credentials = Credentials.load_or_create(directory / "credentials.json")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = child_environment(
        ("VLM_DEVICE", "VLM_DTYPE"),
        VLM_CHECKPOINT="demo",
        VLM_DATA_DIR=str(directory / "vlm"),
        LABEL_STUDIO_URL=url,
        LABEL_STUDIO_API_KEY=credentials.api_token,
        PYTHONUNBUFFERED="1",
    )
    settings = Settings(data_dir=directory / "vlm")
    connection = connect_redis(settings)  # owned by this process, so that it outlives the workers
    queue = PrelabelQueue(connection)
    start_label_studio(supervisor, executable, directory / "label-studio", port, credentials)
    wait_for_label_studio(supervisor, url)
    with LabelStudioClient(url, credentials.api_token, timeout_s=300.0) as client:
        project_id = int(client.create_project("Soak", label_config())["id"])
        began = time.monotonic()
        for first in range(0, tasks, IMPORT):
            pictures = (picture(FIRST_SEED + index) for index in range(first, min(first + IMPORT, tasks)))
            client.import_tasks(project_id, [{"data": {"image": uri}} for uri in pictures])
        imported_s = time.monotonic() - began
        print(f"{tasks} tasks imported in {imported_s:.0f} s", flush=True)
        began = time.monotonic()
        queue.request(project_id, PrelabelRequest())
        work(queue, project_id, environment, directory, tasks)
        seconds = time.monotonic() - began
        found = client.matching_tasks(project_id, [], fields=("id", "total_predictions"))
        per_task = Counter(int(task["total_predictions"]) for task in found)
        ended = queue.ended(project_id)
    assert ended is not None
    return ended, seconds, per_task, imported_s


def work(queue: PrelabelQueue, project_id: int, environment: Mapping[str, str], directory: Path, tasks: int) -> None:
    """Workers, and their kills, until the run is over."""
    kills = [(tasks // 3, False), (2 * tasks // 3, True)]
    worker = start_worker(environment, directory)
    try:
        last = 0.0
        while (progress := queue.progress(project_id)) is not None:
            if kills and progress.done >= kills[0][0]:
                _, whole = kills.pop(0)
                # RQ's scheduler is a child too, and older.
                *_, horse = sorted(psutil.Process(worker.pid).children(), key=psutil.Process.create_time)
                print(f"at {progress.done}: kill -9 {'the worker and ' if whole else ''}its job", flush=True)
                if whole:
                    worker.kill()
                with suppress(psutil.NoSuchProcess):
                    horse.kill()
                if whole:
                    worker.wait()
                    time.sleep(PAUSE_S)
                    worker = start_worker(environment, directory)
            if time.monotonic() > last + 10:
                last = time.monotonic()
                rate = f"{progress.rate_per_s:.1f}/s" if progress.rate_per_s else "-"
                print(f"{progress.done} of {progress.total}, {rate} {progress.problem}", flush=True)
            assert worker.poll() is None, "the worker has ended; see its log"
            time.sleep(0.5)
    finally:
        worker.terminate()
        worker.wait(60)


def start_worker(environment: Mapping[str, str], directory: Path) -> subprocess.Popen[bytes]:
    with (directory / "worker.log").open("ab") as log:
        argv = [sys.executable, "-m", "backend.cli", "worker"]
        return subprocess.Popen(argv, env=dict(environment), cwd=directory, stdout=log, stderr=log)


def picture(seed: int) -> str:
    buffer = io.BytesIO()
    generate_scene(seed).image.resize((SIZE_PX, SIZE_PX)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def report(tasks: int, ended: PrelabelEnded, seconds: float, imported_s: float) -> list[str]:
    load = os.getloadavg()[1]
    return [
        "# Pre-labelling, measured",
        "",
        f"`make soak`: {tasks} pictures of {SIZE_PX} px, demo checkpoint, six labels and four descriptions each, on a "
        "real Label Studio (SQLite, same machine); the job killed after a third, the worker and its job after two "
        "thirds.",
        "",
        "| | |",
        "|---|---|",
        f"| tasks a second, kills and restarts included | {tasks / seconds:.1f} |",
        f"| seconds in all | {seconds:.0f} |",
        f"| of these the job waited for Label Studio (predicting went on) | {ended.label_studio_s:.0f} s, "
        f"{ended.label_studio_s / seconds:.0%} |",
        f"| predictions imported, there already, failed | {ended.counts['posted']}, {ended.counts['present']}, "
        f"{ended.counts['failed']} |",
        f"| Label Studio's import of the bare tasks, for comparison | {imported_s:.0f} s |",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} (5 minutes), "
        f"{datetime.now(UTC).strftime('%Y-%m-%d')}.",
    ]


if __name__ == "__main__":
    main()

"""Hours in minutes: `make soak`, or `python benchmarks/soak.py --minutes 60`.

One server answers batches of changing size, pictures that cannot be read among them, until the time is up. Every
answer must be complete and in order, and the server's memory must not grow once it is warm. Exit code 0 only then.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.server import predict_body, running_backend, tasks

BROKEN = "data:image/png;base64,aGVsbG8="
FEATURE_CACHE_BYTES = 32 * 2**20
"""Full before the server counts as warm; the default takes minutes to fill, and would look like a leak."""
WARM_SHARE = 0.3
MOST_GROWTH = 0.15
"""Of the resident memory after warming up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    chance = random.Random(0)
    requests = answered = refused = 0
    memory: list[tuple[float, int]] = []
    with running_backend(arguments.checkpoint, VLM_FEATURE_CACHE_BYTES=str(FEATURE_CACHE_BYTES)) as (client, child):
        server = psutil.Process(child.process.pid)
        started = time.monotonic()
        duration = 60 * arguments.minutes
        while (elapsed := time.monotonic() - started) < duration:
            items = tasks(chance.randrange(2_000_000, 2_900_000), chance.randint(1, 12))
            broken = chance.randrange(len(items)) if chance.random() < 0.3 else None
            if broken is not None:
                items[broken]["data"]["image"] = BROKEN
            response = client.post("/predict", json=predict_body(items))
            results = response.raise_for_status().json()["results"]
            assert len(results) == len(items), f"{len(results)} answers for {len(items)} tasks"
            for index, item in enumerate(results):
                assert ("result" in item) == (index != broken), item
                assert index != broken or item["error"], item
            requests, answered = requests + 1, answered + len(items)
            refused += broken is not None
            memory.append((elapsed, server.memory_info().rss))
            if requests % 50 == 0:
                print(f"{elapsed:6.0f} s  {answered} tasks  {memory[-1][1] / 2**20:.0f} MiB", flush=True)
    warm = max(size for elapsed, size in memory if elapsed <= WARM_SHARE * duration)
    last = max(size for elapsed, size in memory if elapsed >= (1 - WARM_SHARE) * duration)
    growth = last / warm - 1
    print(
        f"{requests} requests, {answered} tasks, {refused} unreadable pictures; memory {warm / 2**20:.0f} -> "
        f"{last / 2**20:.0f} MiB ({growth:+.1%}, at most {MOST_GROWTH:+.0%})"
    )
    sys.exit(0 if growth <= MOST_GROWTH else 1)


if __name__ == "__main__":
    main()

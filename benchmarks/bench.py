"""Where the time goes: `make bench`, or `python benchmarks/bench.py --checkpoint DIRECTORY`.

Medians over repeated runs, after one that is not counted. Figures depend on the machine: compare two runs of this
file on one machine, not this one with another's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vlm_core
from backend.demo.project import label_config
from backend.label_studio.brush import encode_mask
from benchmarks.server import PROJECT, predict_body, running_backend, tasks
from vlm_core.demo.scenes import generate_scene

WORDS = ("circle", "square", "triangle", "cross", "heart", "red", "blue", "green")


def median_ms(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def report(what: str, ms: float) -> None:
    print(f"{what:<52} {ms:10.1f} ms", flush=True)


def bench_model(checkpoint: str, repeats: int) -> None:
    model = vlm_core.load(checkpoint)
    image = generate_scene(2_000_000, size=(1024, 768)).image
    features = model.encode_image(image)[0]
    prompts = [f"{WORDS[index % 8]} {WORDS[index // 8]}" for index in range(32)]
    report("encode one image, 1024 x 768", median_ms(lambda: model.encode_image(image), repeats))
    for number in (1, 8, 32):
        asked = prompts[:number]
        conditions = model.encode_text(asked)
        report(f"decode {number} prompts", median_ms(partial(model.decode, features, conditions), repeats))
        report(f"segment, {number} prompts, full size", median_ms(partial(model.segment, image, asked), repeats))
    if model.can_rank:
        report("rank 8 descriptions", median_ms(lambda: model.rank(image, prompts[:8]), repeats))


def bench_masks(repeats: int) -> None:
    y, x = np.mgrid[0:3000, 0:4000]
    mask = (x - 2000) ** 2 + (y - 1500) ** 2 < 1000**2
    report("run-length code of one mask, 4000 x 3000", median_ms(lambda: encode_mask(mask), repeats))


def bench_server(checkpoint: str, repeats: int) -> None:
    with running_backend(checkpoint) as (client, _):
        setup = {"project": PROJECT, "schema": label_config(), "hostname": "", "access_token": "", "extra_params": None}
        report("GET /health", median_ms(lambda: client.get("/health"), repeats))
        report("POST /setup", median_ms(lambda: client.post("/setup", json=setup), repeats))
        seeds = iter(range(2_000_000, 2_900_000, 32))
        for number in (1, 16):

            def ask(number: int = number) -> None:
                # New pictures each time: a seen one comes from a cache.
                answer = client.post("/predict", json=predict_body(tasks(next(seeds), number))).json()
                assert all("result" in item for item in answer["results"]), answer["results"]

            report(f"POST /predict, {number} new pictures (drawing included)", median_ms(ask, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    print(f"checkpoint {arguments.checkpoint}, {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    bench_model(arguments.checkpoint, arguments.repeats)
    bench_masks(arguments.repeats)
    bench_server(arguments.checkpoint, arguments.repeats)


if __name__ == "__main__":
    main()

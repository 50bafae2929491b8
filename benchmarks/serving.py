"""What the benchmarks of the server share: a load that others do not hold up, and the page that keeps the figures."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx

from benchmarks.server import predict_body, tasks

PAGE = Path(__file__).parent / "serving.md"
_HEAD = """# The server under load, measured

Written by `python -m benchmarks.webhook`, `benchmarks.clients` and `benchmarks.beside_jobs`, each its own part.
One real server process with the demo checkpoint and a real Redis; the clients are processes of their own on the same
machine, so that they take from the server what they need themselves."""


@dataclass(frozen=True)
class Latencies:
    """Seconds that answers took."""

    values: Sequence[float]

    def quantile(self, share: float) -> float:
        """The least latency that this share of the answers did not exceed, s."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def cells(self) -> list[str]:
        """p50, p99 and the longest, ms."""
        chosen = (statistics.median(self.values), self.quantile(0.99), max(self.values))
        return [f"{1000 * value:.1f}" for value in chosen]


@contextmanager
def predicting(address: str, batch: int) -> Iterator[list[int]]:
    """A process asks for one batch of new pictures after the other; at the end the list holds how many it has got."""
    context = multiprocessing.get_context("spawn")
    stop, started, answered = context.Event(), context.Event(), context.Value("q", 0)
    process = context.Process(target=_predict, args=(address, batch, stop, started, answered), daemon=True)
    process.start()
    if not started.wait(60):
        raise RuntimeError("the batches did not begin")
    done: list[int] = []
    try:
        yield done
    finally:
        stop.set()
        process.join(120)
        done.append(int(answered.value))


def _predict(address: str, batch: int, stop: Event, started: Event, answered: object) -> None:
    seed = 2_000_000
    with httpx.Client(base_url=address, timeout=120.0, trust_env=False) as client:
        while not stop.is_set():
            body = predict_body(tasks(seed, batch))
            seed += batch
            started.set()
            results = client.post("/predict", json=body).raise_for_status().json()["results"]
            assert all("result" in item for item in results), results
            answered.value += len(results)  # type: ignore[attr-defined]  # a synchronised number


def machine(note: str = "") -> str:
    """What the figures belong to, one fact a line, with one of the caller's."""
    names = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return "\n".join(
        [
            f"- {names[0] if names else platform.processor()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}",
            f"- {time.strftime('%Y-%m-%d')}, load of other processes before the run {os.getloadavg()[0]:.1f}",
            *([f"- {note}"] if note else []),
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown that is aligned for reading as text too."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (head, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def keep(title: str, parts: Sequence[str]) -> None:
    """Replace one part of the page, or add it."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else _HEAD
    others = [part for part in text.rstrip().split("\n\n## ") if part.partition("\n")[0] != title]
    PAGE.write_text("\n\n## ".join([*others, "\n\n".join([title, *parts])]) + "\n", encoding="utf-8")

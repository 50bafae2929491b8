"""What a server counts and times, for Prometheus; `docs/monitoring.md` explains each.

One `Metrics` per app, with a registry of its own, handed to whatever has something to count. Every label has a fixed
set of values, so that neither a project, a path nor an address that somebody sends makes a new series. What others keep
already (the queue, the model, the caches) is asked for when Prometheus asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

Stage = Literal["fetch", "decode_image", "wait", "encode", "decode_masks", "rank_tags", "regions"]
"""Where the time of a prediction goes, in order. "wait": for the model, while it works for others."""

STAGES: tuple[Stage, ...] = ("fetch", "decode_image", "wait", "encode", "decode_masks", "rank_tags", "regions")

BatchStage = Literal["encode", "decode_masks", "rank_tags"]

_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.7, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 80.0, 100.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)

OTHER = "other"
"""Stands for every value of a label that is not in its set."""


class Metrics:
    """All metrics of one app. Safe to share between threads."""

    def __init__(self) -> None:
        """Everything is zero."""
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._requests = Histogram(
            "vlm_request_seconds",
            "Whole requests, from their arrival to the last byte of the answer.",
            ("route", "status"),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self._in_progress = Gauge(
            "vlm_requests_in_progress", "Requests that are being answered.", registry=self.registry
        )
        self._stages = Histogram(
            "vlm_stage_seconds",
            "Parts of a prediction; encode, decode_masks and rank_tags once per batch.",
            ("stage",),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "vlm_batch_size",
            "Images that the model answered at once.",
            ("stage",),
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        self._tasks = Counter("vlm_tasks", "Tasks, by what their answer holds.", ("outcome",), registry=self.registry)
        self._failures = Counter(
            "vlm_failures", "Tasks without a prediction, by reason.", ("reason",), registry=self.registry
        )
        self._events = Counter(
            "vlm_webhook_events", "Webhooks and what became of them.", ("action", "outcome"), registry=self.registry
        )

    def watch(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Show metrics that are kept elsewhere.

        Args:
            read: gives them as they are now; must be quick, and raises nothing.
        """
        self.registry.register(_Watched(read))

    @contextmanager
    def in_progress(self) -> Iterator[None]:
        """A request is being answered."""
        with self._in_progress.track_inprogress():
            yield

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: the route's template, never the path that was asked for.
            status: HTTP status; 0: the client had gone.
            seconds: that it took.
        """
        self._requests.labels(route, str(status)).observe(seconds)

    def stage(self, stage: Stage, seconds: float) -> None:
        """A part of a prediction was done."""
        self._stages.labels(stage).observe(seconds)

    def batch(self, stage: BatchStage, seconds: float, images: int) -> None:
        """The model answered so many images at once."""
        self.stage(stage, seconds)
        self._batches.labels(stage).observe(images)

    def answered(self, *, found: bool) -> None:
        """A task has a prediction, with something in it or with nothing."""
        self._tasks.labels("found" if found else "nothing").inc()

    def failed(self, reason: str, tasks: int = 1) -> None:
        """Tasks have no prediction.

        Args:
            reason: a `backend.failures.Reason`.
            tasks: how many.
        """
        self._tasks.labels("failed").inc(tasks)
        self._failures.labels(reason).inc(tasks)

    def event(self, action: str, outcome: str) -> None:
        """A webhook came.

        Args:
            action: one that Label Studio is known to send, or `OTHER`.
            outcome: what became of it, of a fixed set.
        """
        self._events.labels(action, outcome).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All of it, in the format that the `Accept` header asks for, and that format's media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


class Stopwatch:
    """Adds up the time of the blocks that it is entered for. For one thread."""

    def __init__(self) -> None:
        """At zero."""
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        """Go on."""
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        """Stop, for now."""
        self.seconds += time.monotonic() - self._started


class Times:
    """How long one request's tasks were in each stage, added up over the threads that worked for it."""

    def __init__(self, metrics: Metrics) -> None:
        """At zero; what a task has to itself is counted in `metrics` too."""
        self._metrics = metrics
        self._seconds: dict[Stage, float] = {}
        self._largest_batch = 0
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Time a stage that a task has to itself, also where it fails."""
        watch = Stopwatch()
        try:
            with watch:
                yield
        finally:
            self.stage(stage, watch.seconds)

    def stage(self, stage: Stage, seconds: float) -> None:
        """A task has been in a stage that it has to itself."""
        self._metrics.stage(stage, seconds)
        self._add(stage, seconds)

    def batch(self, stage: BatchStage, seconds: float, images: int) -> None:
        """The request was answered with others, so many images in all; who computed it tells the metrics, once."""
        self._add(stage, seconds)
        with self._lock:
            self._largest_batch = max(self._largest_batch, images)

    def fields(self) -> Mapping[str, int]:
        """For the request's log line: `<stage>_ms` in the order of the stages, and the largest `batch`."""
        with self._lock:
            fields = {f"{stage}_ms": round(1000 * self._seconds[stage]) for stage in STAGES if stage in self._seconds}
            return fields | ({"batch": self._largest_batch} if self._largest_batch else {})

    def _add(self, stage: Stage, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds


class _Watched(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is read to register it

    def collect(self) -> Iterable[Metric]:
        return self._read()

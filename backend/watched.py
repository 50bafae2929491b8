"""Metrics that others keep: read when Prometheus asks."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from backend.api.handlers import QueueUnavailableError
from backend.metrics import Metrics
from backend.model_store import ModelStore
from backend.prelabel_queue import PrelabelProgress
from backend.queue import QueueCounts
from backend.readiness import Readiness


class Counts(Protocol):
    """A line to a queue. Every call may raise `QueueUnavailableError`."""

    def counts(self) -> QueueCounts:
        """How many jobs and workers there are."""


class Prelabelling(Counts, Protocol):
    """The line to pre-labelling."""

    def jobs(self) -> list[PrelabelProgress]:
        """All projects that have something to pre-label."""


def watch_parts(metrics: Metrics, readiness: Readiness) -> None:
    """`vlm_up`: what the server works with."""

    def read() -> Iterable[Metric]:
        up = GaugeMetricFamily("vlm_up", "1 while the part answers, 0 while it does not.", labels=["part"])
        for part in readiness.ready().parts:
            if part.state != "not set":
                up.add_metric([part.name], float(part.state == "up"))
        yield up

    metrics.watch(read)


def watch_model(metrics: Metrics, store: ModelStore) -> None:
    """`vlm_build_info` and, once it is loaded, `vlm_model_info`."""

    def read() -> Iterable[Metric]:
        version = importlib.metadata.version("label-studio-vlm-backend")
        yield InfoMetricFamily("vlm_build", "The release.", {"version": version})
        state = store.state
        if state.status == "ready":
            info = {"model": state.model, "fingerprint": store.model().fingerprint[:12]}
            yield InfoMetricFamily("vlm_model", "The base model.", info)

    metrics.watch(read)


def watch_queues(metrics: Metrics, training: Counts, prelabelling: Prelabelling) -> None:
    """`vlm_jobs`, `vlm_workers` and `vlm_prelabel_tasks_open`; absent while Redis is down."""

    def read() -> Iterable[Metric]:
        try:
            counted = {"training": training.counts(), "prelabel": prelabelling.counts()}
            left = sum(progress.total - progress.done for progress in prelabelling.jobs())
        except QueueUnavailableError:
            return
        jobs = GaugeMetricFamily("vlm_jobs", "Jobs, by queue and state.", labels=["queue", "state"])
        workers = GaugeMetricFamily("vlm_workers", "Workers that listen to a queue.", labels=["queue"])
        for queue, counts in counted.items():
            for state in ("queued", "running", "retrying", "failed"):
                jobs.add_metric([queue, state], getattr(counts, state))
            workers.add_metric([queue], counts.workers)
        yield from (jobs, workers)
        yield GaugeMetricFamily("vlm_prelabel_tasks_open", "Tasks that are still to be pre-labelled.", left)

    metrics.watch(read)


def watch_caches(metrics: Metrics, caches: Mapping[str, Callable[[], Mapping[str, int]]]) -> None:
    """`vlm_cache_requests_total`.

    Args:
        metrics: where it is shown.
        caches: of each cache, by its name, how often it was asked since the start, by what it had: "hit", "miss", or
            finer.
    """

    def read() -> Iterable[Metric]:
        asked = CounterMetricFamily(
            "vlm_cache_requests", "What caches were asked for, and what they had.", labels=["cache", "outcome"]
        )
        for cache, counts in caches.items():
            for outcome, count in counts().items():
                asked.add_metric([cache, outcome], count)
        yield asked

    metrics.watch(read)

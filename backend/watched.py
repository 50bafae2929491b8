"""Metrics that others keep: read when Prometheus asks."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from backend.api.handlers import QueueUnavailableError, Training
from backend.metrics import Metrics
from backend.model_store import ModelStore
from backend.readiness import Readiness


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


def watch_queue(metrics: Metrics, training: Training) -> None:
    """`vlm_jobs` and `vlm_workers`; absent while Redis is down."""

    def read() -> Iterable[Metric]:
        try:
            counts = training.counts()
        except QueueUnavailableError:
            return
        jobs = GaugeMetricFamily("vlm_jobs", "Jobs, by queue and state.", labels=["queue", "state"])
        for state in ("queued", "running", "retrying", "failed"):
            jobs.add_metric(["training", state], getattr(counts, state))
        yield jobs
        workers = GaugeMetricFamily("vlm_workers", "Workers that are signed on.", labels=["queue"])
        workers.add_metric(["training"], counts.workers)
        yield workers

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

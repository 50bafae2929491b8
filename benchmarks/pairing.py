"""Timing in pairs: contenders take turns in one run, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Values of paired runs, in the order in which they were taken."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({min(self.values):.3g}-{max(self.values):.3g})"


def ratios(over: Samples, under: Samples) -> Samples:
    """The ratio of each pair."""
    return Samples(tuple(a / b for a, b in zip(over.values, under.values, strict=True)))


def differences(whole: Samples, part: Samples) -> Samples:
    """What is left of each pair."""
    return Samples(tuple(a - b for a, b in zip(whole.values, part.values, strict=True)))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def paired(contenders: Mapping[str, Callable[[], object]], repeats: int, *, warm: bool = True) -> dict[str, Samples]:
    """Time contenders in turns, in an order that is drawn anew for each round.

    Args:
        contenders: by name.
        repeats: rounds that count.
        warm: whether each runs once before, uncounted.
    """
    if warm:
        for work in contenders.values():
            work()
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for _ in range(repeats):
        for index in rng.permutation(len(names)):
            times[names[index]].append(seconds(contenders[names[index]]))
    return {name: Samples(tuple(values)) for name, values in times.items()}

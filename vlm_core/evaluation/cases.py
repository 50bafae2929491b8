"""The cases that a report shows: the best, the worst, and those in the middle, in bounded memory."""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

_THUMBNAIL_PX = 320
_SLOTS = 50


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a report.

    Attributes:
        value: how good it is; larger is better.
        title: what was asked.
        pictures: caption and JPEG bytes of each picture.
        lines: text below the pictures, each with whether it is right (None: neither).
    """

    value: float
    title: str
    pictures: tuple[tuple[str, bytes], ...]
    lines: tuple[tuple[str, bool | None], ...] = ()


class CaseKeeper:
    """Keeps a few cases of a stream: the worst, the best, and one for each fiftieth of the scale from 0 to 1."""

    def __init__(self, count: int = 6) -> None:
        """Keep `count` cases of each kind."""
        self._count = count
        self._best: list[tuple[float, int, Case]] = []
        self._worst: list[tuple[float, int, Case]] = []
        self._slots: dict[int, Case] = {}
        self._seen = 0

    def offer(self, value: float, make: Callable[[], Case]) -> None:
        """A case of this value in [0, 1]; `make` is called only where it is kept, since pictures cost time."""
        self._seen += 1
        made: Case | None = None
        slot = min(_SLOTS - 1, int(value * _SLOTS))
        if slot not in self._slots:
            made = self._slots[slot] = make()
        for heap, sign in ((self._best, 1.0), (self._worst, -1.0)):
            entry = sign * value
            if len(heap) < self._count or entry > heap[0][0]:
                made = made or make()
                # Of equal ones the first stay: the counter falls, so that the latest is the smallest.
                push = heapq.heappush if len(heap) < self._count else heapq.heapreplace
                push(heap, (entry, -self._seen, made))

    def best(self) -> list[Case]:
        """Best first; none where all cases are equally good, since they would be the worst ones again."""
        if self._best and max(self._best)[0] == -max(self._worst)[0]:
            return []
        return [case for _, _, case in sorted(self._best, key=lambda e: e[:2], reverse=True)]

    def worst(self) -> list[Case]:
        """Worst first."""
        return [case for _, _, case in sorted(self._worst, key=lambda e: e[:2], reverse=True)]

    def typical(self, median: float) -> list[Case]:
        """Cases nearest to the median that are neither among the best nor among the worst; best first."""
        shown = {id(case) for _, _, case in (*self._best, *self._worst)}
        rest = [case for case in self._slots.values() if id(case) not in shown]
        nearest = sorted(rest, key=lambda case: abs(case.value - median))[: self._count]
        return sorted(nearest, key=lambda case: -case.value)


def thumbnail(image: Image.Image) -> Image.Image:
    """The image, at most 320 px a side."""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return small


def jpeg(image: Image.Image) -> bytes:
    """The image as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return file.getvalue()

"""How often a cache was asked, and what it had."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping


class CacheCounts:
    """Counts by outcome since the start, like "hit" and "miss". Safe to share between threads."""

    def __init__(self, *outcomes: str) -> None:
        """All are zero.

        Args:
            outcomes: that there are.
        """
        self._counts = Counter(dict.fromkeys(outcomes, 0))
        self._lock = threading.Lock()

    def add(self, outcome: str) -> None:
        """The cache was asked once."""
        with self._lock:
            self._counts[outcome] += 1

    def read(self) -> Mapping[str, int]:
        """The counts now."""
        with self._lock:
            return dict(self._counts)

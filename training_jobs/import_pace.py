"""How many predictions to send Label Studio at once, by how long it took for the last ones.

A large import holds up whoever else uses Label Studio, so slow imports are made smaller. But what an import costs may
not depend on its size: Label Studio counts the project's predictions anew for each (10 s at 10,000 tasks on SQLite,
whether 10 predictions came or 250). Where less was not faster, imports stay as large as they may be.
"""

from __future__ import annotations

SLOW_S = 10.0
"""An import that takes longer is slow."""

LONGEST_REST_S = 10.0

_LEAST = 10
_FASTER = 0.75
"""Half of it must take at most so much of the time to be worth it."""


class ImportPace:
    """The size of the next import, and the rest before it. For one thread.

    Attributes:
        size: most predictions in the next import.
    """

    def __init__(self, most: int) -> None:
        """Begin with imports of `most` predictions, which is never exceeded."""
        self.size = most
        self._most = most
        self._slow: tuple[int, float] | None = None
        self._by_import = False

    def note(self, count: int, took_s: float) -> float:
        """Note what an import took.

        Args:
            count: its predictions.
            took_s: its time, s.

        Returns:
            For how long to leave Label Studio alone before the next one, s.
        """
        if took_s <= SLOW_S:
            self._slow = None
            if took_s < SLOW_S / 4:
                self._by_import = False
                self.size = min(self._most, self.size * 2)
            return 0.0
        if self._slow is not None and count <= self._slow[0] / 2 and took_s > _FASTER * self._slow[1]:
            self._by_import = True
            self.size = self._most
        elif not self._by_import and count >= self.size:
            self._slow = (count, took_s)
            self.size = max(_LEAST, self.size // 2)
        # A share of the time, so that others get their turn, and imports go on.
        return min(took_s / 2, LONGEST_REST_S)

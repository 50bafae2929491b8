"""Conditions of phrases that were asked lately: a text goes through its encoder once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_ENTRIES = 4096
_AT_ONCE = 256


class ConditionCache:
    """The newest 4096, by phrase. Safe to share between threads.

    Attributes:
        hits: phrases that were known when they were asked for, since the start.
        misses: phrases that had to be encoded.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def conditions(self, phrases: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
        """Conditions (P, E) of P >= 1 phrases, in their order.

        Args:
            phrases: some may be equal.
            encode: (N, E) of N phrases; called for those that are not kept, up to 256 at once.
        """
        with self._lock:
            missing = [p for p in dict.fromkeys(phrases) if p not in self._entries]
            found = {p: self._entries[p] for p in phrases if p in self._entries}
            self.hits, self.misses = self.hits + len(found), self.misses + len(missing)
            for phrase in found:
                self._entries.move_to_end(phrase)
        for start in range(0, len(missing), _AT_ONCE):
            chunk = missing[start : start + _AT_ONCE]
            found.update(zip(chunk, encode(chunk), strict=True))
        with self._lock:
            self._entries.update({p: found[p] for p in missing})
            while len(self._entries) > _ENTRIES:
                self._entries.popitem(last=False)
        return torch.stack([found[p] for p in phrases])

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._entries.clear()

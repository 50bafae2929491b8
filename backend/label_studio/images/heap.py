"""Memory that a large picture needed goes back to the system.

glibc keeps what one thread has freed for that thread, so eight threads that decode one large picture each, one after
the other, would hold the memory of eight.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def give_back_memory() -> None:
    """Let the C library return what is free; some milliseconds. Does nothing where it has no such call."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no C library that can be found by this process's own symbols
        return None

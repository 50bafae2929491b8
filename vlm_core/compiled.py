"""Loops that Python is too slow for, compiled by numba when they are first called.

numba is imported then and not before: a process that never meets a mask does not pay for it. What is compiled is kept
on disk beside the module, or in the user's cache directory; where neither can be written to, as in a container with a
read-only root, each process compiles for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class compiled(Generic[P, R]):  # noqa: N801 - used as a decorator
    """Decorate a function of arrays and numbers. It runs without the interpreter's lock: threads do not wait for it."""

    def __init__(self, function: Callable[P, R]) -> None:
        """Nothing is compiled yet."""
        functools.update_wrapper(self, function)
        self._function = function
        self._ready: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the compiled function."""
        if self._ready is None:
            self._ready = _compile(self._function)
        return self._ready(*args, **kwargs)


def _compile(function: Callable[P, R]) -> Callable[P, R]:
    import numba

    options: dict[str, Any] = {"nogil": True}
    try:
        ready: Callable[P, R] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no directory that it may keep the result in
        ready = numba.njit(**options)(function)
    return ready

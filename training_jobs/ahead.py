"""Results in order of work that threads do a little ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(work: Iterable[Callable[[], T]], threads: int) -> Generator[T, None, None]:
    """What each piece of work gives, in their order. Close it where not all is taken: then no thread is left.

    Args:
        work: pieces that do not depend on each other; only some are begun before their result is taken, so that the
            results of many need no memory at once.
        threads: that work; with one, each piece is done by the caller when its result is asked for.

    Raises:
        Exception: what a piece raises, where its result would be; no further one is begun.
    """
    if threads <= 1:
        for piece in work:
            yield piece()
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for piece in work:
                pending.append(pool.submit(piece))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

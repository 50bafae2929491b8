"""One accelerator, many threads: they take turns, and who has the turn answers for all who wait with the same.

No thread of its own and no delay: while one batch is computed the next one gathers, so batches are as large as the load
makes them, and a request that comes alone starts at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class BusyTimeoutError(Exception):
    """The turn did not come in time."""


@dataclass(eq=False)
class _Waiting(Generic[Request, Reply]):
    group: Hashable
    request: Request
    settled: bool = False
    reply: Reply | None = None
    error: Exception | None = None

    def outcome(self) -> Reply:
        if self.error is not None:
            raise self.error
        return self.reply  # type: ignore[return-value]  # it is settled, and Reply may be None itself


class Turns:
    """First come, first served. Safe to share between threads."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._queue: list[_Waiting[Any, Any]] = []
        self._busy = False
        self._changed = threading.Condition()

    def run(
        self,
        group: Hashable,
        request: Request,
        answer: Callable[[Sequence[Request]], Sequence[Reply]],
        timeout_s: float,
        *,
        most: int,
    ) -> Reply:
        """Have a request answered, together with those of the same group that wait now.

        Args:
            group: requests of equal groups may be answered by each other's `answer`.
            request: what `answer` takes.
            answer: requests -> a reply to each, in order. Called by one thread at a time, over all groups.
                Where it raises for several, each is asked alone, so that one request's fault is its own.
            timeout_s: to wait for the turn; an answer that has begun is waited for.
            most: requests that are answered together.

        Raises:
            BusyTimeoutError: the turn did not come in time.
            Exception: what `answer` raised for this request alone.
        """
        own: _Waiting[Request, Reply] = _Waiting(group, request)
        if not self._wait_for_turn(own, timeout_s):
            return own.outcome()
        with self._changed:
            batch = [other for other in self._queue if other.group == group][:most]
            self._queue = [other for other in self._queue if other not in batch]
        try:
            _settle(batch, answer)
        finally:
            for one in batch:
                if not one.settled:  # this thread is being ended
                    one.error, one.settled = BusyTimeoutError(), True
            self._give_up_turn()
        return own.outcome()

    @contextmanager
    def alone(self, timeout_s: float) -> Iterator[None]:
        """Have the accelerator to oneself. Raises BusyTimeoutError where it did not become free in time."""
        own: _Waiting[None, None] = _Waiting(object(), None)
        self._wait_for_turn(own, timeout_s)
        with self._changed:
            self._queue.remove(own)
        try:
            yield
        finally:
            self._give_up_turn()

    def _wait_for_turn(self, own: _Waiting[Any, Any], timeout_s: float) -> bool:
        """Whether the turn is ours now; otherwise another thread has settled the request."""
        ends = time.monotonic() + max(0.0, timeout_s)
        with self._changed:
            self._queue.append(own)
            while not own.settled:
                if not self._busy and self._queue[0] is own:
                    self._busy = True
                    return True
                waiting = own in self._queue
                # What another thread has begun to answer is nearly there.
                if not self._changed.wait(ends - time.monotonic() if waiting else None) and own in self._queue:
                    self._queue.remove(own)
                    self._changed.notify_all()  # another one may be the first now
                    raise BusyTimeoutError
        return False

    def _give_up_turn(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()


def _settle(batch: Sequence[_Waiting[Request, Reply]], answer: Callable[[Sequence[Request]], Sequence[Reply]]) -> None:
    try:
        replies = answer([one.request for one in batch])
        if len(replies) != len(batch):
            raise RuntimeError(f"{len(batch)} requests got {len(replies)} replies")
    except Exception as error:
        if len(batch) > 1:
            for one in batch:
                _settle([one], answer)
            return
        batch[0].error = error
        batch[0].settled = True
        return
    for one, reply in zip(batch, replies, strict=True):
        one.reply, one.settled = reply, True

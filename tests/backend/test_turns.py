from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from backend.turns import BusyTimeoutError, Turns


class Server:
    """Answers batches when it is let; remembers them."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.batches: list[list[Any]] = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def answer(self, requests: Sequence[int]) -> list[int]:
        self.batches.append(list(requests))
        self.entered.release()
        assert self.open.acquire(timeout=20)
        if -1 in requests:
            raise ValueError("minus one")
        return [10 * request for request in requests]

    def ask(self, request: int, group: str = "g", timeout_s: float = 20.0, most: int = 8) -> Future:
        return Future(lambda: self.turns.run(group, request, self.answer, timeout_s, most=most))

    def queued(self, number: int) -> None:
        """Wait until so many threads wait for the turn."""
        with self.turns._changed:
            assert self.turns._changed.wait_for(lambda: len(self.turns._queue) == number, 0) or self._poll(number)

    def _poll(self, number: int) -> bool:
        # Joining the queue notifies nobody, so the condition is looked at again and again.
        for _ in range(20_000):
            self.turns._changed.wait(0.001)
            if len(self.turns._queue) == number:
                return True
        return False


class Future:
    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._outcome: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._work()
        except Exception as error:
            self._outcome = error

    def result(self) -> Any:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self._outcome


def test_a_request_that_comes_alone_is_answered_alone() -> None:
    server = Server()
    server.open.release()
    assert server.turns.run("g", 4, server.answer, 0.0, most=8) == 40
    assert server.batches == [[4]]


def test_what_waits_is_answered_together_in_order_and_by_group() -> None:
    server = Server()
    asked = [server.ask(0)]
    assert server.entered.acquire(timeout=20)
    for number, group in ((1, "g"), (2, "other"), (3, "g"), (4, "g")):
        asked.append(server.ask(number, group, most=2))
        server.queued(len(asked) - 1)
    for _ in range(4):
        server.open.release()
    assert [one.result() for one in asked] == [0, 10, 20, 30, 40]
    # First come, first served; never more than `most`, never of two groups.
    assert server.batches == [[0], [1, 3], [2], [4]]


def test_the_fault_of_one_request_is_its_own() -> None:
    server = Server()
    first = server.ask(0)
    assert server.entered.acquire(timeout=20)
    asked = []
    for number in (5, -1, 6):
        asked.append(server.ask(number))
        server.queued(len(asked))
    for _ in range(5):
        server.open.release()
    assert first.result() == 0
    outcomes = [one.result() for one in asked]
    assert (outcomes[0], outcomes[2]) == (50, 60)
    assert isinstance(outcomes[1], ValueError)
    assert server.batches == [[0], [5, -1, 6], [5], [-1], [6]]


def test_who_waits_too_long_goes_and_the_next_is_served() -> None:
    server = Server()
    first = server.ask(0)
    assert server.entered.acquire(timeout=20)
    with pytest.raises(BusyTimeoutError):
        server.turns.run("g", 1, server.answer, 0.01, most=8)
    last = server.ask(2)
    server.queued(1)
    server.open.release()
    server.open.release()
    assert (first.result(), last.result()) == (0, 20)
    assert server.batches == [[0], [2]]


def test_an_answer_that_has_begun_is_waited_for_beyond_the_time() -> None:
    server = Server()
    first = server.ask(0)
    assert server.entered.acquire(timeout=20)
    leader, follower = server.ask(1), None
    server.queued(1)
    follower = server.ask(2, timeout_s=0.3)
    server.queued(2)
    server.open.release()
    assert server.entered.acquire(timeout=20)  # [1, 2] has begun
    follower._thread.join(0.6)
    assert follower._thread.is_alive()
    server.open.release()
    assert [one.result() for one in (first, leader, follower)] == [0, 10, 20]


def test_alone_excludes_all_others() -> None:
    server = Server()
    with server.turns.alone(1):
        with pytest.raises(BusyTimeoutError), server.turns.alone(0.01):
            pass
        with pytest.raises(BusyTimeoutError):
            server.turns.run("g", 1, server.answer, 0.01, most=8)
    server.open.release()
    assert server.turns.run("g", 1, server.answer, 0.0, most=8) == 10


def test_a_wrong_number_of_replies_is_an_error_for_each() -> None:
    with pytest.raises(RuntimeError, match="1 requests got 2"):
        Turns().run("g", 1, lambda _: [1, 2], 1.0, most=8)


def test_many_threads_get_each_its_own_answer() -> None:
    turns = Turns()
    inside = threading.Lock()

    def answer(requests: Sequence[int]) -> list[int]:
        assert inside.acquire(blocking=False)  # one batch at a time
        try:
            return [request * request for request in requests]
        finally:
            inside.release()

    def work(number: int) -> list[int]:
        return [turns.run(number % 3, number + turn, answer, 20.0, most=4) for turn in range(50)]

    asked = [(number, Future(lambda number=number: work(number))) for number in range(0, 1200, 100)]  # type: ignore[misc]
    for number, future in asked:
        assert future.result() == [(number + turn) ** 2 for turn in range(50)]

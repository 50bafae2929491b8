from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from training_jobs.ahead import ahead


def pieces(count: int, begun: list[int], fail_at: int = -1) -> Iterator[Callable[[], int]]:
    def piece(number: int) -> int:
        begun.append(number)
        if number == fail_at:
            raise ValueError(f"piece {number}")
        return number * number

    for number in range(count):
        yield lambda number=number: piece(number)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order(threads: int) -> None:
    assert list(ahead(pieces(40, []), threads)) == [number * number for number in range(40)]
    assert list(ahead(pieces(0, []), threads)) == []


def test_threads_really_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)
    assert list(ahead([both.wait, both.wait], 2)) in ([0, 1], [1, 0])


@pytest.mark.parametrize("threads", [1, 3])
def test_few_are_begun_before_they_are_asked_for(threads: int) -> None:
    begun: list[int] = []
    results = ahead(pieces(100, begun), threads)
    next(results)
    assert len(begun) <= 2 * threads + 1
    results.close()
    assert len(begun) <= 2 * threads + 1


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_where_its_result_would_be_and_ends_the_work(threads: int) -> None:
    begun: list[int] = []
    results = ahead(pieces(100, begun, fail_at=3), threads)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ValueError, match="piece 3"):
        next(results)
    assert len(begun) <= 2 * threads + 4

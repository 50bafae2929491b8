from __future__ import annotations

from collections.abc import Callable

import pytest

from training_jobs.import_pace import LONGEST_REST_S, SLOW_S, ImportPace

MOST = 250


def play(cost_s: Callable[[int], float], imports: int = 30) -> tuple[list[int], list[float]]:
    """Sizes and rests of imports that cost so much."""
    pace, sizes, rests = ImportPace(MOST), list[int](), list[float]()
    for _ in range(imports):
        sizes.append(pace.size)
        rests.append(pace.note(pace.size, cost_s(pace.size)))
    return sizes, rests


def test_a_fast_label_studio_gets_all_it_may_without_a_rest() -> None:
    assert play(lambda size: 1.0) == ([MOST] * 30, [0.0] * 30)


def test_where_large_masks_make_an_import_slow_imports_shrink_until_they_are_not() -> None:
    sizes, rests = play(lambda size: 0.3 * size)
    assert sizes[:5] == [250, 125, 62, 31, 31]
    assert set(sizes[3:]) == {31}
    assert 0.3 * sizes[-1] <= SLOW_S
    assert rests[-1] == 0.0
    assert max(rests) <= LONGEST_REST_S


@pytest.mark.parametrize("constant_s", [11.0, 60.0])
def test_where_an_import_costs_the_same_whatever_its_size_imports_stay_large(constant_s: float) -> None:
    sizes, rests = play(lambda size: constant_s + 0.001 * size)
    assert sizes == [MOST, MOST // 2, *[MOST] * 28]  # one try
    assert all(0 < rest <= LONGEST_REST_S for rest in rests)


def test_the_throughput_is_never_far_from_the_best_size() -> None:
    for constant_s in (0.1, 1.0, 5.0, 9.0, 12.0, 40.0):
        for each_s in (0.001, 0.01, 0.05):

            def cost_s(size: int, constant_s: float = constant_s, each_s: float = each_s) -> float:
                return constant_s + each_s * size

            sizes, _ = play(cost_s)
            rate = sum(sizes) / sum(map(cost_s, sizes))
            best = MOST / cost_s(MOST)
            assert rate > 0.4 * best, (constant_s, each_s, sizes)


def test_a_label_studio_that_was_busy_for_a_while_gets_large_imports_again() -> None:
    pace = ImportPace(MOST)
    for _ in range(5):
        pace.note(pace.size, 2 * SLOW_S * pace.size / MOST + 5.0)
    assert pace.size < MOST
    for _ in range(5):
        pace.note(pace.size, 0.5)
    assert pace.size == MOST


def test_a_small_rest_of_a_run_says_nothing_about_the_size() -> None:
    pace = ImportPace(MOST)
    pace.note(3, 2 * SLOW_S)
    assert pace.size == MOST

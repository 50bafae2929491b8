"""Crops around objects."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlm_core.crops import context_crop


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), st.tuples(*[st.floats(0, 1)] * 4))
def test_an_object_is_shown_whole_with_what_is_around_it(size_hw: tuple[int, int], edges: tuple[float, ...]) -> None:
    height, width = size_hw
    x0, x1 = sorted(int(edge * width) for edge in edges[:2])
    y0, y1 = sorted(int(edge * height) for edge in edges[2:])
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    left, top, right, bottom = context_crop((x0, y0, x1, y1), size_hw)
    assert 0 <= left <= x0 < x1 <= right <= width
    assert 0 <= top <= y0 < y1 <= bottom <= height
    side = 1.2 * max(x1 - x0, y1 - y0)
    # as wide as high, but for an image that is narrower
    assert right - left == width or side <= right - left < side + 1
    assert bottom - top == height or side <= bottom - top < side + 1


def test_a_pole_at_the_border_is_shown_in_a_square_inside_the_image() -> None:
    assert context_crop((0, 10, 4, 110), (400, 300)) == (0, 0, 120, 120)
    assert context_crop((100, 150, 200, 160), (400, 300)) == (90, 95, 210, 215)

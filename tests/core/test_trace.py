"""From grids to pixels without upsampling: against upsampling everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vlm_core.errors import InputError
from vlm_core.masks import upsample_logits
from vlm_core.prompts import PreparedPrompts
from vlm_core.runs import RunMask, intersection, union
from vlm_core.trace import peaks_inside, trace, trace_prompt

SIDE = st.integers(1, 40)
CELLS = st.integers(1, 12)
masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


def grids(seed: int, count: int, grid_hw: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (count, *grid_hw)).astype(np.float32)


@settings(deadline=None)
@given(masks, st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_an_intersection_is_what_is_in_all(mask: np.ndarray, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [mask, *(rng.random(mask.shape) < rng.random() for _ in range(count))]
    found = intersection([RunMask.from_array(picture) for picture in pictures])
    np.testing.assert_array_equal(found.to_array(), np.logical_and.reduce(pictures))
    again = RunMask.from_array(found.to_array())  # runs are as RunMask wants them
    np.testing.assert_array_equal(found.starts, again.starts)
    np.testing.assert_array_equal(found.stops, again.stops)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(0, 3),
    st.tuples(CELLS, CELLS),
    st.tuples(SIDE, SIDE),
    st.floats(0.02, 0.98),
)
def test_a_prompt_is_where_its_answer_reaches_the_threshold(
    seed: int, wanted: int, unwanted: int, grid_hw: tuple[int, int], size_hw: tuple[int, int], threshold: float
) -> None:
    logits = grids(seed, wanted + unwanted, grid_hw)
    rows = tuple(range(wanted)), tuple(range(wanted, wanted + unwanted))
    plan = PreparedPrompts(("x",), torch.zeros(len(logits), 2), (rows[0],), (rows[1],))
    full = plan.answer_one(0, torch.from_numpy(logits), size_hw)
    level = float(np.log(threshold / (1 - threshold)))
    found = trace_prompt(list(logits[:wanted]), list(logits[wanted:]), level, size_hw).to_array()
    differ = found != (full.sigmoid().numpy() >= threshold)
    upsampled = upsample_logits(torch.from_numpy(logits), size_hw).numpy()
    best = upsampled[:wanted].max(0)
    near = np.abs(best - level) <= 1e-4
    if unwanted:
        near |= np.abs(best - upsampled[wanted:].max(0)) <= 1e-5
    assert not (differ & ~near).any()


def test_what_is_as_likely_as_what_is_not_meant_is_left_out() -> None:
    grid = np.full((4, 4), 3.0, np.float32)
    assert not len(trace_prompt([grid], [grid], 0.0, (9, 7)))
    assert trace_prompt([grid], [grid - np.float32(1e-3)], 0.0, (9, 7)).area_px == 63
    # at the threshold 0 every probability is enough, as for `binarise`
    assert trace_prompt([grid], [grid], -np.inf, (9, 7)).area_px == 63


def test_grids_that_do_not_belong_together_are_refused() -> None:
    grid = np.zeros((4, 4), np.float32)
    with pytest.raises(InputError, match="one wanted grid"):
        trace_prompt([], [grid], 0.0, (5, 5))
    with pytest.raises(InputError, match=r"\(4, 5\)"):
        trace_prompt([grid], [np.zeros((4, 5), np.float32)], 0.0, (5, 5))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10_000), st.tuples(CELLS, CELLS), st.tuples(SIDE, SIDE), st.floats(-1, 2))
def test_a_peak_is_where_the_upsampled_grid_is_largest(
    seed: int, grid_hw: tuple[int, int], size_hw: tuple[int, int], level: float
) -> None:
    (grid,) = grids(seed, 1, grid_hw)
    mask = trace(grid, level, size_hw)
    parts, count = mask.components()
    full = upsample_logits(torch.from_numpy(grid[None]), size_hw)[0].numpy()
    peaks = peaks_inside(grid, mask, parts, count)
    assert peaks.shape == (count, 2)
    for number, (x, y) in enumerate(peaks):
        own = mask.select(parts == number).to_array()
        assert own[y, x]
        assert full[y, x] >= full[own].max() - 1e-5


def test_of_many_peaks_the_one_in_the_middle_is_taken() -> None:
    """A level top, like that of a model that is sure: its corner would be no place for a point."""
    grid = np.full((20, 20), -6.0, np.float32)
    grid[4:15, 6:16] = 6.0  # a middle that lies inside a cell, and one between two
    mask = trace(grid, 0.0, (200, 200))
    ((x, y),) = peaks_inside(grid, mask, np.zeros(len(mask), np.int32), 1)
    assert abs(x - 109.5) <= 1
    assert abs(y - 94.5) <= 1


def test_parts_that_are_left_out_have_no_peak() -> None:
    left, right = np.zeros((5, 9), bool), np.zeros((5, 9), bool)
    left[1:3, 1:3], right[2:4, 6:8] = True, True
    mask = union([RunMask.from_array(left), RunMask.from_array(right)])
    numbers, _ = mask.components()
    kept = np.where(numbers == numbers[-1], 0, -1).astype(np.int32)
    grid = np.arange(45, dtype=np.float32).reshape(5, 9)
    assert peaks_inside(grid, mask, kept, 1).tolist() == [[7, 3]]

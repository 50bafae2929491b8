"""Masks as runs against masks as pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from vlm_core.errors import InputError
from vlm_core.masks import bounding_box, upsample_logits
from vlm_core.runs import RunMask, fill_holes, union
from vlm_core.trace import mean_inside, trace

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


@settings(deadline=None)
@given(masks)
def test_a_mask_survives_as_runs(mask: np.ndarray) -> None:
    runs = RunMask.from_array(mask)
    np.testing.assert_array_equal(runs.to_array(), mask)
    assert runs.area_px == mask.sum()
    assert runs.box_xyxy_px == bounding_box(mask)
    assert (runs.starts < runs.stops).all()
    # a new run begins only after a gap
    same_row = runs.rows[1:] == runs.rows[:-1]
    assert (runs.starts[1:][same_row] > runs.stops[:-1][same_row]).all()


@settings(deadline=None)
@given(masks)
def test_flat_edges_are_where_the_flat_picture_changes(mask: np.ndarray) -> None:
    flat = mask.ravel()
    changes = np.flatnonzero(flat != np.concatenate(([False], flat[:-1])))
    np.testing.assert_array_equal(RunMask.from_array(mask).flat_edges(), changes)


@settings(deadline=None)
@given(masks)
def test_components_are_those_of_scipy(mask: np.ndarray) -> None:
    runs = RunMask.from_array(mask)
    numbers, count = runs.components()
    labelled, expected = ndimage.label(mask, structure=np.ones((3, 3)))
    assert count == expected
    boxes, areas = runs.measure(numbers, count)
    pictures = [runs.select(numbers == index).to_array() for index in range(count)]
    found = {(picture.tobytes(), int(area)) for picture, area in zip(pictures, areas, strict=True)}
    assert found == {((labelled == i).tobytes(), int((labelled == i).sum())) for i in range(1, expected + 1)}
    assert [tuple(box) for box in boxes] == [bounding_box(picture) for picture in pictures]


@settings(deadline=None)
@given(masks)
def test_without_corners_components_are_those_of_four_neighbours(mask: np.ndarray) -> None:
    runs = RunMask.from_array(mask)
    numbers, count = runs.components(corners=False)
    labelled, expected = ndimage.label(mask)
    assert count == expected
    pictures = {runs.select(numbers == index).to_array().tobytes() for index in range(count)}
    assert pictures == {(labelled == i).tobytes() for i in range(1, expected + 1)}


@settings(deadline=None)
@given(masks)
def test_the_inverse_of_a_mask_is_its_outside(mask: np.ndarray) -> None:
    inverse = RunMask.from_array(mask).inverted()
    np.testing.assert_array_equal(inverse.to_array(), ~mask)
    again = RunMask.from_array(~mask)
    np.testing.assert_array_equal(inverse.starts, again.starts)
    np.testing.assert_array_equal(inverse.stops, again.stops)


@settings(deadline=None)
@given(masks, st.integers(1, 5))
def test_instances_make_up_the_mask_largest_first(mask: np.ndarray, min_area_px: int) -> None:
    parts = RunMask.from_array(mask).instances()
    pictures = [part.to_array() for part in parts]
    np.testing.assert_array_equal(np.sum([np.zeros_like(mask, int), *pictures], axis=0), mask)
    areas = [part.area_px for part in parts]
    assert areas == sorted(areas, reverse=True)
    assert all(part.components()[1] == 1 for part in parts)
    kept = RunMask.from_array(mask).instances(min_area_px)
    assert [part.area_px for part in kept] == [area for area in areas if area >= min_area_px]


@settings(deadline=None)
@given(masks)
def test_filled_holes_are_those_of_scipy_and_stay_filled(mask: np.ndarray) -> None:
    filled = fill_holes(RunMask.from_array(mask))
    np.testing.assert_array_equal(filled.to_array(), ndimage.binary_fill_holes(mask))
    np.testing.assert_array_equal(fill_holes(filled).to_array(), filled.to_array())


@settings(deadline=None)
@given(masks, st.integers(0, 6))
def test_only_holes_up_to_the_largest_are_filled(mask: np.ndarray, largest_px: int) -> None:
    runs = RunMask.from_array(mask)
    filled = fill_holes(runs, largest_px).to_array()
    assert not (mask & ~filled).any()
    np.testing.assert_array_equal(fill_holes(RunMask.from_array(filled), largest_px).to_array(), filled)
    labelled, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    for hole in (labelled == number for number in range(1, count + 1)):
        assert filled[hole].all() if hole.sum() <= largest_px else not filled[hole].any()


def test_what_reaches_the_border_is_no_hole() -> None:
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]], bool)
    assert (~fill_holes(RunMask.from_array(mask)).to_array()).nonzero() == (np.array([1]), np.array([3]))


@settings(deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 20)), st.integers(1, 4), st.integers(0, 1000))
def test_a_union_is_any_of_its_masks(size_hw: tuple[int, int], count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [rng.random(size_hw) < 0.4 for _ in range(count)]
    joined = union([RunMask.from_array(picture) for picture in pictures])
    np.testing.assert_array_equal(joined.to_array(), np.any(pictures, axis=0))
    again = RunMask.from_array(joined.to_array())  # touching runs have become one
    np.testing.assert_array_equal(joined.starts, again.starts)
    np.testing.assert_array_equal(joined.stops, again.stops)


def test_masks_of_different_sizes_have_no_union() -> None:
    with pytest.raises(InputError, match="one size"):
        union([RunMask.from_array(np.ones((2, 3), bool)), RunMask.from_array(np.ones((3, 2), bool))])


def test_only_two_dimensional_bool_arrays_become_runs() -> None:
    with pytest.raises(InputError, match="uint8"):
        RunMask.from_array(np.ones((2, 2), np.uint8))  # type: ignore[arg-type]  # what a caller may get wrong


grids = st.tuples(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 15), st.integers(1, 15)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.floats(-2, 2),
)


@settings(max_examples=200, deadline=None)
@given(grids)
def test_tracing_equals_upsampling_and_comparing(case: tuple[int, tuple[int, int], tuple[int, int], float]) -> None:
    seed, grid_hw, size_hw, level = case
    grid = np.random.default_rng(seed).normal(0, 1.5, grid_hw).astype(np.float32)
    full = upsample_logits(torch.from_numpy(grid)[None], size_hw)[0].numpy()
    different = trace(grid, level, size_hw).to_array() != (full >= level)
    assert (np.abs(full[different] - level) <= 1e-4).all()


@settings(max_examples=100, deadline=None)
@given(grids)
def test_means_are_those_of_the_upsampled_grid(case: tuple[int, tuple[int, int], tuple[int, int], float]) -> None:
    seed, grid_hw, size_hw, level = case
    grid = np.random.default_rng(seed).normal(0, 1.5, grid_hw).astype(np.float32)
    mask = trace(grid, level, size_hw)
    numbers, count = mask.components()
    full = upsample_logits(torch.from_numpy(grid)[None], size_hw)[0].numpy()
    expected = [full[mask.select(numbers == index).to_array()].mean() for index in range(count)]
    np.testing.assert_allclose(mean_inside(grid, mask, numbers, count), expected, atol=1e-4)


def test_levels_may_be_infinite() -> None:
    grid = np.zeros((3, 4), np.float32)
    assert trace(grid, -np.inf, (6, 8)).area_px == 48
    assert not len(trace(grid, np.inf, (6, 8)))


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(0, 5\)"):
        trace(np.zeros((3, 3), np.float32), 0.0, (0, 5))

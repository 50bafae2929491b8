from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from backend.decoding import LabelMask, decode_label, least_area_px, mean_score
from vlm_core.masks import upsample_logits
from vlm_core.runs import RunMask


def _reference(grids: np.ndarray, size_hw: tuple[int, int], threshold: float, temperature: float = 1.0) -> np.ndarray:
    full = upsample_logits(torch.from_numpy(grids) / temperature, size_hw)
    return torch.sigmoid(full).amax(0).numpy() >= threshold


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alternatives=st.integers(1, 3),
    grid_hw=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size_hw=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    threshold=st.floats(0.05, 0.95),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_masks_equal_upsampling_everything(
    seed: int,
    alternatives: int,
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
    threshold: float,
    temperature: float,
) -> None:
    rng = np.random.default_rng(seed)
    grids = (rng.normal(-2, 2, (alternatives, *grid_hw))).astype(np.float32)
    found = decode_label(grids, size_hw, threshold=threshold, temperature=temperature)
    expected = _reference(grids, size_hw, threshold, temperature)
    mask = np.zeros(size_hw, dtype=bool) if found.mask is None else found.mask.to_array()
    # Two ways to interpolate may differ in the last bit, on a pixel that is exactly at the threshold.
    assert (mask != expected).sum() <= 1
    full = upsample_logits(torch.from_numpy(grids) / temperature, size_hw).amax(0).numpy()
    level = np.log(threshold / (1 - threshold))
    assert (np.abs(full[mask != expected] - level) <= 1e-4).all()
    assert sum(part.area_px for part in found.parts) == mask.sum()


def test_nothing_found_scores_how_sure_that_is() -> None:
    found = decode_label(np.full((1, 4, 4), -2.0, np.float32), (8, 8), threshold=0.5)
    assert found.mask is None
    assert found.parts == ()
    assert found.peak == pytest.approx(1 / (1 + np.e**2))
    assert found.score == pytest.approx(1 - found.peak)


def test_parts_are_measured_apart() -> None:
    grid = np.full((1, 10, 10), -8.0, np.float32)
    grid[0, 1:3, 1:4] = 2.0  # six cells
    grid[0, 7, 8] = 4.0
    found = decode_label(grid, (10, 10), threshold=0.5)
    assert [part.box_xyxy_px for part in found.parts] == [(1, 1, 4, 3), (8, 7, 9, 8)]
    assert [part.area_px for part in found.parts] == [6, 1]
    scores = [part.score for part in found.parts]
    assert scores == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-4))])
    assert found.score == pytest.approx((6 * scores[0] + scores[1]) / 7)


def test_specks_are_dropped_from_mask_and_parts() -> None:
    grid = np.full((1, 10, 10), -8.0, np.float32)
    grid[0, 1:3, 1:4] = 2.0
    grid[0, 7, 8] = 4.0
    found = decode_label(grid, (10, 10), threshold=0.5, min_area_px=2)
    assert found.mask is not None
    assert found.mask.area_px == 6
    assert not found.mask.to_array()[7, 8]
    assert len(found.parts) == 1
    assert decode_label(grid, (10, 10), threshold=0.5, min_area_px=7).mask is None


def test_alternatives_combine_by_their_maximum() -> None:
    grids = np.full((2, 4, 4), -8.0, np.float32)
    grids[0, 0, 0], grids[1, 3, 3] = 3.0, 3.0
    found = decode_label(grids, (4, 4), threshold=0.5)
    assert found.mask is not None
    np.testing.assert_array_equal(np.argwhere(found.mask.to_array()), [[0, 0], [3, 3]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_give_finite_scores(value: float) -> None:
    grid = np.zeros((1, 4, 4), np.float32)
    grid[0, 2, 2] = value
    found = decode_label(grid, (20, 30), threshold=0.5)
    assert 0.0 <= found.score <= 1.0
    assert all(0.0 <= part.score <= 1.0 for part in found.parts)


def test_threshold_zero_takes_everything_and_one_nothing_uncertain() -> None:
    grid = np.zeros((1, 3, 3), np.float32)
    everything = decode_label(grid, (5, 7), threshold=0.0)
    assert everything.mask is not None
    assert everything.mask.to_array().all()
    assert decode_label(grid, (5, 7), threshold=1.0).mask is None


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(A, h, w\)"):
        decode_label(np.zeros((4, 4), np.float32), (8, 8), threshold=0.5)


@pytest.mark.parametrize(
    ("configured", "size_hw", "expected"),
    [(None, (1000, 1000), 500), (None, (10, 10), 1), (0, (1000, 1000), 1), (64, (10, 10), 64)],
)
def test_least_area(configured: int | None, size_hw: tuple[int, int], expected: int) -> None:
    assert least_area_px(configured, size_hw) == expected


def test_the_score_of_nothing_is_a_number() -> None:
    assert mean_score([]) == 0.0
    assert mean_score([0.5, 1.0]) == 0.75


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), least=st.integers(1, 12))
def test_outside_of_an_area_nothing_is_looked_at(seed: int, least: int) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.normal(0, 2, (1, 6, 7)).astype(np.float32)
    area = rng.random((17, 23)) < 0.7
    everywhere = decode_label(grid, (17, 23), threshold=0.5)
    inside = decode_label(grid, (17, 23), threshold=0.5, within=RunMask.from_array(area), min_area_px=least)
    expected = _pixels(everywhere, area.shape) & area
    parts, count = ndimage.label(expected, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    assert (_pixels(inside, area.shape) == (sizes[parts] >= least)).all()
    assert sorted(part.area_px for part in inside.parts) == sorted(sizes[sizes >= least].tolist())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_some_parts_are_those_alone(seed: int, data: st.DataObject) -> None:
    grid = np.random.default_rng(seed).normal(-1, 2, (1, 9, 9)).astype(np.float32)
    found = decode_label(grid, (40, 30), threshold=0.5)
    kept = [index for index in range(len(found.parts)) if data.draw(st.booleans())]
    some = found.only(kept)
    assert some.parts == tuple(found.parts[index] for index in kept)
    pieces = [found.pieces()[index].to_array() for index in kept]
    assert (_pixels(some, (40, 30)) == np.any([np.zeros((40, 30), dtype=bool), *pieces], axis=0)).all()
    assert [piece.area_px for piece in some.pieces()] == [part.area_px for part in some.parts]
    if kept:
        weights = [part.area_px for part in some.parts]
        assert some.score == pytest.approx(np.average([part.score for part in some.parts], weights=weights))
    else:
        assert some.mask is None
        assert some.score == pytest.approx(1 - found.peak)


def _pixels(found: LabelMask, size_hw: tuple[int, int]) -> np.ndarray:
    return np.zeros(size_hw, dtype=bool) if found.mask is None else found.mask.to_array()

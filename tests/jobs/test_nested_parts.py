"""Counting all levels at once gives what labelling each level anew gives."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training_jobs.recipes.nested_parts import count_parts

LEVELS = np.array([-1.0, 0.0, 0.5, 2.0], dtype=np.float32)
MEANS = np.array([0.0, 0.4, 0.5, 0.75], dtype=np.float32)


def level_by_level(
    values: np.ndarray, true: np.ndarray, weights: np.ndarray, levels: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(weights), len(levels), len(means))
    area, inside = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for level, least in enumerate(levels):
        count, numbers = cv2.connectedComponents((values >= least).astype(np.uint8), connectivity=8)
        for part in (numbers == number for number in range(1, count)):
            for kind, weight in enumerate(weights):
                stays = weight[part].mean(dtype=np.float64) >= means
                area[kind, level] += stays * part.sum()
                inside[kind, level] += stays * (part & true).sum()
    return area, inside


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    smooth=st.integers(0, 3),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_to_labelling_each_level(height: int, width: int, smooth: int, spread: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 1, (height, width)).astype(np.float32)
    if smooth:
        values = cv2.blur(values, (smooth, smooth)).reshape(height, width)
    values = (values * spread).astype(np.float32)
    values[generator.random((height, width)) < 0.1] = generator.choice(LEVELS)  # exactly on a level: inside
    true = generator.random((height, width)) < 0.5
    weights = generator.random((2, height, width)).astype(np.float32)
    found = count_parts(values, true, weights, LEVELS, MEANS)
    expected = level_by_level(values, true, weights, LEVELS, MEANS)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_diagonal_is_one_part_and_the_edge_of_the_picture_does_not_wrap() -> None:
    values = np.full((3, 4), -5, dtype=np.float32)
    values[0, 3] = values[1, 0] = values[2, 1] = 1
    weights = np.zeros((1, 3, 4), dtype=np.float32)
    weights[0, 0, 3], weights[0, 1, 0], weights[0, 2, 1] = 0.3, 0.9, 0.3
    area, inside = count_parts(values, values > 0, weights, LEVELS[1:2], MEANS)
    assert area[0, 0].tolist() == [3, 2, 2, 0]  # 0.3 by itself; 0.9 and 0.3 together have 0.6
    assert inside[0, 0].tolist() == [3, 2, 2, 0]

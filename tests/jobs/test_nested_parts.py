"""Counting all levels at once gives what labelling each level anew gives."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_expit

from training_jobs.recipes.cross_entropy import cross_entropies
from training_jobs.recipes.nested_parts import count_parts

LEVELS = np.array([-1.0, 0.0, 0.5, 2.0], dtype=np.float32)
MEANS = np.array([0.0, 0.41, 0.52, 0.77], dtype=np.float32)
SCALES = np.array([1.0, 0.5], dtype=np.float32)


def level_by_level(
    values: np.ndarray, true: np.ndarray, scales: np.ndarray, levels: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    weights = [expit(values.astype(np.float64) * scale) for scale in scales]
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
    found = count_parts(values, true, SCALES, LEVELS, MEANS)
    expected = level_by_level(values, true, SCALES, LEVELS, MEANS)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_diagonal_is_one_part_and_the_edge_of_the_picture_does_not_wrap() -> None:
    values = np.full((3, 4), -5, dtype=np.float32)
    values[0, 3], values[1, 0], values[2, 1] = 0.0, 2.0, 0.0  # probabilities of 0.5, 0.88 and 0.5
    area, inside = count_parts(values, values > 0, SCALES[:1], LEVELS[1:2], np.array([0.4, 0.6, 0.8], dtype=np.float32))
    assert area[0, 0].tolist() == [3, 2, 0]  # of one pixel 0.5, of two 0.69
    assert inside[0, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0, 1e4])
def test_entropies_are_those_of_scipy(spread: float) -> None:
    generator = np.random.default_rng(0)
    logits = (generator.normal(0, spread, (40, 37))).astype(np.float32)
    target = generator.integers(0, 256, (40, 37)).astype(np.uint8)
    scales = np.array([1.0, 0.5, 0.25], dtype=np.float32)
    scaled = logits[..., None].astype(np.float64) * scales
    truth = target[..., None] / 255.0
    expected = -(xlog(truth, scaled) + xlog(1 - truth, -scaled)).mean((0, 1))
    np.testing.assert_allclose(cross_entropies(logits, target, scales), expected, rtol=1e-5)


def xlog(share: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return share * log_expit(logits)

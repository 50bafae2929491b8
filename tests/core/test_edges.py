"""Masks pulled to edges: nothing moves further than it may, and a blurred outline finds the object's own."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.core.blobs import any_blobs
from vlm_core.edges import refine_to_edges
from vlm_core.errors import InputError
from vlm_core.evaluate import iou
from vlm_core.runs import RunMask


def disc(side: int, radius: float, centre: tuple[float, float] | None = None) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    y, x = centre or (side / 2, side / 2)
    return np.hypot(rows - y, columns - x) <= radius


def picture(mask: np.ndarray, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 12, (*mask.shape, 3))
    colours = np.where(mask[..., None], (190, 60, 50), (70, 110, 150))
    return Image.fromarray(np.clip(colours + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("side", [120, 400, 1500])
def test_a_coarse_outline_finds_the_edge(side: int) -> None:
    truth = disc(side, 0.3 * side)
    coarse = disc(side, 0.29 * side, (0.507 * side, 0.5 * side))
    before, after = iou(coarse, truth), iou(refine_to_edges(coarse, picture(truth)), truth)
    assert before < 0.95
    assert after > 0.98


@settings(max_examples=40, deadline=None)
@given(runs=any_blobs(), seed=st.integers(0, 2**32 - 1), band=st.sampled_from([0.01, 0.02, 0.1]))
def test_nothing_moves_further_than_the_band(runs: RunMask, seed: int, band: float) -> None:
    mask = runs.to_array()
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*mask.shape, 3), dtype=np.uint8))
    refined = refine_to_edges(mask, image, band=band)
    reach = max(1, round(band * max(mask.shape)))
    moved = refined != mask
    if mask.any() and not mask.all():
        to_outline = np.maximum(
            cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE),
            cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE),
        )
        assert not moved[to_outline > reach].any()
    else:
        assert not moved.any()
    assert np.array_equal(refined, refine_to_edges(mask, image, band=band))


def test_empty_and_full_masks_stay() -> None:
    image = picture(disc(64, 20))
    for mask in (np.zeros((64, 64), bool), np.ones((64, 64), bool)):
        assert np.array_equal(refine_to_edges(mask, image), mask)


def test_an_image_of_one_colour_keeps_the_mask_nearly() -> None:
    mask = disc(200, 60)
    refined = refine_to_edges(mask, Image.new("RGB", (200, 200), (90, 90, 90)))
    assert iou(refined, mask) > 0.8


@pytest.mark.parametrize(
    ("mask", "band", "named"),
    [
        (np.zeros((10, 12), bool), 0.02, r"\(10, 12\)"),
        (np.zeros((10, 10), np.uint8), 0.02, "uint8"),
        (np.zeros((10, 10), bool), 0.0, "band 0.0"),
        (np.zeros((10, 10), bool), 0.3, "band 0.3"),
    ],
)
def test_what_cannot_be_used_is_named(mask: np.ndarray, band: float, named: str) -> None:
    with pytest.raises(InputError, match=named):
        refine_to_edges(mask, Image.new("RGB", (10, 10)), band=band)

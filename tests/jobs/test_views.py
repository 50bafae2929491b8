"""Views: the same every time, true to their masks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from training_jobs.views import View, coverage, make_view, speak_of_places

SHA = hashlib.sha256(b"an image").hexdigest()


def test_view_0_is_the_image_itself() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8))
    view = make_view(SHA, 0, geometry=True)
    assert view == View()
    assert np.array_equal(np.asarray(view.image(image)), np.asarray(image))


def test_views_are_functions_of_hash_and_index() -> None:
    views = [make_view(SHA, index, geometry=True) for index in range(8)]
    assert views == [make_view(SHA, index, geometry=True) for index in range(8)]
    assert len({view.key for view in views}) == 8
    assert make_view("0" * 64, 1, geometry=True) != views[1]


@pytest.mark.parametrize("index", range(1, 9))
def test_image_and_mask_are_seen_alike(index: int) -> None:
    # A white shape on black: after any view the picture still is the mask, up to brightness.
    mask = np.zeros((41, 67), dtype=bool)
    mask[5:20, 30:60] = True
    mask[25:35, 3:9] = True
    image = Image.fromarray(np.repeat(mask[..., None] * np.uint8(200), 3, axis=2))
    view = make_view(SHA, index, geometry=True)
    seen = np.asarray(view.image(image).convert("L"))
    expected = view.mask(mask)
    assert seen.shape == expected.shape
    assert np.array_equal(seen > seen.mean() if expected.any() else np.zeros_like(expected), expected)


def test_without_geometry_nothing_moves() -> None:
    mask = np.eye(20, dtype=bool)
    for index in range(6):
        assert np.array_equal(make_view(SHA, index, geometry=False).mask(mask), mask)


def test_a_crop_of_a_tiny_image_has_a_pixel() -> None:
    image = Image.new("RGB", (1, 2))
    for index in range(20):
        assert min(make_view(SHA, index, geometry=True).image(image).size) >= 1


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("left circle", True), ("The topmost", True), ("upper edge", True), ("star", False), ("laptop", False)],
)
def test_phrases_that_speak_of_places(phrase: str, expected: bool) -> None:
    assert speak_of_places(["dog", phrase]) is expected


def test_coverage_is_the_covered_share() -> None:
    mask = np.zeros((40, 80), dtype=bool)
    mask[:20] = True
    mask[20:30, :40] = True
    # Rows of cells: full; half covered on the left; nothing.
    assert coverage(mask, (4, 2)).tolist() == [[255, 255], [255, 255], [255, 0], [0, 0]]
    mask[30:35] = True
    assert coverage(mask, (4, 2))[3].tolist() == pytest.approx([128, 128], abs=1)
    assert coverage(mask[:2, :2], (4, 4)).min() == 255

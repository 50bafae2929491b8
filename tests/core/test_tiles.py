"""Windows over large images: laws of the blend, and what they find in scenes of small things."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vlm_core
from tests.core.factories import make_clipseg_directory
from vlm_core import InputError
from vlm_core.demo.scenes import Scene, generate_scene
from vlm_core.tiles import Box, Windows, add_windows, choose_windows, join_windows

SIZES = st.integers(1, 900)
SIDES = st.integers(16, 400)


def centres(length: int, count: int) -> torch.Tensor:
    return (torch.arange(count) + 0.5) * (length / count)


@settings(deadline=None)
@given(SIZES, SIZES, SIDES)
def test_windows_reach_everywhere_inside_the_image_and_overlap(height: int, width: int, side: int) -> None:
    windows = Windows.over((height, width), side)
    reached = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in windows.boxes():
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert (x1 - x0, y1 - y0) == (min(side, width), min(side, height))
        reached[y0:y1, x0:x1] = True
    assert reached.all()
    assert len(windows) == len(windows.boxes())
    for starts in (windows.tops, windows.lefts):
        assert all(b - a <= math.ceil(0.75 * side) for a, b in itertools.pairwise(starts))


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, SIDES, st.integers(1, 12), st.floats(-9, 9))
def test_the_weights_sum_to_one_so_that_a_constant_answer_stays_constant(
    height: int, width: int, side: int, cells: int, value: float
) -> None:
    windows = Windows.over((height, width), side)
    joined = windows.join(torch.full((2, cells, cells), value) for _ in windows.boxes())
    assert joined.shape == (2, *windows.grid_hw((cells, cells)))
    torch.testing.assert_close(joined, torch.full_like(joined, value), atol=1e-5, rtol=1e-5)


def test_one_window_is_the_answer_itself() -> None:
    answer = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Windows.over((60, 60), 60).join([answer]), answer, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size_hw", [(500, 700), (120, 900), (333, 331)])
def test_a_function_of_the_image_is_joined_to_itself(size_hw: tuple[int, int]) -> None:
    """Windows that agree give what they agree on, each part in its place: a plane is interpolated exactly."""
    windows = Windows.over(size_hw, 160)

    def plane(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 0.01 * y[:, None] - 0.02 * x[None, :]

    answers = [plane(y0 + centres(y1 - y0, 40), x0 + centres(x1 - x0, 40))[None] for x0, y0, x1, y1 in windows.boxes()]
    joined = windows.join(answers)[0]
    expected = plane(centres(size_hw[0], joined.shape[0]), centres(size_hw[1], joined.shape[1]))
    # The outermost half cell of a window has no cell beyond it to interpolate with.
    torch.testing.assert_close(joined[2:-2, 2:-2], expected[2:-2, 2:-2], atol=2e-3, rtol=0)


def test_windows_that_disagree_are_blended_without_a_seam() -> None:
    """Every window answers with a constant of its own; between neighbouring points the blend moves in small steps."""
    windows = Windows.over((400, 700), 160)
    assert len(windows) > 8
    values = torch.randn(len(windows), generator=torch.Generator().manual_seed(0)) * 5
    joined = windows.join(torch.full((1, 80, 80), float(value)) for value in values)[0]
    span = float(values.max() - values.min())
    steps = max(float(joined.diff(dim=axis).abs().max()) for axis in (0, 1))
    # An overlap is at least 20 cells wide here; a hard border would be a step of the whole span.
    assert steps < 0.12 * span
    answer = add_windows(torch.full((1, 8, 8), -4.0), joined[None], (400, 700), 60.0)[0]
    assert max(float(answer.diff(dim=axis).abs().max()) for axis in (0, 1)) < 0.12 * span


@given(st.floats(-9, 9), st.floats(-9, 9))
def test_constant_views_have_a_constant_answer(before: float, windows: float) -> None:
    answer = add_windows(torch.full((1, 4, 4), before), torch.full((1, 30, 40), windows), (300, 400), 50.0)
    expected = max(before, min(windows, -windows))
    torch.testing.assert_close(answer, torch.full((1, 30, 40), expected), atol=1e-5, rtol=0)


def test_windows_add_what_is_small_and_nothing_large() -> None:
    before, windows = torch.full((1, 10, 10), -5.0), torch.full((1, 100, 100), -5.0)
    windows[:, 10:15, 10:15] = 4.0  # 50 px
    windows[:, 40:80, 30:90] = 4.0  # 400 px and more
    answer = add_windows(before, windows, (1000, 1000), 200.0)[0]
    assert bool((answer[10:15, 10:15] == 4.0).all())
    assert float(answer[35:85, 25:95].max()) < 0
    before[:, 4:8, 3:9] = 3.0
    assert float(add_windows(before, windows, (1000, 1000), 200.0)[0, 45:75, 35:85].min()) == 3.0


def test_windows_of_each_width_add_to_the_views_before() -> None:
    """What fills every window was large enough for the whole view, which saw nothing."""
    levels = choose_windows((1000, 1000), (64, 64), 250)
    assert len(levels) == 2
    whole = torch.full((2, 64, 64), -5.0)
    asked: list[int] = []

    def answers(boxes: Sequence[Box]) -> list[torch.Tensor]:
        asked.append(len(boxes))
        return [torch.full((2, 64, 64), 4.0) for _ in boxes]

    joined = join_windows(whole, levels, 16, answers)
    torch.testing.assert_close(joined, torch.full_like(joined, -4.0), atol=1e-5, rtol=0)
    assert joined.shape[1:] == levels[-1].grid_hw((64, 64))
    assert asked == [len(level) for level in levels]
    assert join_windows(whole, (), 16, answers) is whole


def test_windows_are_chosen_from_wide_to_narrow() -> None:
    sides = [level.side for level in choose_windows((2000, 2000), (352, 352), "auto")]
    assert sides == [1408, 704]
    assert [level.side for level in choose_windows((1000, 3000), (352, 352), 500)] == [2000, 1000, 500]
    assert choose_windows((700, 704), (352, 352), "auto") == ()
    assert choose_windows((900, 900), (352, 352), None) == ()
    assert choose_windows((900, 900), (352, 352), 900) == ()
    for size in ((2000, 2000), (30_000, 40), (8000, 6000)):
        assert len(choose_windows(size, (96, 96), "auto")[-1]) <= 64


@pytest.mark.parametrize("tile", [0, -5, "small", 2.5, True, 3])
def test_tiles_that_cannot_be_used_are_named(tile: object) -> None:
    with pytest.raises(InputError, match="tile"):
        choose_windows((2000, 2000), (352, 352), tile)  # type: ignore[arg-type]  # mistakes on purpose


def test_an_image_that_one_window_shows_is_answered_as_without(tmp_path: Path) -> None:
    make_clipseg_directory(tmp_path, mask_size=64, image_size=32)
    model = vlm_core.load(tmp_path, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (100, 128, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain = model.segment(image, ["x", "dog"])
    for tile in ("auto", 128, 5000):
        assert torch.equal(model.segment(image, ["x", "dog"], tile=tile).logits, plain.logits)  # type: ignore[arg-type]
    tiled = model.segment(image, ["x", "dog"], tile=70)
    assert tiled.logits.shape == plain.logits.shape
    assert tiled.prompts == plain.prompts
    assert not torch.allclose(tiled.logits, plain.logits, atol=0.1)
    alone = model.segment(image, ["dog"], tile=70).logits[0]
    torch.testing.assert_close(tiled.logits[1], alone, atol=1e-4, rtol=0)


def found(scene: Scene, tile: int | str | None) -> tuple[int, int]:
    """How many of the objects of a scene's shapes are marked by at least half, and how many there are."""
    model = vlm_core.load("demo", device="cpu")
    shapes = sorted({item.shape for item in scene.objects if item.named})
    masks = model.segment(scene.image, shapes, tile=tile).logits.numpy() > 0  # type: ignore[arg-type]
    hits = [
        bool((masks[shapes.index(item.shape)] & item.mask).sum() * 2 >= item.mask.sum())
        for item in scene.objects
        if item.named
    ]
    return sum(hits), len(hits)


def test_windows_find_the_small_things_of_a_large_scene() -> None:
    scene = generate_scene(1_000_000, size=1200, diameter=0.04)
    assert found(scene, None)[0] == 0
    hits, there = found(scene, "auto")
    assert hits == there >= 2

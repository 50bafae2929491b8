"""The picture of docs/masks.md: what is drawn, and that it is the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_core.demo import shape_gallery
from vlm_core.demo.scenes import generate_scene
from vlm_core.demo.shape_gallery import Marked, draw_shapes, mark_parts_and_holes
from vlm_core.model import Model
from vlm_core.polygons import polygons
from vlm_core.runs import RunMask
from vlm_core.types import MaskLogits

SEED = 2_000_006
"""An orange square, an orange ring and an orange triangle."""


class Knowing:
    """Answers a scene's phrases with their true masks."""

    def segment(self, image: Image.Image, prompts: Sequence[str]) -> MaskLogits:
        (scene,) = [one for one in (generate_scene(SEED + i) for i in range(3)) if one.image == image]
        truths = {description.words(): scene.union(meant) for description, meant in scene.true_descriptions}
        logits = np.stack([np.where(truths[prompt], 9.0, -9.0) for prompt in prompts])
        return MaskLogits(torch.from_numpy(logits.astype(np.float32)), tuple(prompts))


def test_the_first_mask_with_parts_and_a_hole_is_found() -> None:
    marked = mark_parts_and_holes(cast(Model, Knowing()), first_seed=SEED)
    assert (marked.scene.seed, marked.phrase) == (SEED, "orange shape")
    outlines = polygons(marked.mask)
    assert len(outlines) == 3
    assert sum(len(outline.holes) for outline in outlines) == 1


def test_where_there_is_none_that_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape_gallery, "_MOST_SCENES", 0)
    with pytest.raises(ValueError, match="no scene from seed 7 on"):
        mark_parts_and_holes(cast(Model, Knowing()), first_seed=7)


def test_the_drawing_shows_parts_and_hole_in_colours_of_their_own_and_is_always_the_same() -> None:
    scene = generate_scene(SEED)
    meant = [index for index, item in enumerate(scene.objects) if item.colour == "orange"]
    marked = Marked(scene, "orange shape", RunMask.from_array(scene.union(meant)))
    page = draw_shapes(marked)
    assert page.tobytes() == draw_shapes(marked).tobytes()
    pixels = np.asarray(page).astype(int)

    def like(colour: tuple[int, int, int], at_most: int = 60) -> int:
        return int((np.abs(pixels - colour).sum(axis=-1) < at_most).sum())

    assert like(shape_gallery._HOLE) > 50
    assert like(shape_gallery._MASK) > 1000
    for colour in shape_gallery._PARTS[:3]:
        assert like(colour, 150) > 500

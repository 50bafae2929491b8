"""A project of the demo's scenes, in the small Label Studio: what the bundled checkpoint learns from in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from tests.jobs.label_studio import LabelStudio, brush
from vlm_core.demo.scenes import generate_scene

LABELS = ("circle", "square", "star")
CONFIG = f"""<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">
{"".join(f'<Label value="{label}"/>' for label in LABELS)}</BrushLabels></View>"""
SEEDS = 1_501_000
"""Of scenes that nothing was trained on or is judged by elsewhere."""

Masks = dict[str, NDArray[np.bool_]]
Draw = Callable[[int, Masks], Mapping[str, NDArray[np.bool_]]]


def scenes_project(count: int) -> LabelStudio:
    """A project with `count` scenes and true annotations."""
    label_studio = LabelStudio(config=CONFIG)
    add_scenes(label_studio, count)
    return label_studio


def add_scenes(label_studio: LabelStudio, count: int, *, draw: Draw | None = None) -> None:
    """Further scenes with annotations.

    Args:
        label_studio: the project.
        count: of scenes.
        draw: what the annotator draws instead: called with the number of the scene and its true masks.
    """
    for number in range(len(label_studio.images), len(label_studio.images) + count):
        scene = generate_scene(SEEDS + number, shapes=LABELS, size=(96, 96))
        masks = {label: scene.mask_of(label) for label in LABELS}
        masks = {label: mask for label, mask in masks.items() if mask.any()}
        drawn = masks if draw is None else draw(number, masks)
        task_id = label_studio.add_task(np.asarray(scene.image))
        label_studio.annotate(task_id, [brush(label, mask) for label, mask in drawn.items()])

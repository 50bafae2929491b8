"""Measure a checkpoint on generated scenes, by the same protocol wherever a figure is given."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_core.demo.scenes import generate_scene
from vlm_core.demo.source import validation_samples
from vlm_core.evaluate import evaluate_matching, evaluate_segmentation
from vlm_core.model import Model


def measure_scenes(model: Model, seeds: Sequence[int], *, threshold: float = 0.5) -> dict[str, float]:
    """Masks and matching on the scenes of these seeds, each at its own size.

    Every scene is asked for up to six phrases whose object is there and up to four that are true of nothing,
    and has to rank its first caption above those of three other scenes.

    Args:
        model: one that gives masks.
        seeds: at least four scenes.
        threshold: a pixel is marked from this probability on.

    Returns:
        `mean_iou`, `foreground_iou`, `absent_marked`, `present`, `absent` (see
        :class:`~vlm_core.evaluate.SegmentationReport`), and `one_of_four`, all JSON-able.
    """
    report = evaluate_segmentation(model, validation_samples(seeds), threshold=threshold)
    scenes = [generate_scene(seed) for seed in seeds]
    asked, right = [scene.captions[0] for scene in scenes], [scene.captions for scene in scenes]
    one_of_four = evaluate_matching(model, [scene.image for scene in scenes], asked, right=right)
    return {**report.to_dict(), "one_of_four": one_of_four}

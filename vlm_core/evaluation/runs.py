"""From a data file, or generated scenes, to a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from vlm_core.data import JsonlPairs, JsonlPhrases, PhraseSample
from vlm_core.data_tags import JsonlTags
from vlm_core.demo.scenes import KNOWN_SHAPES, generate_scene
from vlm_core.demo.source import validation_samples
from vlm_core.evaluation.matching import measure_matching
from vlm_core.evaluation.pages import matching_report, segmentation_report, tagging_report
from vlm_core.evaluation.report import Report
from vlm_core.evaluation.segmentation import measure_segmentation
from vlm_core.evaluation.tagging import measure_tagging
from vlm_core.model import Model
from vlm_core.recipes.progress import Progress

TaskName = Literal["segmentation", "matching", "tagging"]


def report_on_file(model: Model, task: TaskName, file: Path, *, threshold: float = 0.5, quiet: bool = False) -> Report:
    """Measure on a JSONL file: of phrases, of pairs, or of tags, by task.

    Args:
        model: for segmentation one that gives masks.
        task: what is measured.
        file: see :mod:`vlm_core.data` and :mod:`vlm_core.data_tags`.
        threshold: a pixel is marked from this probability on; for segmentation.
        quiet: no progress bar.

    Raises:
        DataError: the file cannot be used.
        CapabilityError: the model lacks what the task needs.
    """
    facts = {"model": model.name, "data": file.name}
    if task == "segmentation":
        phrases = JsonlPhrases(file)
        return _segmentation(model, phrases.every_sample(), len(phrases), facts, threshold, quiet)
    if task == "matching":
        pairs = JsonlPairs(file)
        return _matching(model, pairs.image, [pairs.texts[path] for path in pairs.images], facts, quiet)
    tags = JsonlTags(file)
    return _tagging(model, tags.image, tags.tags, facts, quiet)


def report_on_scenes(
    model: Model, task: TaskName, seeds: Sequence[int], *, threshold: float = 0.5, quiet: bool = False
) -> Report:
    """Measure on generated scenes: their phrases, all their captions, or the shapes that they name.

    Args:
        model: for segmentation one that gives masks.
        task: what is measured.
        seeds: one scene each.
        threshold: a pixel is marked from this probability on; for segmentation.
        quiet: no progress bar.

    Raises:
        DataError: too few scenes.
        CapabilityError: the model lacks what the task needs.
    """
    facts = {"model": model.name, "data": f"generated scenes, seeds {seeds[0]} to {seeds[-1]}"}
    if task == "segmentation":
        return _segmentation(model, validation_samples(seeds), len(seeds), facts, threshold, quiet)

    def image(index: int) -> Image.Image:
        return generate_scene(seeds[index]).image

    scenes = (generate_scene(seed) for seed in seeds)
    if task == "matching":
        return _matching(model, image, [scene.captions for scene in scenes], facts, quiet)
    named = [[item.shape for item in scene.attributes if item.named] for scene in scenes]
    return _tagging(model, image, [[shape for shape in KNOWN_SHAPES if shape in own] for own in named], facts, quiet)


def _segmentation(
    model: Model, samples: Iterable[PhraseSample], count: int, facts: dict[str, str], threshold: float, quiet: bool
) -> Report:
    with Progress("segmentation", count, quiet=quiet) as progress:
        result = measure_segmentation(model, samples, threshold=threshold, advance=progress.advance)
    return segmentation_report(result, facts)


def _matching(
    model: Model,
    image: Callable[[int], Image.Image],
    texts: Sequence[Sequence[str]],
    facts: dict[str, str],
    quiet: bool,
) -> Report:
    with Progress("matching", len(texts), quiet=quiet) as progress:
        result = measure_matching(model, image, texts, advance=progress.advance)
    return matching_report(result, facts)


def _tagging(
    model: Model,
    image: Callable[[int], Image.Image],
    tags: Sequence[Sequence[str]],
    facts: dict[str, str],
    quiet: bool,
) -> Report:
    with Progress("tagging", len(tags), quiet=quiet) as progress:
        result = measure_tagging(model, image, tags, advance=progress.advance)
    return tagging_report(result, facts)

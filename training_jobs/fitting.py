"""Training data for the recipe from corrected images, and scores of old and new on images.

Both need what is fixed while one training runs: `Project`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from backend.label_studio.config import PredictionPlan
from backend.manifest import Cuts
from backend.versions import StoredVersion
from training_jobs.ahead import ahead
from training_jobs.corrections import CorrectedImage, Corrections, TrainLabel
from training_jobs.features import FeatureCache
from training_jobs.ladder import Labels, Learned
from training_jobs.promote import Score
from training_jobs.recipes.config import RecipeConfig
from training_jobs.recipes.finetune_decoder import Example, PromptTable
from training_jobs.scoring import See, score_image
from training_jobs.views import coverage, make_view, speak_of_places
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.model import Model
from vlm_core.types import ImageFeatures

_THREADS_BESIDE_A_GPU = 4
"""That open, resize and keep what it encodes; a CPU that encodes has nothing left for them."""


@dataclass(frozen=True)
class Project:
    """What is fixed while one training runs.

    Attributes:
        project_id: Label Studio's id.
        plan: its labelling config.
        corrections: all that was read from Label Studio.
        model: the base model; its decoder is what every training starts from.
        current: the version that serves now; None for the base model.
        features: what the encoder says of the images.
        config: of the recipe.
        devices: that share the fits; empty: the model's.
    """

    project_id: int
    plan: PredictionPlan
    corrections: Corrections
    model: Model
    current: StoredVersion | None
    features: FeatureCache
    config: RecipeConfig
    devices: Sequence[torch.device] = ()

    @property
    def decoder(self) -> CLIPSegDecoder:
        """The base model's decoder."""
        assert self.model.decoder is not None  # checked where the model is loaded
        return self.model.decoder

    @property
    def serving(self) -> tuple[Model, Cuts]:
        """The model that serves now, and where it cuts; its weights are read anew each time."""
        if self.current is None:
            return self.model, Cuts()
        return self.model.with_learned(self.current.load_weights()), self.current.manifest


def encode_examples(
    project: Project, images: Sequence[CorrectedImage], progress: Callable[[float], None]
) -> tuple[list[Example], PromptTable]:
    """Encode the views of images and shrink their masks to the model's grid.

    Args:
        project: what is fixed.
        images: at least one.
        progress: called for each view with the share that is done, 0 to 1; may raise to give up.
    """
    labels = _labels(images)
    index = {name: position for position, name in enumerate(labels)}
    phrases = list(dict.fromkeys(phrase for label in labels.values() for phrase in label.prompts))
    conditions = project.model.encode_text(phrases).clone().float().cpu()
    groups = tuple(tuple(phrases.index(phrase) for phrase in label.prompts) for label in labels.values())
    views = project.config.decoder.views(len(images))
    geometry = not speak_of_places(phrases)
    upsampling = project.decoder.config.upsampling
    threads = _THREADS_BESIDE_A_GPU if project.model.device.type == "cuda" else 1

    def look(number: int) -> Example:
        """One image: opened and its masks unpacked for as long as its views are made."""
        image = images[number]
        masks = [image.mask(label.name) for label in image.labels]
        opened = functools.cache(image.open)
        seen: list[ImageFeatures] = []
        targets: list[NDArray[np.uint8]] = []
        for position in range(views):
            if threads == 1:
                progress((number + position / views) / len(images))
            view = make_view(image.sha256, position, geometry=geometry)
            encoded = project.features.get(image.sha256, view, opened)
            grid = (encoded.grid_hw[0] * upsampling, encoded.grid_hw[1] * upsampling)
            seen.append(encoded)
            targets.append(np.stack([coverage(view.mask(mask), grid) for mask in masks]))
        return Example(image.sha256, tuple(seen), tuple(index[label.name] for label in image.labels), tuple(targets))

    examples: list[Example] = []
    with closing(ahead((functools.partial(look, number) for number in range(len(images))), threads)) as looked:
        for example in looked:
            examples.append(example)
            progress(len(examples) / len(images))
    return examples, PromptTable(conditions, groups)


def labels_of(project: Project, images: Sequence[CorrectedImage]) -> Labels:
    """The labels of images, in the order of `encode_examples`' table."""
    labels = _labels(images)
    return Labels(
        names=tuple(labels),
        phrases=tuple(label.prompts for label in labels.values()),
        fixed_cut=frozenset(name for name, label in labels.items() if label.threshold is not None),
    )


def compare_by_folds(
    project: Project,
    folds: Sequence[tuple[frozenset[str], Learned]],
    images: Sequence[CorrectedImage],
    alive: Callable[[], None],
    see: See | None = None,
) -> list[Score]:
    """Score images each with what was learned without them; see `Climb.by_folds`. Other arguments as of `compare`."""
    scores: list[Score] = []
    for asked, learned in folds:
        scores += compare(project, [image for image in images if image.sha256 in asked], learned, alive, see)
    return scores


def compare(
    project: Project,
    images: Sequence[CorrectedImage],
    learned: Learned,
    alive: Callable[[], None],
    see: See | None = None,
) -> list[Score]:
    """Score the serving version and what was learned on images that neither has learned from.

    Args:
        project: what is fixed.
        images: to look at.
        learned: what is compared with what serves.
        alive: called before each image; may raise to give up.
        see: for who looks at the masks.
    """
    old = project.serving
    new = project.model.with_learned(learned.state), learned.cuts
    found = []
    for image in images:
        alive()
        view = make_view(image.sha256, 0, geometry=False)
        found += score_image(image, project.features.get(image.sha256, view, image.open), old, new, see)
    return found


def _labels(images: Sequence[CorrectedImage]) -> dict[str, TrainLabel]:
    return {label.name: label for image in images for label in image.labels}

"""Training data for the recipe from corrected images, and scores of old and new on images.

Both need what is fixed while one training runs: `Project`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.label_studio.config import PredictionPlan
from backend.versions import ManifestDraft, StoredVersion
from training_jobs import split
from training_jobs.corrections import CorrectedImage, Corrections, TrainLabel
from training_jobs.features import FeatureCache
from training_jobs.promote import Score
from training_jobs.recipes import finetune_decoder
from training_jobs.recipes.finetune_decoder import Example, FinetuneConfig, PromptTable, State
from training_jobs.scoring import See, score_image
from training_jobs.views import coverage, make_view, speak_of_places
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.model import Model
from vlm_core.types import ImageFeatures

FOLDS = 4
"""Parts of the cross-validation that decides where too few images are held out."""


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
    """

    project_id: int
    plan: PredictionPlan
    corrections: Corrections
    model: Model
    current: StoredVersion | None
    features: FeatureCache
    config: FinetuneConfig

    @property
    def decoder(self) -> CLIPSegDecoder:
        """The base model's decoder."""
        assert self.model.decoder is not None  # checked where the model is loaded
        return self.model.decoder

    @property
    def serving(self) -> tuple[Model, ManifestDraft | None]:
        """The model that serves now; its weights are read anew each time."""
        if self.current is None:
            return self.model, None
        return self.model.with_decoder(self.current.load_weights()), self.current.manifest


def encode_examples(
    project: Project, images: Sequence[CorrectedImage], progress: Callable[[float], None]
) -> tuple[list[Example], PromptTable]:
    """Encode the views of images and shrink their masks to the model's grid.

    Args:
        project: what is fixed.
        images: at least one.
        progress: called before each view with the share that is done, 0 to 1; may raise to give up.
    """
    labels: dict[str, TrainLabel] = {label.name: label for image in images for label in image.labels}
    index = {name: position for position, name in enumerate(labels)}
    phrases = list(dict.fromkeys(phrase for label in labels.values() for phrase in label.prompts))
    conditions = project.model.encode_text(phrases).clone().float().cpu()
    groups = tuple(tuple(phrases.index(phrase) for phrase in label.prompts) for label in labels.values())
    views = project.config.views(len(images))
    geometry = not speak_of_places(phrases)
    upsampling = project.decoder.config.upsampling
    examples = []
    for number, image in enumerate(images):
        seen: list[ImageFeatures] = []
        targets: list[NDArray[np.uint8]] = []
        masks = [image.mask(label.name) for label in image.labels]
        for view in (make_view(image.sha256, position, geometry=geometry) for position in range(views)):
            progress((number + len(seen) / views) / len(images))
            encoded = project.features.get(image.sha256, view, image.open)
            grid = (encoded.grid_hw[0] * upsampling, encoded.grid_hw[1] * upsampling)
            seen.append(encoded)
            targets.append(np.stack([coverage(view.mask(mask), grid) for mask in masks]))
        names = tuple(index[label.name] for label in image.labels)
        examples.append(Example(image.sha256, tuple(seen), names, tuple(targets)))
    return examples, PromptTable(conditions, groups)


def cross_validate(
    project: Project,
    examples: Sequence[Example],
    prompts: PromptTable,
    fresh: Sequence[CorrectedImage],
    tick: Callable[[int], finetune_decoder.Tick],
    see: See | None = None,
) -> list[Score]:
    """Score each fresh training image with a decoder that was trained without it; by image, so by group.

    Args:
        project: what is fixed.
        examples: all training images, at least `FOLDS`.
        prompts: of the project's labels.
        fresh: those of the training images that are scored.
        tick: gives the progress of a fold by its number.
        see: for who looks at the masks too.
    """
    left = [(example.image, example.present) for example in examples]
    # Nothing is chosen inside a fold: the final training does not choose either with so few images,
    # or chooses from them, which a fold of three quarters imitates by the defaults.
    config = project.config.model_copy(update={"choose_from": len(examples) + 1})
    scores: list[Score] = []
    for fold in range(FOLDS):
        size = round(len(left) / (FOLDS - fold))
        out = split.choose_held_out(left, [], size)
        left = [(image, labels) for image, labels in left if image not in out]
        scored = [image for image in fresh if image.sha256 in out]
        if not scored:
            continue
        fitted = [example for example in examples if example.image not in out]
        state, _ = finetune_decoder.train(project.decoder, fitted, prompts, config, tick(fold))
        scores += compare(project, scored, state, see)
    return scores


def compare(project: Project, images: Sequence[CorrectedImage], state: State, see: See | None = None) -> list[Score]:
    """Score the serving version and new decoder weights on images that neither has learned from."""
    old, new = project.serving, project.model.with_decoder(state)
    found = []
    for image in images:
        view = make_view(image.sha256, 0, geometry=False)
        found += score_image(image, project.features.get(image.sha256, view, image.open), old, new, see)
    return found

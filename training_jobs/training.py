"""One training of one project, from its annotations to a published version or a clear reason why not.

Reads Label Studio, splits by image, encodes, trains the recipe on the training part, compares once, writes the
version, publishes it when it is better. Knows nothing of queues; `training_jobs.jobs` runs it.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

import vlm_core
from backend import atomic
from backend.job_history import JobOutcome, LabelChange
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import LabelConfigError, PredictionPlan, parse_label_config
from backend.label_studio.images import ImageConfig, ImageFetcher
from backend.plans import ExtraParams
from backend.settings import Settings
from backend.versions import (
    BaseCheckpoint,
    DataRecord,
    FencedError,
    ManifestDraft,
    RecipeRecord,
    StoredVersion,
    VersionStore,
)
from training_jobs import split
from training_jobs.corrections import CorrectedImage, Corrections, ImageSource, TrainLabel, read_corrections
from training_jobs.errors import CannotTrainError, ImagesAwayError
from training_jobs.features import FeatureCache
from training_jobs.promote import MIN_IMAGES, Score, Verdict, judge
from training_jobs.recipes import finetune_decoder
from training_jobs.recipes.finetune_decoder import Choice, Example, FinetuneConfig, PromptTable, State
from training_jobs.scoring import score_image
from training_jobs.views import coverage, make_view, speak_of_places
from vlm_core.model import Model
from vlm_core.types import ImageFeatures

log = logging.getLogger(__name__)

FOLDS = 4
"""Parts of the cross-validation that decides where too few images are held out."""

Report = Callable[[str, float, float | None], None]
"""Called often with phase, done share of the whole job (0 to 1) and loss; raises to give up."""


@dataclass(frozen=True)
class Result:
    """What one training came to; the fields are those of `backend.job_history.JobRecord`."""

    outcome: JobOutcome
    reason: str
    version: int | None = None
    labels: dict[str, LabelChange] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Project:
    """What is fixed while one training runs."""

    project_id: int
    plan: PredictionPlan
    corrections: Corrections
    model: Model
    current: StoredVersion | None
    features: FeatureCache
    config: FinetuneConfig

    @property
    def serving(self) -> tuple[Model, ManifestDraft | None]:
        """The model that serves now."""
        if self.current is None:
            return self.model, None
        return self.model.with_decoder(self.current.load_weights()), self.current.manifest


def connect(settings: Settings) -> tuple[LabelStudioClient, ImageFetcher]:
    """The client and the fetcher that the settings describe.

    Raises:
        CannotTrainError: LABEL_STUDIO_URL or LABEL_STUDIO_API_KEY is not set.
    """
    missing = [
        name
        for name, value in (
            ("LABEL_STUDIO_URL", settings.label_studio_url),
            ("LABEL_STUDIO_API_KEY", settings.label_studio_token),
        )
        if not value
    ]
    if missing or settings.label_studio_url is None:
        raise CannotTrainError(f"training reads annotations from Label Studio: set {' and '.join(missing)}")
    client = LabelStudioClient(
        settings.label_studio_url, settings.label_studio_token, timeout_s=settings.label_studio_timeout_s
    )
    return client, ImageFetcher(ImageConfig.from_settings(settings), client.authorization)


def recipe_config(settings: Settings) -> FinetuneConfig:
    """The recipe's settings: its defaults, changed by VLM_TRAIN_RECIPE.

    Raises:
        CannotTrainError: a setting that the recipe does not have, or a value out of range.
    """
    try:
        return FinetuneConfig.model_validate_json(settings.train_recipe or "{}")
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)
        )
        raise CannotTrainError(f"VLM_TRAIN_RECIPE: {wrong}") from None


def train_version(
    project_id: int,
    settings: Settings,
    *,
    client: Any,
    fetcher: ImageSource,
    token: int,
    forced: bool,
    report: Report,
    config: FinetuneConfig | None = None,
) -> Result:
    """Train a version of the project and publish it if it is better.

    Args:
        project_id: Label Studio's id.
        settings: of the worker.
        client: a `LabelStudioClient` or something with its `project` and `tasks`.
        fetcher: of images.
        token: fencing token, taken when the job began.
        forced: train even where nothing is new.
        report: see `Report`.
        config: of the recipe; default: `recipe_config`.

    Raises:
        CannotTrainError: the config or the checkpoint does not allow it.
        ImagesAwayError: try again later.
        LabelStudioError: Label Studio does not answer, or refuses.
        VersionError, OSError: the data directory cannot be read or written.
    """
    config = config or recipe_config(settings)
    store = VersionStore(settings.data_dir)
    plan = _read_plan(client, settings.data_dir, project_id)
    if not plan.prompts:
        return Result(
            "nothing to learn", "the labelling config has no BrushLabels or RectangleLabels to learn masks for"
        )
    report("reading corrections", 0.0, None)
    corrections = read_corrections(
        client, fetcher, project_id, plan, on_task=lambda: report("reading corrections", 0.02, None)
    )
    counts = {**corrections.counts, "images": len(corrections.images)}
    last = store.project_dir(project_id) / "last_training.json"
    fingerprint = corrections.fingerprint(plan.hash_payload(), settings.checkpoint, config.model_dump(mode="json"))
    too_early = _too_early(corrections, last, fingerprint, settings.train_min_annotations, forced)
    if too_early is not None:
        return Result(*too_early, counts=counts)

    model = vlm_core.load(settings.checkpoint, settings.device, "float32")
    if model.decoder is None:
        raise CannotTrainError(
            f"{settings.checkpoint} ranks tags but gives no masks: set VLM_CHECKPOINT to one that does"
        )
    features = FeatureCache(settings.data_dir / "cache" / "features", model)
    current = store.current(project_id)
    if current is not None and current.manifest.base.fingerprint != model.fingerprint:
        current = None  # of another checkpoint: the base model serves until there is a version of this one
    project = _Project(project_id, plan, corrections, model, current, features, config)
    last.parent.mkdir(parents=True, exist_ok=True)
    parts = split.assign(last.with_name("split.json"), [(image.sha256, image.present) for image in corrections.images])
    training = [image for image in corrections.images if parts[image.sha256] == "training"]
    held_out = [image for image in corrections.images if parts[image.sha256] == "held out"]
    fresh = _fresh(training, project.current)
    enough = sum(bool(image.masks) for image in held_out) >= MIN_IMAGES
    deciding = held_out if enough else [*held_out, *fresh]
    usable = sum(bool(image.masks) for image in deciding)
    if usable < MIN_IMAGES or not training:
        return Result(
            "too few",
            f"too few corrections: {usable} of {MIN_IMAGES} images with a label to compare versions on",
            counts=counts,
        )

    examples, prompts = _examples(project, training, lambda share: report("encoding images", 0.05 + 0.2 * share, None))
    scores: list[Score] = []
    work = _Work(report, folds=0 if enough else FOLDS)
    if not enough:
        scores += _cross_validate(project, examples, prompts, fresh, work)
    state, choice = finetune_decoder.train(_decoder(model), examples, prompts, config, work.final)
    report("comparing", 0.95, None)
    scores += _scores(project, held_out, state)
    verdict = judge(scores, seed=config.seed)
    features.trim()

    draft = _draft(project, training, held_out, verdict, choice, by_folds=not enough)
    report("publishing", 0.98, None)
    metrics = {"choice": choice.__dict__, "decided_by": draft.metrics["decided_by"], "verdict": verdict.to_json()}
    version = store.write(project_id, state, draft, metrics)
    result = Result(
        "published" if verdict.better else "not better", verdict.reason, version.number, _changes(verdict), counts
    )
    if verdict.better:
        try:
            store.publish(project_id, version, token)
        except FencedError as error:
            return Result("superseded", str(error), version.number, _changes(verdict), counts)
    atomic.write_json(last, {"fingerprint": fingerprint, "stamps": corrections.stamps})
    return result


def _read_plan(client: Any, data_dir: Path, project_id: int) -> PredictionPlan:
    label_config = str(client.project(project_id).get("label_config") or "")
    try:
        return parse_label_config(label_config, ExtraParams(data_dir).of(project_id))
    except LabelConfigError as error:
        raise CannotTrainError(f"project {project_id}: {error}") from error


def _too_early(
    corrections: Corrections, last: Path, fingerprint: str, least_new: int, forced: bool
) -> tuple[JobOutcome, str] | None:
    """Why nothing is trained now; None where it is."""
    images = len(corrections.images)
    if images < MIN_IMAGES:
        if corrections.temporary:
            raise ImagesAwayError(
                f"{corrections.counts['image_failed']} images could not be fetched: {corrections.failures[0]}"
            )
        return "too few", f"too few corrections: {images} of {MIN_IMAGES} annotated images"
    if forced:
        return None
    try:
        known = json.loads(last.read_bytes())
    except (OSError, ValueError):
        return None
    if known.get("fingerprint") == fingerprint:
        return "nothing new", "no annotation has changed since the last training"
    stamps = known.get("stamps") or {}
    new = sum(stamps.get(key) != stamp for key, stamp in corrections.stamps.items())
    new += sum(key not in corrections.stamps for key in stamps)  # deleted: also something to learn
    if 0 < new < least_new:
        return "too few", f"too few corrections: {new} of {least_new} new ones (VLM_TRAIN_MIN_ANNOTATIONS)"
    return None


def _fresh(training: Sequence[CorrectedImage], current: StoredVersion | None) -> list[CorrectedImage]:
    """The training images that the serving version has not learned from: only on them is a comparison fair."""
    learned = set() if current is None else set(current.manifest.data.training_images)
    return [image for image in training if image.sha256 not in learned]


def _examples(
    project: _Project, images: Sequence[CorrectedImage], progress: Callable[[float], None]
) -> tuple[list[Example], PromptTable]:
    """Encode the views of the training images and shrink their masks to the model's grid."""
    labels: dict[str, TrainLabel] = {label.name: label for image in images for label in image.labels}
    index = {name: position for position, name in enumerate(labels)}
    phrases = list(dict.fromkeys(phrase for label in labels.values() for phrase in label.prompts))
    conditions = project.model.encode_text(phrases).clone().float().cpu()
    groups = tuple(tuple(phrases.index(phrase) for phrase in label.prompts) for label in labels.values())
    views = project.config.views(len(images))
    geometry = not speak_of_places(phrases)
    upsampling = _decoder(project.model).config.upsampling
    examples = []
    for number, image in enumerate(images):
        seen: list[ImageFeatures] = []
        targets: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
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


def _cross_validate(
    project: _Project,
    examples: Sequence[Example],
    prompts: PromptTable,
    fresh: Sequence[CorrectedImage],
    work: _Work,
) -> list[Score]:
    """Score each fresh training image with a decoder that was trained without it; by image, so by group."""
    left = [(example.image, example.present) for example in examples]
    # Nothing is chosen inside a fold: the final training below does not choose either with so few images,
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
        state, _ = finetune_decoder.train(_decoder(project.model), fitted, prompts, config, work.fold(fold))
        scores += _scores(project, scored, state)
    return scores


def _scores(project: _Project, images: Sequence[CorrectedImage], state: State) -> list[Score]:
    old, new = project.serving, project.model.with_decoder(state)
    found = []
    for image in images:
        view = make_view(image.sha256, 0, geometry=False)
        found += score_image(image, project.features.get(image.sha256, view, image.open), old, new)
    return found


def _draft(
    project: _Project,
    training: Sequence[CorrectedImage],
    held_out: Sequence[CorrectedImage],
    verdict: Verdict,
    choice: Choice,
    *,
    by_folds: bool,
) -> ManifestDraft:
    model, images = project.model, [*training, *held_out]
    transform = model.mask_transform
    return ManifestDraft(
        base=BaseCheckpoint(
            name=model.name,
            fingerprint=model.fingerprint,
            taps=_decoder(model).config.taps,
            input_size_hw=None if transform is None else transform.size_hw,
        ),
        prompts=project.plan.hash_payload(),
        data=DataRecord(
            task_ids=tuple(sorted({image.task_id for image in images})),
            annotation_ids=tuple(sorted(number for image in images for number in image.annotation_ids)),
            training_images=tuple(image.sha256 for image in training),
            held_out_images=tuple(image.sha256 for image in held_out),
            counts=dict(project.corrections.counts),
        ),
        recipe=RecipeRecord(
            name=finetune_decoder.NAME,
            settings=project.config.model_dump(mode="json"),
            chosen={"interpolation": choice.interpolation, "steps": choice.steps},
            versions={"label-studio-vlm-backend": _own_version(), "torch": str(torch.__version__)},
        ),
        seed=project.config.seed,
        metrics={
            "compared_with": 0 if project.current is None else project.current.number,
            "decided_by": f"cross-validation, {FOLDS} folds by image" if by_folds else "held-out images",
            "gain": verdict.gain,
            "images": verdict.images,
        },
        decision="better" if verdict.better else "not better",
        reason=verdict.reason,
    )


def _changes(verdict: Verdict) -> dict[str, LabelChange]:
    return {
        item.label: LabelChange(before=item.old_iou, after=item.new_iou, images=item.images) for item in verdict.labels
    }


def _decoder(model: Model) -> Any:
    assert model.decoder is not None  # checked where the model is loaded
    return model.decoder


def _own_version() -> str:
    try:
        return importlib.metadata.version("label-studio-vlm-backend")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class _Work:
    """Turns the recipe's own progress into a share of the job: a quarter is done when it begins, 0.95 at its end."""

    def __init__(self, report: Report, *, folds: int) -> None:
        self._report = report
        self._step = 0.7 / (folds + 2)  # the final training counts double: it chooses, then trains
        self._folds = folds

    def fold(self, number: int) -> finetune_decoder.Tick:
        """Progress of one fold."""
        return lambda _, share, loss: self._report("cross-validating", 0.25 + self._step * (number + share), loss)

    def final(self, phase: str, share: float, loss: float) -> None:
        """Progress of the training that gives the version."""
        begin = 0.25 + self._step * (self._folds + (phase == "training"))
        self._report(phase, begin + self._step * share, loss)

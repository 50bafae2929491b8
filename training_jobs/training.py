"""One training of one project, from its annotations to a published version or a clear reason why not.

Reads Label Studio, splits by image, learns masks and choices from the training part and compares each once
(`training_jobs.mask_part`, `training_jobs.tag_part`), writes the version, publishes it when a part of it is better.
Knows nothing of queues; `training_jobs.jobs` runs it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import vlm_core
from backend import atomic
from backend.gpu_memory import bound_gpu_memory
from backend.job_history import JobOutcome
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import LabelConfigError, PredictionPlan, parse_label_config
from backend.label_studio.images import ImageConfig, ImageFetcher
from backend.label_studio.true_tags import tag_controls
from backend.plans import ExtraParams
from backend.settings import Settings
from backend.versions import FencedError, PinnedError, VersionStore
from training_jobs import split
from training_jobs.acceptance import AcceptanceNotes, note_acceptance
from training_jobs.annotation_state import Mark, Reading, Stamps
from training_jobs.corrections import CorrectedImage, Corrections, ImageSource, Json, learned_names, read_corrections
from training_jobs.devices import training_devices
from training_jobs.errors import CannotTrainError, ImagesAwayError
from training_jobs.features import FeatureCache
from training_jobs.fit_checkpoints import FitCheckpoints
from training_jobs.fitting import Project
from training_jobs.label_history import keep_label_history, label_history
from training_jobs.mask_part import learn_masks
from training_jobs.memory import short_memory_told
from training_jobs.part import Part, TooFew, within
from training_jobs.promote import MIN_IMAGES
from training_jobs.recipes.config import RecipeConfig, read_recipe
from training_jobs.report_record import Extremes, LossCurve, report_files
from training_jobs.tag_part import learn_tags
from training_jobs.task_mirror import TaskMirror
from training_jobs.version_record import Result, compose, draft_manifest, label_changes, own_version

log = logging.getLogger(__name__)

_MOST_AWAY = 0.25
"""Share of the images that may fail for the moment; with more the job waits for them."""

Report = Callable[[str, float, float | None], None]
"""Called often with phase, done share of the whole job (0 to 1) and loss; raises to give up."""


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
    return client, ImageFetcher(ImageConfig.from_settings(settings), client)


def train_version(
    project_id: int,
    settings: Settings,
    *,
    client: Any,
    fetcher: ImageSource,
    token: int,
    forced: bool,
    report: Report,
    config: RecipeConfig | None = None,
) -> Result:
    """Train a version of the project and publish it if it is better.

    Args:
        project_id: Label Studio's id.
        settings: of the worker.
        client: a `LabelStudioClient`.
        fetcher: of images.
        token: fencing token, taken when the job began.
        forced: train even where nothing is new.
        report: see `Report`.
        config: of the recipe; default: what VLM_TRAIN_RECIPE says.

    Raises:
        CannotTrainError: the config or the checkpoint does not allow it.
        ImagesAwayError, MemoryShortError: try again later.
        LabelStudioError: Label Studio does not answer, or refuses.
        VersionError, OSError: the data directory cannot be read or written.
    """
    config = config or read_recipe(settings.train_recipe)
    store = VersionStore(settings.data_dir)
    plan = _read_plan(client, settings.data_dir, project_id)
    directory = store.project_dir(project_id)
    mark = Mark.of(client, project_id)
    report("reading corrections", 0.0, None)
    directory.mkdir(parents=True, exist_ok=True)
    with TaskMirror(directory, project_id, settings.label_studio_url or "") as mirror:
        counts = mirror.sync(client, lambda: report("reading corrections", 0.01, None))
        log.info("project=%d annotated tasks: %s", project_id, ", ".join(f"{n} {what}" for what, n in counts.items()))
        if not learned_names(plan):
            read = note_acceptance(
                mirror.tasks(),
                project_id,
                plan,
                settings.data_dir,
                lambda: report("reading annotations", 0.5, None),
            )
            _keep_reading(directory, project_id, mark, read)
            reason = "the labelling config has no masks, boxes, outlines or choices to learn"
            return Result("nothing to learn", reason)
        acceptance = AcceptanceNotes(settings.data_dir, project_id, plan)
        corrections = _read_corrections(mirror, fetcher, project_id, plan, directory, report, acceptance)
        acceptance.keep()
    with short_memory_told():
        result = _learn(project_id, settings, store, plan, corrections, token, forced, report, config)
    _keep_reading(directory, project_id, mark, corrections.tasks)
    return result


def _keep_reading(directory: Path, project_id: int, mark: Mark, tasks: Mapping[str, Stamps]) -> None:
    """Note which annotations were read, so that the reconcile job asks for the rest only."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        Reading(mark, {task: stamps for task, stamps in tasks.items() if stamps}).keep(directory)
    except OSError as error:  # costs the reconcile job a question, and must not turn a published version into a failure
        log.error("project=%d what was read could not be noted: %s", project_id, error)


def _learn(
    project_id: int,
    settings: Settings,
    store: VersionStore,
    plan: PredictionPlan,
    corrections: Corrections,
    token: int,
    forced: bool,
    report: Report,
    config: RecipeConfig,
) -> Result:
    """Train on what was read, and publish what is better; arguments and errors as of `train_version`."""
    report = curve = LossCurve(report)
    directory = store.project_dir(project_id)
    counts, last = corrections.all_counts(), directory / "last_training.json"
    fingerprint = corrections.fingerprint(plan.hash_payload(), settings.checkpoint, config.model_dump(mode="json"))
    too_early = _too_early(corrections, last, fingerprint, settings.train_min_annotations, forced)
    if too_early is not None:
        return Result(*too_early, counts=counts)

    devices = training_devices(settings)
    bound_gpu_memory(settings, devices)
    model = vlm_core.load(settings.checkpoint, settings.device, "float32")
    if model.decoder is None and not tag_controls(plan):
        raise CannotTrainError(
            f"{settings.checkpoint} ranks tags but gives no masks: set VLM_CHECKPOINT to one that does"
        )
    features = FeatureCache(settings.data_dir / "cache" / "features", model)
    current = store.current(project_id)
    if current is not None and current.manifest.base.fingerprint != model.fingerprint:
        current = None  # of another checkpoint: the base model serves until there is a version of this one
    project = Project(project_id, plan, corrections, model, current, features, config, devices)
    assigned = split.assign(directory / "split.json", [(image.sha256, image.names) for image in corrections.images])
    training = [image for image in corrections.images if assigned[image.sha256] == "training"]
    held_out = [image for image in corrections.images if assigned[image.sha256] == "held out"]

    checkpoints = FitCheckpoints(directory, _of_the_fits(fingerprint, model.fingerprint, training))
    extremes = Extremes()
    learned: list[Part | TooFew] = []
    if tag_controls(plan):
        learned.append(learn_tags(project, training, held_out, within(report, 0.03, 0.05)))
    if model.decoder is not None and any(image.labels for image in corrections.images):
        learned.append(learn_masks(project, training, held_out, checkpoints, within(report, 0.05, 0.96), extremes.see))
    parts = [part for part in learned if isinstance(part, Part)]
    if not parts:
        reasons = [part.reason for part in learned if isinstance(part, TooFew)] or ["no image says anything of a label"]
        return Result("too few", f"too few corrections: {'; '.join(reasons)}", counts=counts)

    report("publishing", 0.98, None)
    made = compose(project, parts)
    if not made.state:
        atomic.write_json(last, {"fingerprint": fingerprint, "stamps": corrections.stamps})
        return Result("not better", made.reason, None, label_changes(made.labels), counts)
    draft = draft_manifest(project, training, held_out, made)
    metrics = {"choice": made.chosen, "decided_by": draft.metrics["decided_by"], "verdict": made.to_json()}
    files = report_files(
        made.scores, corrections.images, extremes, curve, answers=made.answers, seed=config.decoder.seed
    )
    version = store.write(project_id, made.state, draft, metrics, files)
    checkpoints.clear()
    changes = label_changes(made.labels)
    result = Result("published" if made.better else "not better", made.reason, version.number, changes, counts)
    if made.better:
        try:
            store.publish(project_id, version, token)
        except FencedError as error:
            return Result("superseded", str(error), version.number, changes, counts)
        except PinnedError as error:
            result = replace(result, outcome="pinned", reason=f"{made.reason}; {error}")
    atomic.write_json(last, {"fingerprint": fingerprint, "stamps": corrections.stamps})
    return result


def _of_the_fits(fingerprint: str, model: str, training: Sequence[CorrectedImage]) -> str:
    """Names all that decides what fits come to: annotations and settings, weights, images, and what computes."""
    parts = [fingerprint, model, own_version(), str(torch.__version__), *sorted(image.sha256 for image in training)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_plan(client: Any, data_dir: Path, project_id: int) -> PredictionPlan:
    label_config = str(client.project(project_id).get("label_config") or "")
    try:
        return parse_label_config(label_config, ExtraParams(data_dir).of(project_id))
    except LabelConfigError as error:
        raise CannotTrainError(f"project {project_id}: {error}") from error


def _read_corrections(
    mirror: TaskMirror,
    fetcher: ImageSource,
    project_id: int,
    plan: PredictionPlan,
    directory: Path,
    report: Report,
    acceptance: AcceptanceNotes,
) -> Corrections:
    """Read all annotations, and note which labels the config has now.

    Raises:
        ImagesAwayError: too many images failed for reasons that may pass.
    """
    names = learned_names(plan)
    history = label_history(directory / "labels.json", sorted(names))

    def on_task(task: Json, annotations: Sequence[Json]) -> None:
        report("reading corrections", 0.02, None)
        acceptance.see(task, annotations)

    corrections = read_corrections(mirror.tasks(), fetcher, project_id, plan, history, on_task=on_task)
    keep_label_history(directory / "labels.json", history, corrections.newest)
    for task_id, reason in corrections.failures:
        log.warning("project=%d task=%d is left out: %s", project_id, task_id, reason)
    images = len(corrections.images)
    if corrections.away > _MOST_AWAY * (images + corrections.away):
        task_id, reason = corrections.failures[0]
        raise ImagesAwayError(f"{corrections.away} images cannot be fetched for now; task {task_id}: {reason}")
    return corrections


def _left_out(corrections: Corrections) -> str:
    """What could not be learned from, for a reason; "" where nothing was left out."""
    counts, said = corrections.counts, ""
    if counts["image_failed"]:
        task_id, reason = corrections.failures[0]
        said += f"; {counts['image_failed']} images could not be fetched (task {task_id}: {reason})"
    if counts["unreadable"]:
        said += f"; {counts['unreadable']} annotations could not be read"
    return said


def _too_early(
    corrections: Corrections, last: Path, fingerprint: str, least_new: int, forced: bool
) -> tuple[JobOutcome, str] | None:
    """Why nothing is trained now; None where it is."""
    images = len(corrections.images)
    if images < MIN_IMAGES:
        return "too few", f"too few corrections: {images} of {MIN_IMAGES} annotated images{_left_out(corrections)}"
    if forced:
        return None
    try:
        known = json.loads(last.read_bytes())
    except (OSError, ValueError):
        known = {}  # the first training: everything is new
    if known.get("fingerprint") == fingerprint:
        return "nothing new", "no annotation has changed since the last training"
    stamps = known.get("stamps") or {}
    new = sum(stamps.get(key) != stamp for key, stamp in corrections.stamps.items())
    new += sum(key not in corrections.stamps for key in stamps)  # deleted: also something to learn
    if 0 < new < least_new:
        return "too few", f"too few corrections: {new} of {least_new} new ones (VLM_TRAIN_MIN_ANNOTATIONS)"
    return None

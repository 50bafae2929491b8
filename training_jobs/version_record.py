"""What a training leaves behind: the new version's manifest, and what became of the job."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from backend.job_history import JobOutcome, LabelChange
from backend.versions import BaseCheckpoint, DataRecord, ManifestDraft, RecipeRecord, StoredVersion
from training_jobs.corrections import CorrectedImage
from training_jobs.fitting import Project
from training_jobs.ladder import Learned
from training_jobs.promote import Verdict
from training_jobs.recipes.config import NAME


@dataclass(frozen=True)
class Result:
    """What one training came to; the fields are those of `backend.job_history.JobRecord`."""

    outcome: JobOutcome
    reason: str
    version: int | None = None
    labels: dict[str, LabelChange] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def published_result(version: StoredVersion) -> Result:
    """The result of a training that has published `version`, as the version's own files tell it.

    Raises:
        VersionCorruptError: its metrics cannot be read.
    """
    verdict = version.metrics().get("verdict") or {}
    labels = {
        name: LabelChange(before=item["iou"]["old"], after=item["iou"]["new"], images=item["images"])
        for name, item in (verdict.get("labels") or {}).items()
    }
    manifest = version.manifest
    return Result("published", manifest.reason, version.number, labels, dict(manifest.data.counts))


def label_changes(verdict: Verdict) -> dict[str, LabelChange]:
    """Per label its IoU before and after."""
    return {
        item.label: LabelChange(before=item.old_iou, after=item.new_iou, images=item.images) for item in verdict.labels
    }


def draft_manifest(
    project: Project,
    training: Sequence[CorrectedImage],
    held_out: Sequence[CorrectedImage],
    verdict: Verdict,
    learned: Learned,
    *,
    by_folds: bool,
) -> ManifestDraft:
    """The manifest of the version that a training made.

    Args:
        project: what was fixed.
        training: images that it learned from.
        held_out: images that it did not learn from.
        verdict: of the gate.
        learned: what the version is.
        by_folds: cross-validation took part in the decision.
    """
    images, transform = [*training, *held_out], project.model.mask_transform
    return ManifestDraft(
        base=BaseCheckpoint(
            name=project.model.name,
            fingerprint=project.model.fingerprint,
            taps=project.decoder.config.taps,
            input_size_hw=None if transform is None else transform.size_hw,
        ),
        prompts=project.plan.hash_payload(),
        data=DataRecord(
            task_ids=tuple(sorted({image.task_id for image in images})),
            annotation_ids=tuple(sorted(number for image in images for number in image.annotation_ids)),
            training_images=tuple(image.sha256 for image in training),
            held_out_images=tuple(image.sha256 for image in held_out),
            counts=project.corrections.all_counts(),
        ),
        recipe=RecipeRecord(
            name=NAME,
            settings=project.config.model_dump(mode="json"),
            chosen=dict(learned.chosen),
            versions={"label-studio-vlm-backend": own_version(), "torch": str(torch.__version__)},
        ),
        **dict(learned.cuts),
        seed=project.config.decoder.seed,
        metrics={
            "compared_with": 0 if project.current is None else project.current.number,
            "decided_by": f"cross-validation, {project.config.folds} folds by image" if by_folds else "held-out images",
            "gain": verdict.gain,
            "images": verdict.images,
        },
        decision="better" if verdict.better else "not better",
        reason=verdict.reason,
    )


def own_version() -> str:
    """This release's version; "unknown" where it is not installed."""
    try:
        return importlib.metadata.version("label-studio-vlm-backend")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

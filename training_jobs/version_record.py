"""What a training leaves behind: the new version's manifest, and what became of the job."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from backend.job_history import JobOutcome, LabelChange
from backend.manifest import Cuts
from backend.versions import (
    BaseCheckpoint,
    DataRecord,
    Manifest,
    ManifestDraft,
    RecipeRecord,
    StoredVersion,
    TagHead,
)
from training_jobs.corrections import CorrectedImage
from training_jobs.fitting import Project
from training_jobs.part import Part
from training_jobs.promote import LabelResult, Score
from training_jobs.promote_tags import TagAnswer
from training_jobs.recipes.config import NAME
from vlm_core.tag_head import join_heads, split_heads


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


def label_changes(labels: Sequence[LabelResult]) -> dict[str, LabelChange]:
    """Per label what was measured before and after."""
    return {item.label: LabelChange(before=item.old_iou, after=item.new_iou, images=item.images) for item in labels}


_FOR_PEOPLE = {"masks": "masks", "tags": "choices"}


@dataclass(frozen=True)
class Composed:
    """A version of its parts: those that are better, and of the others what serves now.

    Attributes:
        parts: that were learned.
        state: all tensors; empty where nothing differs from the base model.
        cuts: where masks are cut.
        better: whether any part is.
        reason: what the gate says of each part.
    """

    parts: tuple[Part, ...]
    state: Mapping[str, Tensor]
    cuts: Cuts
    better: bool
    reason: str

    @property
    def chosen(self) -> dict[str, Any]:
        """What cross-validation decided."""
        return {key: value for part in self.parts for key, value in _chosen(part).items()}

    @property
    def labels(self) -> tuple[LabelResult, ...]:
        """All that were measured."""
        return tuple(label for part in self.parts for label in part.verdict.labels)

    @property
    def scores(self) -> list[Score]:
        """All that the gate judged by."""
        return [score for part in self.parts for score in part.scores]

    @property
    def answers(self) -> list[TagAnswer]:
        """To choices, of both versions."""
        return [answer for part in self.parts for answer in part.answers]

    @property
    def deciding(self) -> Part:
        """The part that the figures of the whole are of: the first one that is better, else the first."""
        return next((part for part in self.parts if part.verdict.better), self.parts[0])

    def to_json(self) -> dict[str, Any]:
        """The verdict, for `metrics.json`; labels of all parts, and what the gate says of each."""
        labels = {key: value for part in self.parts for key, value in part.verdict.to_json()["labels"].items()}
        parts = {
            part.name: {key: value for key, value in part.verdict.to_json().items() if key != "labels"}
            for part in self.parts
        }
        about = self.deciding.name
        whole = {"about": about, "better": self.better, "labels": labels, "parts": parts, "reason": self.reason}
        return parts[about] | whole


def compose(project: Project, parts: Sequence[Part]) -> Composed:
    """Make a version of what was learned. Where no part is better, it has all of them, to be looked at."""
    ordered = tuple(sorted(parts, key=lambda part: part.name))  # masks first
    better = any(part.verdict.better for part in ordered)
    used = {part.name: part for part in ordered if part.verdict.better or not better}
    served = {} if project.current is None else project.current.load_weights()
    others, heads = split_heads(served)
    masks, tags = used.get("masks"), used.get("tags")
    state = {**(others if masks is None else masks.state), **(join_heads(heads) if tags is None else tags.state)}
    cuts = Cuts() if project.current is None else _cuts(project.current.manifest)
    if len(ordered) == 1:
        reason = ordered[0].verdict.reason
    else:
        reason = "; ".join(f"{_FOR_PEOPLE[part.name]}: {part.verdict.reason}" for part in ordered)
    return Composed(ordered, state, cuts if masks is None else masks.cuts, better, reason)


def _cuts(manifest: Manifest) -> Cuts:
    return Cuts(**{name: getattr(manifest, name) for name in Cuts.model_fields})


def _chosen(part: Part) -> dict[str, Any]:
    return dict(part.chosen) if part.name == "masks" else {"tags": dict(part.chosen)}


def draft_manifest(
    project: Project, training: Sequence[CorrectedImage], held_out: Sequence[CorrectedImage], made: Composed
) -> ManifestDraft:
    """The manifest of the version that a training made.

    Args:
        project: what was fixed.
        training: images that it learned from.
        held_out: images that it did not learn from.
        made: what the version is.
    """
    images, transform = [*training, *held_out], project.model.mask_transform
    decoder, verdict = project.model.decoder, made.deciding.verdict
    _, heads = split_heads(made.state)
    folds = f"cross-validation, {project.config.folds} folds by image"
    return ManifestDraft(
        base=BaseCheckpoint(
            name=project.model.name,
            fingerprint=project.model.fingerprint,
            taps=() if decoder is None else decoder.config.taps,
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
            chosen=made.chosen,
            versions={"label-studio-vlm-backend": own_version(), "torch": str(torch.__version__)},
        ),
        **dict(made.cuts),
        tag_head=TagHead(questions={name: head.labels for name, head in heads.items()}) if heads else None,
        seed=project.config.decoder.seed,
        metrics={
            "compared_with": 0 if project.current is None else project.current.number,
            "decided_by": folds if made.deciding.by_folds else "held-out images",
            "gain": verdict.gain,
            "images": verdict.images,
        },
        decision="better" if made.better else "not better",
        reason=made.reason,
    )


def own_version() -> str:
    """This release's version; "unknown" where it is not installed."""
    try:
        return importlib.metadata.version("label-studio-vlm-backend")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

"""Label Studio's annotations -> images with a true mask for each label: what training learns from.

Label Studio owns the labels; `training_jobs.task_mirror` has its annotations as they are now. What counts:

- Of several annotations what `backend.label_studio.truth` says.
- A finished image says something about every label that its annotator could choose: a label without a region is
  **not there**. Of labels that came later it says nothing (`training_jobs.label_history`), nor of one that is marked by
  points only.
- So an annotation of which a region of a known label cannot be read is left out as a whole: it would teach that
  something visible is absent.
- A control that names things for the whole image teaches by what `backend.label_studio.true_tags` says.
- A label whose phrase is another one for each task (`model_prompt_from`) is not learned: it has no meaning of its own.
- The same picture in several tasks counts once, with the annotation that was changed last.

Everything that is left out is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.label_studio.config import ControlPlan, PredictionPlan
from backend.label_studio.images import FetchedImage, ImageError
from backend.label_studio.prediction_plan import Shape
from backend.label_studio.true_tags import TrueTags, agreed_tags, read_choices, tag_controls
from backend.label_studio.truth import (
    Vote,
    agreed,
    annotations_that_count,
    changed_at,
    is_id,
    read_drawing,
    well_formed,
)
from training_jobs.annotation_state import Stamps, stamps_of
from training_jobs.label_history import LabelHistory
from vlm_core.runs import BoolMask

Json = dict[str, Any]

_MOST_EXACT: tuple[Shape | None, ...] = ("brush", "bitmask", "polygon", "ellipse", "rectangle")


class ImageSource(Protocol):
    """The part of `ImageFetcher` that is used."""

    def fetch(self, uri: str, *, task_id: int | None = None, project_id: int | None = None) -> FetchedImage:
        """The image behind an address."""


@dataclass(frozen=True)
class TrainLabel:
    """A label that masks are predicted for, as the project's config has it.

    Attributes:
        name: as in results.
        prompts: its phrases; the best one counts.
        threshold, min_area: of its control; None where the config says nothing.
        not_prompts: phrases of what must not be included.
    """

    name: str
    prompts: tuple[str, ...]
    threshold: float | None
    min_area: int | None
    not_prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackedMask:
    """A mask at full size, one bit a pixel."""

    size_hw: tuple[int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: BoolMask) -> PackedMask:
        """Pack a bool mask (H, W)."""
        return cls((mask.shape[0], mask.shape[1]), np.packbits(mask))

    def unpack(self) -> BoolMask:
        """The bool mask (H, W)."""
        height, width = self.size_hw
        return np.unpackbits(self.bits, count=height * width).reshape(height, width).astype(bool)


@dataclass(frozen=True)
class CorrectedImage:
    """One image with everything that its annotators said about it.

    Attributes:
        task_id: in Label Studio.
        annotation_ids: those that count.
        sha256: of the image file.
        size_hw: of the displayed image, px.
        labels: every label that a finished annotation of it speaks about.
        masks: per label that is there; a label of `labels` that is missing here is absent from the image.
        tags: what was chosen for the whole image, by the control's name; of those that were answered.
        open: fetches the image again (from the cache, as a rule); RGB, as displayed.
    """

    task_id: int
    annotation_ids: tuple[int, ...]
    sha256: str
    size_hw: tuple[int, int]
    labels: tuple[TrainLabel, ...]
    masks: Mapping[str, PackedMask]
    open: Callable[[], Image.Image]
    tags: Mapping[str, TrueTags] = field(default_factory=dict)

    @property
    def present(self) -> frozenset[str]:
        """Names of the labels that are there."""
        return frozenset(self.masks)

    @property
    def names(self) -> frozenset[str]:
        """Of all labels that are there, and of those that were chosen, each with its control."""
        return self.present | {tag_name(name, label) for name, own in self.tags.items() for label in own.chosen}

    def mask(self, label: str) -> BoolMask:
        """The true mask of a label, bool (H, W); all False where it is absent."""
        packed = self.masks.get(label)
        return np.zeros(self.size_hw, dtype=bool) if packed is None else packed.unpack()


@dataclass
class Corrections:
    """All that a project can teach.

    Attributes:
        images: in the order of their tasks; no picture twice.
        counts: `tasks`, `annotations`, and what was left out: `skipped`, `superseded`, `unreadable`, `outdated` (of
            labels that the config no longer has only), `no_image`, `image_failed`, `duplicate`, `disagreed` (of a
            choice that no label has won).
        failures: up to 20 images that could not be fetched: task and reason.
        stamps: per annotation that could be read (as a string) when it was changed: what "new" is measured against.
        away: images that failed for a reason that may pass.
        newest: when the annotation that was changed last was changed; "" without any.
        tasks: per task the stamps of all its annotations, of those too that could not be learned from.
    """

    images: list[CorrectedImage] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    stamps: dict[str, str] = field(default_factory=dict)
    away: int = 0
    newest: str = ""
    tasks: dict[str, Stamps] = field(default_factory=dict)

    def all_counts(self) -> dict[str, int]:
        """The counts with the number of images."""
        return {**self.counts, "images": len(self.images)}

    def fingerprint(self, *parts: object) -> str:
        """SHA-256, hex, over the annotations and over `parts` (JSON values)."""
        text = json.dumps([sorted(self.stamps.items()), parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def train_labels(plan: PredictionPlan, to_name: str) -> tuple[TrainLabel, ...]:
    """The labels of one image of the config that areas are predicted for, in the config's order.

    A label in several controls counts once, as the control has it that draws most exactly.
    """
    found: dict[str, TrainLabel] = {}
    controls = [item for item in plan.controls if item.to_name == to_name and item.covers_pixels]
    for control in sorted(controls, key=lambda item: _MOST_EXACT.index(item.shape)):
        for label in control.labels:
            if label.prompt_from is None:
                one = TrainLabel(label.label, label.prompts, control.threshold, control.min_area, label.not_prompts)
                found.setdefault(label.label, one)
    return tuple(found.values())


def tag_name(control: str, label: str) -> str:
    """How a label of a control that names things is called beside labels of masks."""
    return f"{control}: {label}"


def learned_names(plan: PredictionPlan) -> set[str]:
    """Of all labels that can be learned."""
    drawn = {label.name for control in plan.controls for label in train_labels(plan, control.to_name)}
    return drawn | {tag_name(item.from_name, label.label) for item in tag_controls(plan) for label in item.answers}


def read_corrections(
    tasks: Iterable[Json],
    fetcher: ImageSource,
    project_id: int,
    plan: PredictionPlan,
    history: LabelHistory,
    *,
    on_task: Callable[[Json, Sequence[Json]], None],
) -> Corrections:
    """Read a project's annotations and fetch their images.

    Args:
        tasks: of the project, with their annotations; those without any may be missing.
        fetcher: of images.
        project_id: the project.
        plan: its labelling config.
        history: since when it has had each label.
        on_task: called with each task and its annotations that count, before they are read; raises to give up.

    An image that fails is counted.
    """
    corrections = Corrections()
    reader = _Reader(fetcher, project_id, plan, history, corrections)
    latest: dict[str, tuple[str, CorrectedImage]] = {}
    for task in tasks:
        corrections.counts["tasks"] += 1
        if not is_id(task.get("id")):  # Label Studio has no such task; whatever it is, it stops no other
            corrections.counts["unreadable"] += 1
            continue
        corrections.tasks[str(task["id"])] = stamps_of(task)
        annotations = _counting(task, corrections)
        on_task(task, annotations)
        for control in _one_per_image(plan):
            found = reader.read(task, control, annotations)
            if found is None:
                continue
            before = latest.get(found[1].sha256)
            if before is not None:
                corrections.counts["duplicate"] += 1
            if before is None or found[0] > before[0]:
                latest[found[1].sha256] = found
    corrections.images = sorted((image for _, image in latest.values()), key=lambda image: image.task_id)
    return corrections


def _one_per_image(plan: PredictionPlan) -> list[ControlPlan]:
    """For each image of the config one control whose labels are learned."""
    teaching = [item for item in plan.controls if item.covers_pixels and train_labels(plan, item.to_name)]
    return list({item.to_name: item for item in [*tag_controls(plan), *teaching]}.values())


def _counting(task: Json, corrections: Corrections) -> list[Json]:
    """The annotations of a task that count; notes when the newest of all was changed."""
    corrections.newest = max([corrections.newest, *map(changed_at, well_formed(task))])
    return annotations_that_count(task, corrections.counts)


@dataclass(frozen=True)
class _Reader:
    """Reads the images of tasks; counts what is left out."""

    fetcher: ImageSource
    project_id: int
    plan: PredictionPlan
    history: LabelHistory
    corrections: Corrections

    def read(self, task: Json, control: ControlPlan, annotations: Sequence[Json]) -> tuple[str, CorrectedImage] | None:
        """One image of a task with its masks, and when it was last changed; None where it cannot be learned from."""
        if not annotations:
            return None
        task_id, counts = int(task["id"]), self.corrections.counts
        data = task.get("data")
        uri = control.image_uri(data) if isinstance(data, Mapping) else None
        if uri is None:
            counts["no_image"] += 1
            return None
        try:
            fetched = self.fetcher.fetch(uri, task_id=task_id, project_id=self.project_id)
        except ImageError as error:
            counts["image_failed"] += 1
            self.corrections.away += error.temporary
            if len(self.corrections.failures) < 20:
                self.corrections.failures.append((task_id, str(error)))
            return None
        labels = train_labels(self.plan, control.to_name)
        learned = {item.name for item in labels}
        questions = tag_controls(self.plan, control.to_name)
        votes: list[Vote] = []
        answers: dict[str, list[TrueTags]] = {}
        ids: list[int] = []
        for annotation in annotations:
            drawing = read_drawing(annotation["result"], self.plan, control.to_name, learned, fetched.size_hw)
            if drawing is None:
                counts["unreadable"] += 1
                continue
            changed = changed_at(annotation)
            could_choose = {item.name for item in labels if self.history.could_choose(item.name, changed)}
            about = (could_choose - drawing.pointed) | set(drawing.masks)
            votes.append(Vote(drawing.masks, frozenset(about)))
            ids.append(int(annotation["id"]))
            self.corrections.stamps[str(annotation["id"])] = changed
            for question in questions:
                if (answer := self._answer(annotation["result"], question, changed)) is not None:
                    answers.setdefault(question.from_name, []).append(answer)
        tags = {}
        for question in questions:
            own = answers.get(question.from_name)
            agreed_on = agreed_tags(own, multiple=question.multiple) if own else None
            if agreed_on is not None:
                tags[question.from_name] = agreed_on
            elif own:
                counts["disagreed"] += 1
        about = {name for vote in votes for name in vote.about}
        if not about and not tags:
            if votes:
                counts["outdated"] += 1
            return None

        def reopen() -> Image.Image:
            return self.fetcher.fetch(uri, task_id=task_id, project_id=self.project_id).image

        image = CorrectedImage(
            task_id=task_id,
            annotation_ids=tuple(ids),
            sha256=fetched.sha256,
            size_hw=fetched.size_hw,
            labels=tuple(item for item in labels if item.name in about),
            masks={name: PackedMask.of(mask) for name, mask in agreed(votes)},
            open=reopen,
            tags=tags,
        )
        return max(changed_at(annotation) for annotation in annotations), image

    def _answer(self, result: Sequence[Any], question: ControlPlan, changed: str) -> TrueTags | None:
        """What an annotation chooses, and what it could have chosen; None where it does not answer."""
        chosen = read_choices(result, question)
        if chosen is None:
            return None
        offered = (label.label for label in question.answers)
        able = {one for one in offered if self.history.could_choose(tag_name(question.from_name, one), changed)}
        return TrueTags(chosen, frozenset(able) | chosen)

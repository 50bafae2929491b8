"""Label Studio's JSON export -> phrases with masks, and image-text pairs from `Choices` for whole images.

What counts of several annotations says `backend.label_studio.truth`. A label's phrases are those of the labelling
config where it is given: then a label of the config that the annotators did not use is absent from the image, and
is written so. A label whose phrase is in the task's data (`model_prompt_from`) has that one. Without a config the
labels are those that occur, each its own phrase, and nothing is said to be absent.

A label is left out of an image where one of its regions cannot be read: what is visible would be taught to be absent.

Images are looked for in a folder, by as much of the end of their address as is there: `/data/upload/7/1a2b3c4d-x.jpg`
is `upload/7/1a2b3c4d-x.jpg`, `7/1a2b3c4d-x.jpg`, `1a2b3c4d-x.jpg`, or `x.jpg` as it was called before it was
uploaded.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from backend.label_studio.annotation_masks import with_labels
from backend.label_studio.brush import Mask
from backend.label_studio.config import (
    ControlKind,
    ControlPlan,
    LabelConfigError,
    LabelPrompt,
    PredictionPlan,
    parse_label_config,
)
from backend.label_studio.results import UnreadRegion, masks_from_results
from backend.label_studio.truth import (
    AREAS,
    BOXES,
    NOTHING_DRAWN,
    Json,
    Vote,
    agreed,
    annotations_that_count,
    changed_at,
)
from vlm_core.convert.dataset import (
    DatasetWriter,
    LeftOutError,
    Progress,
    SourceImage,
    clean_phrase,
    find_image,
    no_progress,
)
from vlm_core.convert.json_records import read_record, read_records
from vlm_core.errors import DataError

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2")
_COUNTED = {
    "skipped": "the annotation was skipped by its annotator",
    "superseded": "a newer annotation of the same annotator, or a ground truth, counts instead",
    "unreadable": "the annotation has no result",
}


def convert_label_studio(
    export: Path, images: Path, writer: DatasetWriter, *, config: str | None = None, progress: Progress = no_progress
) -> None:
    """Write a line for each phrase of each label of each image, and one for each choice.

    Args:
        export: a JSON export (not JSON-MIN, which says neither what was skipped nor which image a region is on).
        images: folder in which the images are looked for.
        writer: takes the lines.
        config: the project's labelling config; with several images in a task it is needed.
        progress: called for each image.

    Raises:
        DataError: no such export, a config that cannot be used, or several images in a task and no config.
    """
    try:
        plan = _plan_of(export) if config is None else parse_label_config(config)
    except LabelConfigError as error:
        raise DataError(str(error)) from error
    found = _find_images(export, images, plan, writer)
    converter = _Converter(plan, writer, absent=config is not None)
    with export.open("rb") as file:
        for done, source in enumerate(found, start=1):
            progress(done, len(found))
            try:
                image = find_image(images, source.name)
            except LeftOutError as reason:
                writer.summary.leave_out(str(reason), source.uri)
                continue
            converter.convert(image, source.to_name, read_record(file, source.start, source.end))


def _tasks(export: Path) -> Iterator[tuple[int, int, Json]]:
    """The tasks that have annotations, with their bytes in the file."""
    annotated = 0
    for record in read_records(export):
        if record.key == "" and isinstance(record.value, dict) and isinstance(record.value.get("annotations"), list):
            annotated += 1
            task = record.value
            task["annotations"] = [item for item in task["annotations"] if isinstance(item, dict)]
            yield record.start, record.end, task
    if not annotated:
        raise DataError(
            f"{export} has no task with annotations: export the project as JSON. JSON-MIN will not do, since it does "
            "not say which annotations were skipped and which image a region is on"
        )


def _plan_of(export: Path) -> PredictionPlan:
    """The labels that occur, as a plan; the image's address is found in each task without its name."""
    labels: dict[tuple[ControlKind, str, str], dict[str, LabelPrompt]] = {}
    image_names: dict[str, None] = {}
    for _, _, task in _tasks(export):
        for region in (region for item in task["annotations"] for region in _regions(item.get("result"))):
            to_name = str(region.get("to_name"))
            if region.get("original_width"):
                image_names[to_name] = None
            is_choice = region.get("type") == "choices"
            control: tuple[ControlKind, str, str] = (
                ("choices", str(region.get("from_name")), to_name) if is_choice else ("brushlabels", "", to_name)
            )
            for label in _labels_of(region):
                with suppress(LeftOutError):  # no label then, which is counted when the region is read
                    prompt = LabelPrompt(label, (clean_phrase(label),), label)
                    labels.setdefault(control, {})[label] = prompt
    if len(image_names) > 1:
        raise DataError(f"{export} labels several images in a task ({', '.join(image_names)}): give --config FILE")
    names = image_names or dict.fromkeys(to_name for _, _, to_name in labels)
    controls = (
        ControlPlan(kind, from_name, to_name, "", tuple(prompts.values()))
        for (kind, from_name, to_name), prompts in labels.items()
        if to_name in names and len(names) == 1
    )
    return PredictionPlan(tuple(controls))


def _regions(result: object) -> list[Mapping[str, Any]]:
    return [region for region in with_labels(result) if isinstance(region, Mapping)]


def _labels_of(region: Mapping[str, Any]) -> list[str]:
    """The labels or choices that a region carries."""
    value = region.get("value")
    if not isinstance(value, Mapping):
        return []
    given = value.get(str(region.get("type"))) or value.get("labels")
    return [label for label in given if isinstance(label, str)] if isinstance(given, list) else []


@dataclass(frozen=True)
class _Found:
    """An image of a task: its name in the folder, its address, and where in the export the task is."""

    name: str
    uri: str
    to_name: str
    changed: str
    start: int
    end: int


def _find_images(export: Path, folder: Path, plan: PredictionPlan, writer: DatasetWriter) -> list[_Found]:
    """The images that are there, in the export's order; of several tasks with one image the one changed last."""
    found: dict[str, _Found] = {}
    addresses: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for start, end, task in _tasks(export):
        annotations = annotations_that_count(task, counts, numbered=False)
        if not annotations:
            continue
        changed = max(changed_at(annotation) for annotation in annotations)
        for control in {item.to_name: item for item in plan.controls if item.kind != "ranker"}.values():
            try:
                uri = _image_uri(task, control)
                path = _path_of(uri)
                name = _name_in(folder, path)
            except LeftOutError as reason:
                writer.summary.leave_out(str(reason), f"task {task.get('id')}")
                continue
            addresses.setdefault(name, set()).add(path)
            before = found.get(name)
            if before is not None:
                writer.summary.leave_out("the image is in another task too, whose annotation is newer", uri)
            if before is None or changed >= before.changed:
                found[name] = _Found(name, uri, control.to_name, changed, start, end)
    for key, why in _COUNTED.items():
        for _ in range(counts[key]):
            writer.summary.leave_out(why, "")
    for name in [name for name, paths in addresses.items() if len(paths) > 1]:
        writer.summary.leave_out("different addresses lead to one file: give a folder that tells them apart", name)
        del found[name]
    return sorted(found.values(), key=lambda item: (item.start, item.to_name))


def _image_uri(task: Json, control: ControlPlan) -> str:
    data = task.get("data")
    data = data if isinstance(data, Mapping) else {}
    if control.image_key:
        uri = control.image_uri(data)
        if uri is None:
            raise LeftOutError(f"the task's data has no {control.image_key!r}")
        return uri
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    if "image" in texts:
        return texts["image"]
    images = [text for text in texts.values() if urlsplit(text).path.lower().endswith(_IMAGE_ENDINGS)]
    if len(images) != 1:
        raise LeftOutError("the task's data does not say which field is the image: give --config FILE")
    return images[0]


def _path_of(uri: str) -> str:
    """The path in an address of Label Studio's, of a web server or of a bucket, without leading slashes."""
    if uri.startswith("data:"):
        raise LeftOutError("the image is inside the task, as a data URL")
    path = uri
    if "://" in uri or uri.startswith("/data/"):
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise LeftOutError("the image's address is broken") from None
        local = re.search(r"(?:^|&)d=([^&]*)", parts.query)
        is_local = local is not None and parts.path.rstrip("/").endswith("/data/local-files")
        path = unquote(local[1] if local is not None and is_local else parts.path)
    steps = [step for step in path.split("/") if step not in ("", ".")]
    if not steps or ".." in steps or "\0" in path:
        raise LeftOutError("the image's address is broken")
    return "/".join(steps)


def _name_in(folder: Path, path: str) -> str:
    """The longest end of a path that is a file in the folder; of uploaded files at last the name from before."""
    steps = path.split("/")
    ends = ["/".join(steps[first:]) for first in range(len(steps))]
    for name in [*ends, _UPLOADED.sub("", steps[-1], count=1)]:
        try:
            if (folder / name).is_file():
                return name
        except OSError:  # too long for the file system
            continue
    raise LeftOutError("the image is not in the folder")


@dataclass
class _Converter:
    """Writes the lines of one image after the other."""

    plan: PredictionPlan
    writer: DatasetWriter
    absent: bool
    _labels: dict[str, dict[str, LabelPrompt]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for control in self.plan.controls:
            if control.covers_pixels:
                for label in control.labels:
                    self._labels.setdefault(control.to_name, {}).setdefault(label.label, label)

    def convert(self, image: SourceImage, to_name: str, task: Json) -> None:
        part = self.writer.part_of(image.name)
        votes: list[Vote] = []
        chosen: list[Mapping[str, tuple[str, ...]]] = []
        task["annotations"] = [item for item in task["annotations"] if isinstance(item, dict)]
        for annotation in annotations_that_count(task, Counter(), numbered=False):
            vote, choices = self._read(annotation["result"], image, to_name, str(task.get("id")))
            votes.append(vote)
            chosen.append(choices)
        if self.writer.has_room("phrases", part, image.name):
            self._write_phrases(image, part, self._phrases(to_name, task), votes)
        if self.writer.has_room("pairs", part, image.name):
            self._write_choices(image, part, to_name, chosen)

    def _read(
        self, result: Sequence[Any], image: SourceImage, to_name: str, task: str
    ) -> tuple[Vote, Mapping[str, tuple[str, ...]]]:
        """What one annotation says: masks and labels, and choices by control."""
        regions = [region for region in _regions(result) if region.get("to_name") == to_name]
        finer = [region for region in regions if region.get("type") not in BOXES]
        boxes = [region for region in regions if region.get("type") in BOXES]
        masks: dict[str, Mask] = {}
        choices: Mapping[str, tuple[str, ...]] = {}
        unread: list[UnreadRegion] = []
        for some in (finer, boxes):
            read = masks_from_results(some, self.plan, to_name=to_name, size_hw=image.size_hw)
            masks = {**read.masks, **masks}
            choices = {**read.choices, **choices}
            unread += read.unread
        labels: dict[str, set[str]] = {}
        for region in regions:
            labels.setdefault(str(region.get("id") or ""), set()).update(self._known_labels(region, to_name))
        unclear: set[str] = set()
        pointed: set[str] = set()
        for lost in unread:
            reason = re.sub(r"\d+(\.\d+)?", "N", lost.reason)  # one reason for all sizes
            self.writer.summary.leave_out(f"a region: {reason}", f"region {lost.id} of task {task}")
            if lost.reason != NOTHING_DRAWN:
                (unclear if lost.type in AREAS else pointed).update(labels.get(lost.id, ()))
        masks = {label: mask for label, mask in masks.items() if label not in unclear}
        about = set(self._labels.get(to_name, {})) - unclear - pointed if self.absent else set()
        return Vote(masks, frozenset(about | set(masks))), choices

    def _known_labels(self, region: Mapping[str, Any], to_name: str) -> Iterator[str]:
        """A region's labels as results name them: the editor writes a label's value or its alias."""
        for control in self.plan.controls:
            if control.to_name == to_name and control.covers_pixels:
                named = (control.label_named(text) for text in _labels_of(region))
                yield from (label.label for label in named if label is not None)

    def _phrases(self, to_name: str, task: Json) -> dict[str, tuple[str, ...]]:
        """Per label its phrases in one task; a label whose phrase the task should hold but does not is left out."""
        phrases: dict[str, tuple[str, ...]] = {}
        data = task.get("data")
        for name, label in self._labels.get(to_name, {}).items():
            own = label.phrases(data if isinstance(data, Mapping) else {})
            if label.prompt_from is None:
                phrases[name] = own
                continue
            try:
                phrases[name] = tuple(clean_phrase(phrase) for phrase in own or ("",))
            except LeftOutError:
                where = f"label {name} of task {task.get('id')}"
                self.writer.summary.leave_out(f"the task's data has no phrase in {label.prompt_from!r}", where)
        return phrases

    def _write_phrases(
        self, image: SourceImage, part: str, phrases: Mapping[str, tuple[str, ...]], votes: Sequence[Vote]
    ) -> None:
        masks = dict(agreed(votes))
        about = {label for vote in votes for label in vote.about}
        lines: dict[str, Mask | None] = {}
        for label, prompts in phrases.items():
            if label not in masks and not (self.absent and label in about):
                continue
            for phrase in prompts:
                # Two labels may share a phrase: it is true of what either marks.
                before, mask = lines.get(phrase), masks.get(label)
                lines[phrase] = mask if before is None else before if mask is None else before | mask
        name = hashlib.sha256(image.name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        for number, (phrase, mask) in enumerate(lines.items(), start=1):
            path = None if mask is None else self.writer.save_mask(f"{name}-{number}", mask)
            self.writer.phrase(part, image, phrase, path)

    def _write_choices(
        self, image: SourceImage, part: str, to_name: str, chosen: Sequence[Mapping[str, tuple[str, ...]]]
    ) -> None:
        """A choice counts if at least half of those made it who answered its control."""
        for control in self.plan.controls:
            if control.kind != "choices" or control.per_region or control.to_name != to_name:
                continue
            answers = [choices[control.from_name] for choices in chosen if control.from_name in choices]
            for label in control.labels:
                if answers and 2 * sum(label.label in answer for answer in answers) >= len(answers):
                    for phrase in label.prompts:
                        self.writer.pair(part, image, clean_phrase(phrase))

"""COCO's instances -> phrases with masks, COCO's captions -> image-text pairs.

A phrase is a category's name; its mask is the union of all of the category's objects in the image. Regions that
are marked as a crowd belong to it too: a crowd is a group of the category's objects that nobody outlined one by one.
Where one object of a category cannot be read, the image says nothing about the category: the union would teach that
something visible is not there.

Source of the layout: T.-Y. Lin et al., arXiv:1405.0312, and cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_core.convert.coco_masks import segmentation_mask
from vlm_core.convert.dataset import (
    DatasetWriter,
    LeftOutError,
    Progress,
    SourceImage,
    clean_phrase,
    find_image,
    no_progress,
    uniform,
)
from vlm_core.convert.json_records import read_record, read_records
from vlm_core.errors import DataError, InputError
from vlm_core.runs import BoolMask


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of `images`: its file name and its height and width, px."""

    file_name: object
    size_hw: tuple[int, int] | None

    @classmethod
    def of(cls, entry: dict[str, Any]) -> CocoImage:
        """Read an entry."""
        height, width = entry.get("height"), entry.get("width")
        if not (isinstance(height, int) and isinstance(width, int)) or bool in (type(height), type(width)):
            return cls(entry.get("file_name"), None)
        return cls(entry.get("file_name"), (height, width))


@dataclass
class CocoIndex:
    """Where everything is in a COCO file.

    Attributes:
        path: the file.
        images: by id, in the file's order.
        categories: names by id.
        annotations: per image id the byte ranges of its annotations, in the file's order.
    """

    path: Path
    images: dict[int, CocoImage] = field(default_factory=dict)
    categories: dict[int, object] = field(default_factory=dict)
    annotations: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def per_image(self) -> Iterator[tuple[int, CocoImage, list[Any]]]:
        """Each image with its id and its annotations, read when it is asked for."""
        with self.path.open("rb") as file:
            for image_id, image in self.images.items():
                places = self.annotations.get(image_id, ())
                yield image_id, image, [read_record(file, start, end) for start, end in places]


def index_coco(path: Path, writer: DatasetWriter) -> CocoIndex:
    """Read a COCO file once; entries without a usable id are left out.

    Raises:
        DataError: not such a file.
    """
    index = CocoIndex(path)
    for record in read_records(path):
        value = record.value
        if record.key not in ("images", "categories", "annotations"):
            continue
        key = value.get("image_id" if record.key == "annotations" else "id") if isinstance(value, dict) else None
        if type(key) is not int:
            writer.summary.leave_out(f"an entry of {record.key} has no whole number as its id", f"byte {record.start}")
        elif record.key == "annotations":
            index.annotations.setdefault(key, []).append((record.start, record.end))
        elif record.key == "categories":
            index.categories[key] = value.get("name")
        else:
            index.images[key] = CocoImage.of(value)
    if not index.images:
        raise DataError(f'{path} has no "images": give a COCO file, an object with images and annotations')
    for image_id in [key for key in index.annotations if key not in index.images]:
        for _ in index.annotations.pop(image_id):
            writer.summary.leave_out("the annotation's image is not in the file", f"image {image_id}")
    return index


def convert_instances(
    instances: Path, images: Path, writer: DatasetWriter, *, absent: int = 0, progress: Progress = no_progress
) -> None:
    """Write a line for each category of each image.

    Args:
        instances: COCO's instances file, as `instances_train2017.json`.
        images: folder of its images.
        writer: takes the lines.
        absent: for each image so many categories that no object of it has, as phrases that are true of nothing.
        progress: called for each image.

    Raises:
        DataError: not such a file, or one without categories.
        InputError: `absent` is negative.
    """
    if absent < 0:
        raise InputError(f"absent {absent} must not be negative")
    index = index_coco(instances, writer)
    names = _category_names(index, writer)
    if not names:
        raise DataError(f'{instances} has no "categories": give an instances file; captions go through --captions')
    for image_id, image, part, objects in _wanted(index, images, writer, "phrases", progress, empty=absent > 0):
        masks, seen = _category_masks(objects, names, image, writer)
        for name, (category_id, mask) in masks.items():
            writer.phrase(part, image, name, writer.save_mask(f"{image_id}-{category_id}", mask))
        missing = [name for name in dict.fromkeys(names.values()) if name not in seen]
        for name in sorted(missing, key=lambda name: uniform(writer.seed, "absent", image.name, name))[:absent]:
            writer.phrase(part, image, name, None)


def _wanted(
    index: CocoIndex, images: Path, writer: DatasetWriter, kind: str, progress: Progress, *, empty: bool = False
) -> Iterator[tuple[int, SourceImage, str, list[Any]]]:
    """Images that are there and that `writer` has room for: id, image, part and annotations.

    With `empty` those without annotations too.
    """
    for done, (image_id, entry, rows) in enumerate(index.per_image(), start=1):
        progress(done, len(index.images))
        if not rows and not empty:
            continue
        try:
            image = find_image(images, entry.file_name, entry.size_hw)
        except LeftOutError as reason:
            writer.summary.leave_out(str(reason), str(entry.file_name))
            continue
        part = writer.part_of(image.name)
        if writer.has_room(kind, part, image.name):
            yield image_id, image, part, rows


def _category_names(index: CocoIndex, writer: DatasetWriter) -> dict[int, str]:
    names = {}
    for category_id, name in index.categories.items():
        try:
            names[category_id] = clean_phrase(name)
        except LeftOutError as reason:
            writer.summary.leave_out(str(reason), f"category {category_id}")
    return names


def _category_masks(
    objects: list[Any], names: dict[int, str], image: SourceImage, writer: DatasetWriter
) -> tuple[dict[str, tuple[int, BoolMask]], set[str]]:
    """Per name the first id of its categories and the union of its objects; and all names that the image may have."""
    masks: dict[str, tuple[int, BoolMask]] = {}
    seen: set[str] = set()
    unread: set[str] = set()
    for annotation in objects:
        what = f"annotation {annotation.get('id')} of {image.name}"
        category_id = annotation.get("category_id")
        name = names.get(category_id) if type(category_id) is int else None
        if name is None:
            writer.summary.leave_out("the annotation's category is not in the file", what)
            continue
        seen.add(name)
        try:
            mask = segmentation_mask(annotation.get("segmentation"), image.size_hw)
        except LeftOutError as reason:
            writer.summary.leave_out(str(reason), what)
            unread.add(name)
            continue
        if not mask.any():
            writer.summary.leave_out("the segmentation covers no pixel", what)
            continue
        first_id, before = masks.get(name, (category_id, None))
        masks[name] = (first_id, mask if before is None else before | mask)
    for name in sorted(unread):
        if masks.pop(name, None) is not None:
            writer.summary.leave_out("another object of the category could not be read", f"{name} in {image.name}")
    return masks, seen


def convert_captions(captions: Path, images: Path, writer: DatasetWriter, *, progress: Progress = no_progress) -> None:
    """Write a line for each caption of each image.

    Args:
        captions: COCO's captions file, as `captions_train2017.json`.
        images: folder of its images.
        writer: takes the lines.
        progress: called for each image.

    Raises:
        DataError: not such a file.
    """
    index = index_coco(captions, writer)
    for _, image, part, texts in _wanted(index, images, writer, "pairs", progress):
        for annotation in texts:
            try:
                writer.pair(part, image, clean_phrase(annotation.get("caption")))
            except LeftOutError:
                writer.summary.leave_out("the annotation has no caption", f"annotation {annotation.get('id')}")

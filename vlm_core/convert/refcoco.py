"""RefCOCO, RefCOCO+ and RefCOCOg -> phrases with masks.

Each reference is one object of a COCO image and some sentences that people said about it. The references come as a
pickle, `refs(unc).p`, the objects as `instances.json` beside it. The data's own splits are kept.

Source: S. Kazemzadeh et al., EMNLP 2014; L. Yu et al., arXiv:1608.00272; J. Mao et al., arXiv:1511.02283; layout of
github.com/lichengunc/refer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from vlm_core.convert.coco import CocoImage
from vlm_core.convert.coco_masks import segmentation_mask
from vlm_core.convert.dataset import DatasetWriter, LeftOutError, Progress, clean_phrase, find_image, no_progress
from vlm_core.convert.json_records import read_record, read_records
from vlm_core.convert.plain_pickle import read_plain_pickle
from vlm_core.errors import DataError


def convert_refcoco(
    refs: Path,
    images: Path,
    writer: DatasetWriter,
    *,
    instances: Path | None = None,
    splits: Sequence[str] = (),
    progress: Progress = no_progress,
) -> None:
    """Write a line for each sentence, in one file for each split.

    Args:
        refs: `refs(unc).p`, `refs(umd).p` or `refs(google).p`; or the same list as JSON.
        images: folder of COCO's `train2014` images.
        writer: takes the lines.
        instances: COCO's objects; `instances.json` beside `refs` by default.
        splits: those to convert, as `train`, `val`, `testA`; all by default.
        progress: called for each reference.

    Raises:
        DataError: a file that is missing or of another kind, a pickle that holds more than plain data, or a split
            that no reference has.
    """
    entries = _read_refs(refs)
    known = Counter(str(entry.get("split")) for entry in entries)
    for split in splits:
        if split not in known:
            raise DataError(f"{refs} has no split {split!r}: it has {', '.join(sorted(known))}")
    chosen = [entry for entry in entries if not splits or str(entry.get("split")) in splits]
    instances = instances if instances is not None else refs.parent / "instances.json"
    converter = _Converter(images, writer, *_index(instances, chosen))
    with instances.open("rb") as file:
        for done, entry in enumerate(chosen, start=1):
            progress(done, len(chosen))
            try:
                converter.convert(entry, file)
            except LeftOutError as reason:
                writer.summary.leave_out(str(reason), f"reference {entry.get('ref_id')}")
    shared = sum(len(found) > 1 for found in converter.splits_of.values())
    if shared:
        writer.summary.notes.append(
            f"{shared} images are in more than one split of {refs.name}: what is measured on one split was partly "
            "seen in another. The splits of refs(unc).p and refs(umd).p are by image"
        )


def _read_refs(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        entries: Any = [record.value for record in read_records(path)]
    else:
        entries = read_plain_pickle(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise DataError(f"{path} is no list of references: give refs(unc).p, refs(umd).p or refs(google).p")
    return entries


def _index(
    instances: Path, entries: Sequence[dict[str, Any]]
) -> tuple[dict[int, CocoImage], dict[int, tuple[int, int]]]:
    """The images by id, and where in the file the objects are that the references speak of."""
    wanted = {entry.get("ann_id") for entry in entries if type(entry.get("ann_id")) is int}
    images: dict[int, CocoImage] = {}
    places: dict[int, tuple[int, int]] = {}
    for record in read_records(instances):
        key = record.value.get("id") if isinstance(record.value, dict) else None
        if type(key) is not int:
            continue
        if record.key == "images":
            images[key] = CocoImage.of(record.value)
        elif record.key == "annotations" and key in wanted:
            places[key] = (record.start, record.end)
    return images, places


@dataclass
class _Converter:
    """Converts one reference after the other; remembers in which splits each image was."""

    images: Path
    writer: DatasetWriter
    entries: dict[int, CocoImage]
    places: dict[int, tuple[int, int]]
    splits_of: dict[str, set[str]] = field(default_factory=dict)

    def convert(self, ref: dict[str, Any], file: BinaryIO) -> None:
        split, object_id, image_id = ref.get("split"), ref.get("ann_id"), ref.get("image_id")
        if not isinstance(split, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", split):
            raise LeftOutError("the reference has no usable split")
        if type(object_id) is not int or object_id not in self.places:
            raise LeftOutError("the reference's object is not in the instances file")
        if type(image_id) is not int or image_id not in self.entries:
            raise LeftOutError("the reference's image is not in the instances file")
        entry = self.entries[image_id]
        image = find_image(self.images, entry.file_name, entry.size_hw)
        if not self.writer.has_room("phrases", split, image.name):
            return
        annotation = read_record(file, *self.places[object_id])
        if annotation.get("image_id") != image_id:
            raise LeftOutError("the reference's object is in another image")
        mask = segmentation_mask(annotation.get("segmentation"), image.size_hw)
        if not mask.any():
            raise LeftOutError("the segmentation covers no pixel")
        phrases = self._phrases(ref)
        if not phrases:
            return
        self.splits_of.setdefault(image.name, set()).add(split)
        path = self.writer.save_mask(str(object_id), mask)
        for phrase in phrases:
            self.writer.phrase(split, image, phrase, path)

    def _phrases(self, ref: dict[str, Any]) -> list[str]:
        """The reference's different sentences, as the data's authors cleaned them."""
        phrases: dict[str, None] = {}
        sentences = ref.get("sentences")
        for sentence in sentences if isinstance(sentences, list) else []:
            try:
                phrases[clean_phrase(sentence.get("sent") if isinstance(sentence, dict) else None)] = None
            except LeftOutError as reason:
                self.writer.summary.leave_out(str(reason), f"reference {ref.get('ref_id')}")
        return list(phrases)

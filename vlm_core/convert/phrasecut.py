"""PhraseCut -> phrases with masks, in one file for each of its splits.

The outlines are filled as PhraseCut's own evaluation fills them: corners cut to whole pixels, the outline itself
inside. Images whose file has another size than `image_data_split3000.json` says (17 are known) are left out, as
CLIPSeg's authors did.

**Absent phrases.** The CLIPSeg paper exchanges a phrase for another sample's, and its mask for zeros, with the
probability 0.2, afresh each time a sample is drawn. `vlm train clipseg --absent` does so while it trains. A validation
file should ask the same each time it is read, so `negatives` writes such exchanges down. What is never drawn is said
in :mod:`vlm_core.absent`.

Sources: C. Wu et al., CVPR 2020, arXiv:2008.01187, and github.com/ChenyunWu/PhraseCutDataset; T. Lueddecke and
A. Ecker, CVPR 2022, arXiv:2112.10003, section 4.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlm_core.absent import Words, draw_absent, phrase_words
from vlm_core.convert.dataset import (
    DatasetWriter,
    LeftOutError,
    Progress,
    clean_phrase,
    find_image,
    no_progress,
    uniform,
)
from vlm_core.convert.json_records import read_records
from vlm_core.errors import DataError, InputError
from vlm_core.runs import BoolMask

SPLITS = ("train", "val", "test", "miniv")
_FARTHEST_PX = 100_000


def convert_phrasecut(
    folder: Path,
    writer: DatasetWriter,
    *,
    images: Path | None = None,
    splits: Sequence[str] = (),
    negatives: float = 0.0,
    progress: Progress = no_progress,
) -> None:
    """Write a line for each phrase.

    Args:
        folder: `VGPhraseCut_v0`, with `refer_train.json` and the like and `image_data_split3000.json`.
        writer: takes the lines.
        images: folder of Visual Genome's images, `1.jpg` and so on; `images` in `folder` by default.
        splits: of `SPLITS`; those whose file is there by default.
        negatives: probability that a phrase is exchanged for one that is true of nothing in the image, in [0, 1].
        progress: called for each phrase; the number of all is 0 where it is not known, without `negatives`.

    Raises:
        DataError: a file that is missing or no such file.
        InputError: an unknown split, or `negatives` out of range.
    """
    if not 0 <= negatives <= 1:
        raise InputError(f"negatives {negatives} must lie between 0 and 1")
    for split in splits:
        if split not in SPLITS:
            raise InputError(f"PhraseCut has no split {split!r}: choose of {', '.join(SPLITS)}")
    found = [split for split in (splits or SPLITS) if splits or (folder / f"refer_{split}.json").is_file()]
    if not found:
        raise DataError(f"{folder} has no refer_train.json, refer_val.json, refer_test.json or refer_miniv.json")
    sizes = _image_sizes(folder)
    images = images if images is not None else folder / "images"
    for split in found:
        _convert_split(folder / f"refer_{split}.json", split, images, sizes, writer, negatives, progress)


def _image_sizes(folder: Path) -> dict[int, tuple[int, int]]:
    """Height and width of each image, by id."""
    path = folder / "image_data_split3000.json"
    sizes = {}
    for record in read_records(path):
        entry = record.value
        if isinstance(entry, dict) and all(type(entry.get(key)) is int for key in ("image_id", "height", "width")):
            sizes[entry["image_id"]] = (entry["height"], entry["width"])
    if not sizes:
        raise DataError(f"{path} names no image with its size: download it again")
    return sizes


def _convert_split(
    path: Path,
    split: str,
    images: Path,
    sizes: dict[int, tuple[int, int]],
    writer: DatasetWriter,
    negatives: float,
    progress: Progress,
) -> None:
    exchange = _Exchange(path, writer.seed, negatives) if negatives else None
    total = exchange.tasks if exchange else 0
    numbers: Counter[int] = Counter()
    for done, record in enumerate(read_records(path), start=1):
        progress(done, total)
        task = record.value if isinstance(record.value, dict) else {}
        try:
            image_id = task.get("image_id")
            if type(image_id) is not int or image_id not in sizes:
                raise LeftOutError("the phrase's image is not in image_data_split3000.json")
            numbers[image_id] += 1
            phrase = clean_phrase(task.get("phrase"))
            image = find_image(images, f"{image_id}.jpg", sizes[image_id])
            if not writer.has_room("phrases", split, image.name):
                continue
            mask = polygons_mask(task.get("Polygons"), image.size_hw)
            other = exchange.draw(image_id, numbers[image_id]) if exchange else None
            if other is not None:
                writer.phrase(split, image, other, None)
            else:
                name = f"{split}-{image_id}-{numbers[image_id]}"
                writer.phrase(split, image, phrase, writer.save_mask(name, mask))
        except LeftOutError as reason:
            writer.summary.leave_out(str(reason), f"task {task.get('task_id')}")


def polygons_mask(instances: Any, size_hw: tuple[int, int]) -> BoolMask:
    """The union of a task's outlines.

    Args:
        instances: for each instance a list of polygons, each a list of points [x, y], px.
        size_hw: height and width of the image, px.

    Returns:
        bool (H, W), at least one pixel set.

    Raises:
        LeftOutError: no such lists, or nothing within the image.
    """
    height, width = size_hw
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for polygon in (polygon for polygons in _list(instances) for polygon in _list(polygons)):
        points = [_point(point) for point in _list(polygon)]
        if len(points) >= 2:  # of less PhraseCut's evaluation makes nothing
            draw.polygon(points, fill=1, outline=1)
    mask: BoolMask = np.array(canvas, dtype=np.bool_)
    if not mask.any():
        raise LeftOutError("the polygons cover no pixel")
    return mask


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise LeftOutError("the polygons are no lists of points")
    return value


def _point(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(number) in (int, float) for number in value):
        raise LeftOutError("the polygons are no lists of points")
    if not all(math.isfinite(number) and abs(number) <= _FARTHEST_PX for number in value):
        raise LeftOutError("a polygon has a point that is not a number or far outside the image")
    return int(value[0]), int(value[1])


class _Exchange:
    """Draws phrases that are true of nothing in an image."""

    def __init__(self, path: Path, seed: int, share: float) -> None:
        """Read all phrases of a split."""
        self.tasks = 0
        self._seed = seed
        self._share = share
        self._own: dict[int, list[Words]] = {}
        phrases: set[str] = set()
        for record in read_records(path):
            self.tasks += 1
            try:
                phrase = clean_phrase(record.value.get("phrase") if isinstance(record.value, dict) else None)
            except LeftOutError:
                continue  # counted when the phrase's turn comes
            phrases.add(phrase)
            image_id = record.value.get("image_id")
            if type(image_id) is int:
                self._own.setdefault(image_id, []).append(phrase_words(phrase))
        self._phrases = sorted(phrases)

    def draw(self, image_id: int, number: int) -> str | None:
        """Another image's phrase for the number-th one of an image; None where it stays."""
        if uniform(self._seed, "exchange", image_id, number) >= self._share:
            return None
        return draw_absent(
            self._phrases,
            self._own.get(image_id, []),
            lambda attempt: uniform(self._seed, "phrase", image_id, number, attempt),
        )

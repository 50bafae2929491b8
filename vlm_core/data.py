"""Training and evaluation data: two JSONL layouts, and the sources that the recipes draw from.

Both layouts are one JSON object a line, UTF-8; blank lines are skipped; paths are relative to the file.

Image-text pairs, for `vlm train clip`. An image may have several lines, one for each text::

    {"image": "images/0001.jpg", "text": "two horses in a field"}

Referring phrases, for `vlm train clipseg`. The mask is an image file of the same size, white (128 and more)
where the phrase's object is; null says that the phrase is true of nothing in the image. Any other key
is refused, save `text`, a description of the whole image for the contrastive loss::

    {"image": "images/0001.jpg", "phrase": "left horse", "mask": "masks/0001-left-horse.png"}
    {"image": "images/0001.jpg", "phrase": "dog", "mask": null}

A recipe does not read files itself: it draws from a `PairSource` or a `PhraseSource`, which a JSONL file is
one kind of, tar shards (:mod:`vlm_core.shards`) and generated scenes are others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_core.absent import draw_absent, phrase_words
from vlm_core.crops import object_crop
from vlm_core.errors import DataError
from vlm_core.pictures import open_picture

if TYPE_CHECKING:
    from vlm_core.visual_prompts import Exemplar

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PhraseSample:
    """One image with P phrases.

    Attributes:
        image: RGB, any size.
        phrases: P texts; where a mask is empty the phrase is true of nothing.
        masks: float32 (P, H, W) in [0, 1], how much of each pixel is the object; any size of the image's shape.
        text: a description of the whole image, or None.
        exemplars: P, for each phrase its object in another image, or None where no other shows it; empty where the
            source gives none.
        texts: all descriptions of the whole image that there are, in samples for evaluation.
    """

    image: Image.Image
    phrases: tuple[str, ...]
    masks: FloatArray
    text: str | None = None
    exemplars: tuple[Exemplar | None, ...] = ()
    texts: tuple[str, ...] = ()


class PairSource(Protocol):
    """Images with texts. What `pair` gives depends on nothing but its arguments."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def image(self, index: int) -> Image.Image:
        """One image, RGB."""
        ...

    def text(self, index: int, rng: np.random.Generator) -> str:
        """One of that image's texts."""
        ...

    def texts_of(self, index: int) -> Sequence[str]:
        """All of that image's texts."""
        ...

    def vocabulary(self) -> Iterator[str]:
        """All texts there are, or a fair sample of them: a vocabulary is made from it."""
        ...


class PhraseSource(Protocol):
    """Images with phrases and masks. What `sample` gives depends on nothing but its arguments."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def sample(self, index: int, rng: np.random.Generator, count: int) -> PhraseSample:
        """One image with exactly `count` phrases; they may repeat where the image has fewer."""
        ...


@dataclass(frozen=True, slots=True)
class PairRow:
    """A line of an image-text file; the path is absolute."""

    image: Path
    text: str


@dataclass(frozen=True, slots=True)
class PhraseRow:
    """A line of a phrase file; paths are absolute, `mask` is None where the phrase is true of nothing."""

    image: Path
    phrase: str
    mask: Path | None
    text: str | None = None


def read_pairs(path: str | Path) -> list[PairRow]:
    """Read an image-text file. Raises DataError naming the line, the value and what to do."""
    rows = []
    for number, row in json_lines(Path(path), required=("image", "text"), optional=()):
        where = f"{path}, line {number}"
        rows.append(PairRow(named_file(row, "image", Path(path), where), named_text(row, "text", where)))
    return rows


def read_phrases(path: str | Path) -> list[PhraseRow]:
    """Read a phrase file. Raises DataError naming the line, the value and what to do."""
    rows = []
    for number, row in json_lines(Path(path), required=("image", "phrase", "mask"), optional=("text",)):
        where = f"{path}, line {number}"
        mask = None if row["mask"] is None else named_file(row, "mask", Path(path), where)
        text = named_text(row, "text", where) if row.get("text") is not None else None
        rows.append(
            PhraseRow(named_file(row, "image", Path(path), where), named_text(row, "phrase", where), mask, text)
        )
    return rows


def json_lines(
    path: Path, *, required: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a JSONL file. Raises DataError for a line with other keys, or no line."""
    example = json.dumps(dict.fromkeys(required, "..."))
    try:
        content = path.read_text(encoding="utf-8-sig")  # with or without the mark that some editors put in front
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: give a JSONL file with lines such as {example}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    count = 0
    # Only line feeds end a line of JSON: splitlines would also cut at U+2028, which a text may hold.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); expected {example}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a {type(row).__name__}; expected an object such as {example}")
        missing = [key for key in required if key not in row]
        if missing:
            raise DataError(f"{path}, line {number}: {', '.join(missing)} missing; expected {example}")
        unknown = sorted(set(row) - set(required) - set(optional))
        if unknown:
            raise DataError(f"{path}, line {number}: unknown key {unknown[0]!r}; remove it, expected {example}")
        count += 1
        yield number, row
    if not count:
        raise DataError(f"{path} holds no line: expected lines such as {example}")


def named_file(row: dict[str, Any], key: str, source: Path, where: str) -> Path:
    """The file that a line names, relative to the file `source` that it is in. Raises DataError where there is none."""
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {value!r}; give the path of a file, relative to {source.name}")
    try:
        path = (source.parent / value).resolve()
        found = path.is_file()
    except (OSError, ValueError):  # too long for the file system, or with a NUL
        found = False
    if not found:
        raise DataError(
            f"{where}: {key} {value!r} is not a file in {source.parent.resolve()}; paths are relative to it"
        )
    return path


def named_text(row: dict[str, Any], key: str, where: str) -> str:
    """The text that a line has, stripped. Raises DataError where it has none."""
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {value!r}; give a text that is not blank")
    return value.strip()


def open_image(path: Path) -> Image.Image:
    """An image file as RGB, upright. Raises DataError where it cannot be read."""
    try:
        return open_picture(path)
    except DataError as error:
        raise DataError(f"{error}. Repair it or remove its lines") from error


def open_mask(path: Path, size: tuple[int, int]) -> FloatArray:
    """A mask file as float32 (H, W) of zeros and ones.

    Args:
        path: an image of any mode, as a browser shows it; grey levels from 128 on are the object.
        size: (width, height) that the image has, as in PIL.

    Raises:
        DataError: unreadable, of another size than the image, or with dark levels alone: a mask of 0 and 1, or of
            class numbers, would otherwise pass for an empty one.
    """
    try:
        values = np.asarray(open_picture(path).convert("L"))
    except DataError as error:
        raise DataError(f"{error}. Repair the mask or remove its line") from error
    if (values.shape[1], values.shape[0]) != tuple(size):
        raise DataError(
            f"the mask {path} is {values.shape[1]} x {values.shape[0]} px but its image {size[0]} x {size[1]} px: "
            "a mask must have the size of its image"
        )
    brightest = int(values.max())
    if 0 < brightest < 128:
        raise DataError(
            f"the mask {path} has no pixel of 128 or more, its brightest is {brightest}: save masks with 255 where the "
            "object is and 0 elsewhere"
        )
    return (values >= 128).astype(np.float32)


class FilePairs:
    """Image-text pairs from image files: one item an image, however many texts it has."""

    def __init__(self, rows: Iterable[PairRow]) -> None:
        """Group the rows by image; images are opened when they are asked for."""
        self.texts: dict[Path, list[str]] = {}
        for row in rows:
            self.texts.setdefault(row.image, []).append(row.text)
        self.images = list(self.texts)

    def __len__(self) -> int:
        """The number of different images."""
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """One image, RGB, EXIF rotation applied."""
        return open_image(self.images[index])

    def text(self, index: int, rng: np.random.Generator) -> str:
        """One of that image's texts."""
        texts = self.texts_of(index)
        return texts[int(rng.integers(len(texts)))]

    def texts_of(self, index: int) -> Sequence[str]:
        """All of that image's texts, in the rows' order."""
        return self.texts[self.images[index]]

    def vocabulary(self) -> Iterator[str]:
        """All texts there are."""
        for texts in self.texts.values():
            yield from texts


class JsonlPairs(FilePairs):
    """Image-text pairs from a JSONL file."""

    def __init__(self, path: str | Path) -> None:
        """Read and check all lines; images are opened when they are asked for."""
        super().__init__(read_pairs(path))


class JsonlPhrases:
    """Referring phrases from a JSONL file: one item an image, with all of its phrases."""

    def __init__(self, path: str | Path, *, absent: float = 0.2, crop: bool = False, exemplars: bool = False) -> None:
        """Read and check all lines; images and masks are opened when they are asked for.

        Args:
            path: the file.
            absent: share of phrases that are exchanged for another image's phrase with an empty mask, as the
                CLIPSeg paper does for PhraseCut (0.2). What the image's own phrases make true is never taken (see
                `vlm_core.absent`). Set it to 0 where phrases are so general that another image's phrase is often true
                of this one.
            crop: give a random square of each image, chosen so that the first of the sample's phrases is seen in it.
            exemplars: give for each phrase its object in another image that has the same phrase, where there is one.
        """
        self.rows: dict[Path, list[PhraseRow]] = {}
        for row in read_phrases(path):
            self.rows.setdefault(row.image, []).append(row)
        self.images = list(self.rows)
        self.absent = absent
        self.crop = crop
        self.exemplars = exemplars
        self._shown: dict[str, list[PhraseRow]] = {}
        for rows in self.rows.values():
            for row in rows:
                if row.mask is not None:
                    self._shown.setdefault(row.phrase.casefold(), []).append(row)
        self._phrases = sorted({row.phrase for rows in self.rows.values() for row in rows})

    def __len__(self) -> int:
        """The number of different images."""
        return len(self.images)

    def sample(self, index: int, rng: np.random.Generator, count: int) -> PhraseSample:
        """One image with `count` phrases: different ones first, then repeated, some exchanged for absent ones."""
        rows = self.rows[self.images[index]]
        image = open_image(self.images[index])
        own = {phrase_words(row.phrase) for row in rows}
        order: list[int] = []
        while len(order) < count:
            order += [int(i) for i in rng.permutation(len(rows))]
        phrases: list[str] = []
        masks: FloatArray = np.zeros((count, image.height, image.width), dtype=np.float32)
        for slot, row_index in enumerate(order[:count]):
            row = rows[row_index]
            phrase, mask = row.phrase, row.mask
            if rng.random() < self.absent:
                other = draw_absent(self._phrases, own, lambda _: float(rng.random()))
                if other is not None:
                    phrase, mask = other, None
            phrases.append(phrase)
            if mask is not None:
                masks[slot] = open_mask(mask, image.size)
        texts = [row.text for row in rows if row.text is not None]
        text = texts[int(rng.integers(len(texts)))] if texts else None
        if self.crop:
            # By what the phrase means before it may have been exchanged: an absent one needs no other crop.
            first = rows[order[0]].mask
            seen = masks[0] if first is None or masks[0].any() else open_mask(first, image.size)
            box = object_crop(seen > 0, rng)
            image, masks = image.crop(box), np.ascontiguousarray(masks[:, box[1] : box[3], box[0] : box[2]])
        shown = tuple(self._exemplar(phrase, index, rng) for phrase in phrases) if self.exemplars else ()
        return PhraseSample(image, tuple(phrases), masks, text, shown)

    def _exemplar(self, phrase: str, index: int, rng: np.random.Generator) -> Exemplar | None:
        """The object of a phrase in another image than that of the index."""
        rows = [row for row in self._shown.get(phrase.casefold(), []) if row.image != self.images[index]]
        if not rows:
            return None
        row = rows[int(rng.integers(len(rows)))]
        assert row.mask is not None  # only such rows were kept
        image = open_image(row.image)
        mask = open_mask(row.mask, image.size) > 0
        return (image, mask) if mask.any() else None

    def every_sample(self) -> Iterator[PhraseSample]:
        """Every image with all its phrases as the file has them, none exchanged: for evaluation."""
        for path in self.images:
            rows = self.rows[path]
            image = open_image(path)
            empty = np.zeros((image.height, image.width), dtype=np.float32)
            masks = np.stack([empty if row.mask is None else open_mask(row.mask, image.size) for row in rows])
            texts = tuple(row.text for row in rows if row.text is not None)
            text = texts[0] if texts else None
            yield PhraseSample(image, tuple(row.phrase for row in rows), masks, text, texts=texts)


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which items make the batch of a step: each item once an epoch, in an order that the seed decides.

    A function of its arguments alone, so that a resumed run sees what the uninterrupted one would have.

    Args:
        count: items there are.
        batch_size: items in a batch; at most `count`. What is left over at an epoch's end is not used in it.
        step: 0 for the first batch.
        seed: of the run.
    """
    per_epoch = count // batch_size
    epoch, within = divmod(step, per_epoch)
    order = np.random.default_rng([seed, 11, epoch]).permutation(count)
    return [int(i) for i in order[within * batch_size : (within + 1) * batch_size]]


def sample_rng(seed: int, step: int, index: int) -> np.random.Generator:
    """The random generator of one item in one step."""
    return np.random.default_rng([seed, 12, step, index])


def check_size(source: Sequence[Any] | PairSource | PhraseSource, batch_size: int, what: str) -> None:
    """Raise DataError where a source has fewer images than a batch."""
    if len(source) < batch_size:
        raise DataError(
            f"{what} has {len(source)} images but a batch takes {batch_size}: "
            f"add images or lower the batch size to {len(source)} or less"
        )

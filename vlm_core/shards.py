"""Image-text pairs in tar shards, in the layout of webdataset, read where they are.

Members of one name belong together; the name ends at the first dot of the file's name::

    pairs-000.tar:  a/000000.jpg  a/000000.txt      the text
                    a/000001.png  a/000001.json     {"caption": "..."} or {"captions": ["...", "..."]}

A shard is scanned once for where its members begin, and its texts are kept; an image is read from that place when
it is asked for, so that any order costs the same and nothing is unpacked. What is broken is left out, counted and
named.

Layout: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vlm_core.errors import DataError, UnreadableSampleError
from vlm_core.pictures import read_picture

log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "ppm")
CAPTION_KEYS = ("caption", "captions", "text", "texts")
"""Where a `.json` member may have its texts, each one text or a list of them."""
_LARGEST_TEXT = 1 << 20
_NAMED = 5


@dataclass(frozen=True, slots=True)
class BrokenMember:
    """What was left out: a member of a shard, or a place in it, and why."""

    shard: Path
    member: str
    reason: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.shard.name}: {self.member}: {self.reason}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the bytes of an image are."""

    shard: Path
    member: str
    offset: int
    size: int


@dataclass(slots=True)
class _Sample:
    """Members of one name, as far as they have been seen."""

    image: _Place | None = None
    texts: list[str] = field(default_factory=list)
    told: bool = False
    """Whether something of it is among the broken ones already."""


class ShardPairs:
    """Image-text pairs from tar shards: one item a sample that has an image and a text.

    Attributes:
        broken: what was left out so far. It grows when an image turns out to be broken, which only opening it tells.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        """Scan the shards.

        Args:
            shards: tar files, not compressed; items stand in their order.

        Raises:
            DataError: no shard has a sample that can be used.
        """
        self.broken: list[BrokenMember] = []
        self._places: list[_Place] = []
        self._texts: list[tuple[str, ...]] = []
        self._unreadable: set[int] = set()
        for shard in shards:
            for sample in self._samples(shard):
                assert sample.image is not None  # only whole samples are given
                self._places.append(sample.image)
                self._texts.append(tuple(dict.fromkeys(sample.texts)))
        if not self._places:
            where = f"{len(shards)} shards, the first {shards[0]}" if shards else "no shard"
            raise DataError(
                f"no pair of an image and a text in {where}: a sample needs NAME.jpg (or png, webp ...) and NAME.txt, "
                'or NAME.json with "caption" or "captions"' + (f". {self.summary()}" if self.broken else "")
            )

    def summary(self) -> str:
        """What was left out, in one line; empty where nothing was."""
        if not self.broken:
            return ""
        named = "; ".join(str(member) for member in self.broken[:_NAMED])
        more = f"; and {len(self.broken) - _NAMED} more" if len(self.broken) > _NAMED else ""
        return f"Left out as broken: {len(self.broken)}: {named}{more}"

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._places)

    def image(self, index: int) -> Image.Image:
        """One image, RGB, EXIF rotation applied.

        Raises:
            UnreadableSampleError: it is broken; it is among `broken` from then on.
        """
        place = self._places[index]
        try:
            with place.shard.open("rb") as file:  # opened each time: threads and processes share no position
                file.seek(place.offset)
                content = file.read(place.size)
            return read_picture(io.BytesIO(content), f"{place.member} in {place.shard}")
        except (OSError, DataError) as error:
            if index not in self._unreadable:
                self._unreadable.add(index)
                self.broken.append(BrokenMember(place.shard, place.member, str(error)))
                log.warning("left out as broken: %s", self.broken[-1])
            raise UnreadableSampleError(str(error)) from error

    def text(self, index: int, rng: np.random.Generator) -> str:
        """One of that image's texts."""
        texts = self._texts[index]
        return texts[int(rng.integers(len(texts)))]

    def texts_of(self, index: int) -> Sequence[str]:
        """All of that image's texts, each once."""
        return self._texts[index]

    def vocabulary(self) -> Iterator[str]:
        """All texts there are."""
        for texts in self._texts:
            yield from texts

    def _samples(self, shard: Path) -> Iterator[_Sample]:
        """The whole samples of a shard, in its order; what is not whole is noted as broken."""
        samples: dict[str, _Sample] = {}
        try:
            with shard.open("rb") as file:
                for member in self._members(shard, file):
                    self._take(shard, file, member, samples)
        except OSError as error:
            self._leave_out(shard, "the file", f"cannot be read ({error.strerror or error})")
        for name, sample in samples.items():
            if sample.image is not None and sample.texts:
                yield sample
            elif not sample.told:
                self._leave_out(shard, name, "no image" if sample.image is None else "no text")

    def _members(self, shard: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
        """The members that are whole. After damage the next header that is one is looked for."""
        if file.read(2) == b"\x1f\x8b":
            self._leave_out(shard, "the file", "is compressed; gunzip it, members are read from their places")
            return
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        expected = 0
        try:
            with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # undocumented; it would keep all that it gave
                    self._check_gap(shard, file, expected, member.offset)
                    expected = tar.offset
                    if not member.isreg() or member.issparse():
                        continue
                    if member.offset_data + member.size > size:
                        self._leave_out(shard, member.name, "the shard ends within it")
                    else:
                        yield member
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            # What stands before was taken; where the next header is can no longer be told.
            if expected <= size:
                self._leave_out(shard, f"from byte {expected}", f"cannot be read as tar ({error})")
            return
        self._check_gap(shard, file, expected, size)

    def _check_gap(self, shard: Path, file: BinaryIO, start: int, end: int) -> None:
        """Note bytes that belong to no member; zeros between two members are padding."""
        file.seek(start)
        while start < end:
            chunk = file.read(min(end - start, _LARGEST_TEXT))
            if not chunk:
                break
            if chunk.count(0) < len(chunk):
                self._leave_out(shard, f"from byte {start}", "no header of a member")
                break
            start += len(chunk)

    def _take(self, shard: Path, file: BinaryIO, member: tarfile.TarInfo, samples: dict[str, _Sample]) -> None:
        """Add a member to its sample, if it is an image or holds texts."""
        path = PurePosixPath(member.name)
        stem, _, extension = path.name.partition(".")
        extension = extension.lower()
        if not stem or extension not in (*IMAGE_EXTENSIONS, "txt", "json"):
            return
        sample = samples.setdefault(str(path.with_name(stem)), _Sample())
        if extension in IMAGE_EXTENSIONS:
            if sample.image is None:
                sample.image = _Place(shard, member.name, member.offset_data, member.size)
            else:
                self._leave_out(shard, member.name, f"{sample.image.member} has its name already")
            return
        try:
            sample.texts += _texts_in(file, member, extension)
        except DataError as error:
            sample.told = True
            self._leave_out(shard, member.name, str(error))

    def _leave_out(self, shard: Path, member: str, reason: str) -> None:
        self.broken.append(BrokenMember(shard, member, reason))


def _texts_in(file: BinaryIO, member: tarfile.TarInfo, extension: str) -> list[str]:
    """The texts of a `.txt` or `.json` member; none in JSON that speaks of something else."""
    if member.size > _LARGEST_TEXT:
        raise DataError(f"{member.size} bytes are more than a text has")
    file.seek(member.offset_data)  # tarfile seeks the next header itself
    content = file.read(member.size)
    try:
        text = content.decode("utf-8-sig")
        value = text if extension == "txt" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not {'UTF-8 text' if extension == 'txt' else 'JSON'} ({error})") from error
    stripped = [caption.strip() for caption in _captions(value)]
    if not all(stripped):
        raise DataError("a text is blank")
    return stripped


def _captions(value: Any) -> list[str]:
    if isinstance(value, dict):
        found = [_captions(value[key]) for key in CAPTION_KEYS if value.get(key) is not None]
        return [text for texts in found for text in texts]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    raise DataError(f"captions are a {type(value).__name__}; give a text or a list of texts")

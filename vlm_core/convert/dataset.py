"""What all converters share: finding images, parts, the JSONL files and masks that are written, and the summary.

Written are, in a directory: `phrases.jsonl` and `pairs.jsonl`, or one of each for a part of the data
(`phrases-train.jsonl`, `phrases-val.jsonl`), and `masks/`, PNGs of one bit a pixel. Images stay where they are and are
named by relative paths, unless they are copied to `images/`. The JSONL files appear when all is done; the same
arguments write the same bytes again.

A mistake in the data costs what it concerns: it is left out and counted with its reason.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, TextIO

from PIL import Image

from vlm_core.errors import InputError
from vlm_core.pictures import known_formats, upright_size
from vlm_core.runs import BoolMask

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""

_MAX_EXAMPLES = 3


class LeftOutError(Exception):
    """Something of the data is not converted; the message is the reason, the same for all of its kind."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image of the data that is there and can be opened.

    Attributes:
        name: path relative to the folder of images, with slashes; the image's identity.
        path: the file.
        size_hw: height and width as displayed, px.
    """

    name: str
    path: Path
    size_hw: tuple[int, int]


def find_image(folder: Path, name: object, size_hw: tuple[int, int] | None = None) -> SourceImage:
    """An image by its name in a folder.

    Args:
        folder: where the images are.
        name: relative path, with slashes.
        size_hw: height and width that the data gives it, px; None where the data says nothing.

    Raises:
        LeftOutError: no usable name, a name that leaves the folder, no such file, not an image, or of another size.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise LeftOutError("the image has no file name")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise LeftOutError("the image's name leads out of the folder")
    path = folder / relative
    try:
        with Image.open(path, formats=known_formats()) as image:
            width, height = upright_size(image)
    except FileNotFoundError:
        raise LeftOutError("the image is not in the folder") from None
    except Exception:  # on broken files Pillow's readers raise nearly anything
        raise LeftOutError("the image cannot be read") from None
    if size_hw is not None and size_hw != (height, width):
        raise LeftOutError("the image has another size than the data says")
    return SourceImage(str(relative), path, (height, width))


def clean_phrase(text: object) -> str:
    """A phrase without needless white space. Raises LeftOutError where nothing is left, or it is no text."""
    phrase = " ".join(text.split()) if isinstance(text, str) else ""
    if not phrase:
        raise LeftOutError("the phrase is blank or no text")
    if any("\ud800" <= character <= "\udfff" for character in phrase):  # half a character: not UTF-8
        raise LeftOutError("the phrase is blank or no text")
    return phrase


def uniform(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, on any machine and version."""
    digest = hashlib.sha256(json.dumps([seed, *(str(part) for part in parts)]).encode()).digest()
    return int.from_bytes(digest[:6]) / 2.0**48


@dataclass
class LeftOut:
    """How often something was left out for one reason, and the first few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """What a conversion wrote and what it left out.

    Attributes:
        files: per JSONL file the number of `images`, of `lines`, and of lines that say `absent`.
        phrases: per phrase the lines with a mask. Texts of pairs are not counted.
        absent: per phrase the lines without.
        left_out: per reason.
        notes: remarks about the whole, each a sentence.
    """

    files: dict[str, dict[str, int]] = field(default_factory=dict)
    phrases: Counter[str] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, what: str) -> None:
        """Count something that is not converted."""
        entry = self.left_out.setdefault(reason, LeftOut())
        entry.count += 1
        if len(entry.examples) < _MAX_EXAMPLES:
            entry.examples.append(what)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; phrases from the most frequent to the rarest."""
        ranked = sorted({*self.phrases, *self.absent}, key=lambda phrase: (-self.phrases[phrase], phrase))
        return {
            "files": self.files,
            "phrases": {phrase: {"lines": self.phrases[phrase], "absent": self.absent[phrase]} for phrase in ranked},
            "left_out": {
                reason: {"count": entry.count, "examples": entry.examples} for reason, entry in self.left_out.items()
            },
            "notes": self.notes,
        }


class DatasetWriter:
    """Writes JSONL files and masks; a context manager, which puts the files in place if nothing was raised.

    Attributes:
        out: the directory.
        seed: decides all that is drawn.
        summary: what was written and left out so far.
    """

    def __init__(
        self, out: Path, *, copy: bool = False, val_share: float = 0.0, seed: int = 0, limit: int | None = None
    ) -> None:
        """Prepare.

        Args:
            out: directory, made where it is missing; files of the same name are replaced.
            copy: copy images to `images/` instead of naming them where they are.
            val_share: share of images that `part_of` gives to "val", in [0, 1); 0: data without parts.
            seed: decides which images.
            limit: most images in each JSONL file.

        Raises:
            InputError: a share out of range, a limit below 1.
        """
        if not 0 <= val_share < 1:
            raise InputError(f"val_share {val_share} must be at least 0 and less than 1")
        if limit is not None and limit < 1:
            raise InputError(f"limit {limit} must be at least 1")
        self.out = out
        self.seed = seed
        self.summary = Summary()
        self._copy = copy
        self._val_share = val_share
        self._limit = limit
        self._files: dict[str, TextIO] = {}
        self._images: dict[str, set[str]] = {}
        self._masks: set[str] = set()

    def __enter__(self) -> DatasetWriter:
        """Make the directory. Raises InputError where it cannot be made."""
        try:
            (self.out / "masks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.out} cannot be made a directory ({error.strerror}): choose another output"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the files in place, or remove what was begun. Raises InputError where the disk does not take them."""
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            if kind is None:
                os.replace(file.name, self.out / name)
            else:
                os.unlink(file.name)
        with suppress(OSError):  # kept where it holds masks
            (self.out / "masks").rmdir()
        if isinstance(value, OSError):
            raise InputError(f"the conversion to {self.out} was given up: {value}") from value

    def part_of(self, image_name: str) -> str:
        """ "train" or "val", or "" for data without parts.

        A function of the name and the seed: an image stays in its part when others are added to the data.
        """
        if not self._val_share:
            return ""
        return "val" if uniform(self.seed, "part", image_name) < self._val_share else "train"

    def has_room(self, kind: str, part: str, image_name: str) -> bool:
        """Whether the limit admits lines of this image.

        Args:
            kind: "phrases" or "pairs".
            part: as `part_of` gives it, or a split of the data.
            image_name: of the image.
        """
        images = self._images.get(_file_name(kind, part), set())
        return self._limit is None or image_name in images or len(images) < self._limit

    def phrase(self, part: str, image: SourceImage, phrase: str, mask: str | None) -> None:
        """Add a line of a phrase file; `mask` is what `save_mask` gave, None where the phrase is true of nothing."""
        line = {"image": self._image_path(image), "phrase": phrase, "mask": mask}
        self._add(_file_name("phrases", part), image, line, absent=mask is None)
        (self.summary.absent if mask is None else self.summary.phrases)[phrase] += 1

    def pair(self, part: str, image: SourceImage, text: str) -> None:
        """Add a line of an image-text file."""
        self._add(_file_name("pairs", part), image, {"image": self._image_path(image), "text": text}, absent=False)

    def save_mask(self, name: str, mask: BoolMask) -> str:
        """Write a mask.

        Args:
            name: of the file, without ending, letters, digits and dashes; a name that was written is not written again.
            mask: bool (H, W), at least one pixel set.

        Returns:
            Its path, for `phrase`.
        """
        relative = f"masks/{name}.png"
        if name not in self._masks:
            buffer = io.BytesIO()
            Image.fromarray(mask).save(buffer, format="PNG")
            _replace(self.out / relative, buffer.getvalue())
            self._masks.add(name)
        return relative

    def _image_path(self, image: SourceImage) -> str:
        if self._copy:
            return f"images/{image.name}"
        return Path(os.path.relpath(image.path, self.out)).as_posix()

    def _add(self, file_name: str, image: SourceImage, line: dict[str, str | None], *, absent: bool) -> None:
        images = self._images.setdefault(file_name, set())
        if self._copy and not any(image.name in names for names in self._images.values()):
            target = self.out / "images" / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(shutil.SameFileError):
                shutil.copyfile(image.path, target)
        images.add(image.name)
        if file_name not in self._files:
            path = self.out / f".{file_name}.part"
            self._files[file_name] = path.open("w", encoding="utf-8", newline="\n")
        self._files[file_name].write(json.dumps(line, ensure_ascii=False) + "\n")
        counts = self.summary.files.setdefault(file_name, {"images": 0, "lines": 0, "absent": 0})
        counts["images"] = len(images)
        counts["lines"] += 1
        counts["absent"] += absent


def _file_name(kind: str, part: str) -> str:
    return f"{kind}-{part}.jsonl" if part else f"{kind}.jsonl"


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole: a training run that reads the last conversion's masks sees no half of one."""
    begun = path.with_name(f".{path.name}.part")
    begun.write_bytes(data)
    os.replace(begun, path)

"""A third JSONL layout: images with all tags that are true of them, for `vlm evaluate --task tagging`.

One JSON object a line, as in :mod:`vlm_core.data`. A tag that any line of the file names and an image's line does
not is false of that image; an image without any has an empty list::

    {"image": "images/0001.jpg", "tags": ["horse", "fence"]}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlm_core.data import json_lines, named_file, open_image
from vlm_core.errors import DataError


@dataclass(frozen=True, slots=True)
class TagRow:
    """A line of a tag file; the path is absolute, each tag stands once."""

    image: Path
    tags: tuple[str, ...]


def read_tags(path: str | Path) -> list[TagRow]:
    """Read a tag file. Raises DataError naming the line, the value and what to do."""
    rows: dict[Path, TagRow] = {}
    for number, row in json_lines(Path(path), required=("image", "tags"), optional=()):
        where = f"{path}, line {number}"
        tags = row["tags"]
        if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
            raise DataError(f"{where}: tags is {tags!r}; give a list of texts that are not blank, [] for none")
        image = named_file(row, "image", Path(path), where)
        if image in rows:
            raise DataError(f"{where}: {row['image']!r} has a line already; give an image one line with all its tags")
        rows[image] = TagRow(image, tuple(dict.fromkeys(tag.strip() for tag in tags)))
    return list(rows.values())


class JsonlTags:
    """Images with tags from a JSONL file; images are opened when they are asked for."""

    def __init__(self, path: str | Path) -> None:
        """Read and check all lines."""
        rows = read_tags(path)
        self.images = [row.image for row in rows]
        self.tags = [row.tags for row in rows]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """One image, RGB, EXIF rotation applied."""
        return open_image(self.images[index])

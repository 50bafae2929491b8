"""Which images are held out: decided once for each image, by its content, and kept for ever.

A version is judged on images that no version has ever learned from. So the part of an image is stored, under the
hash of its content: the same picture in two tasks lands in one part, and a picture that was judged on is never
trained on later.

About a quarter of the images is held out. With few images the share is larger (up to a third), because a
comparison on fewer than eight images decides nothing. Among new images those are held out that bring each
label's share of held-out images closest to the whole's (iterative stratification: Sechidis et al., ECML PKDD 2011).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from backend import atomic
from backend.version_files import corrupt, read_json

Part = Literal["training", "held out"]

MIN_HELD_OUT = 8
"""Held-out images from which the comparison of two versions is made on them alone."""

_SMALL_SHARE, _SHARE = 3, 4
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Split:
    """The parts of a project's images.

    Attributes:
        parts: content hash -> part.
    """

    parts: Mapping[str, Part]

    def __getitem__(self, sha256: str) -> Part:
        """The part of an image that was assigned."""
        return self.parts[sha256]


def held_out_target(images: int) -> int:
    """How many of `images` are held out.

    >>> [held_out_target(n) for n in (1, 3, 8, 24, 32, 40, 400)]
    [0, 1, 2, 8, 8, 10, 100]
    """
    return max(min(MIN_HELD_OUT, images // _SMALL_SHARE), images // _SHARE)


def choose_held_out(
    new: Sequence[tuple[str, frozenset[str]]], known: Sequence[tuple[str, frozenset[str], bool]], count: int
) -> set[str]:
    """Choose which new images to hold out.

    Args:
        new: content hash and labels that are there, for each new image, no hash twice.
        known: the same for images that have their part, with whether they are held out.
        count: how many to choose, at most `len(new)`.

    Returns:
        Their hashes. The same for the same input in any order.
    """
    everything = [labels for _, labels in new] + [labels for _, labels, _ in known]
    held = [labels for _, labels, out in known if out]
    share = (len(held) + count) / max(1, len(everything))
    need = {
        label: share * sum(label in labels for labels in everything) - sum(label in labels for labels in held)
        for label in set().union(*everything)
    }
    left = dict(sorted(new))  # by hash: as good as random, and the same for everybody
    chosen: set[str] = set()
    for _ in range(count):
        best = max(left, key=lambda sha: sum(need[label] for label in left[sha]) / max(1, len(left[sha])))
        chosen.add(best)
        for label in left.pop(best):
            need[label] -= 1
    return chosen


def assign(path: Path, images: Sequence[tuple[str, frozenset[str]]]) -> Split:
    """Give every new image its part and store it; images that have one keep it.

    Args:
        path: the project's `split.json`; made if missing. Its directory must exist.
        images: content hash and labels that are there; a hash may come twice.

    Raises:
        backend.versions.VersionCorruptError: the stored split cannot be read. It is not made anew: held-out
            images would be trained on.
    """
    with atomic.locked(path.with_name("split.lock")):
        parts = _read(path)
        merged: dict[str, frozenset[str]] = {}
        for sha256, labels in images:
            merged[sha256] = merged.get(sha256, frozenset()) | labels
        new = [(sha256, labels) for sha256, labels in merged.items() if sha256 not in parts]
        if new:
            # Images that are no longer there still count: they were judged on.
            held = sum(part == "held out" for part in parts.values())
            count = min(len(new), max(0, held_out_target(len(parts) + len(new)) - held))
            known = [(sha, merged.get(sha, frozenset()), part == "held out") for sha, part in parts.items()]
            chosen = choose_held_out(new, known, count)
            parts.update({sha: "held out" if sha in chosen else "training" for sha, _ in new})
            record = {
                "images": parts,
                "schema_version": _SCHEMA_VERSION,
                "updated_at": datetime.now(UTC).isoformat(),
            }
            atomic.write_json(path, record)
    return Split(parts)


def _read(path: Path) -> dict[str, Part]:
    if not path.exists():
        return {}
    record = read_json(path)
    images = record.get("images")
    if record.get("schema_version") != _SCHEMA_VERSION or not isinstance(images, dict):
        raise corrupt(path, "not a split that this release reads")
    if not set(images.values()) <= {"training", "held out"}:
        raise corrupt(path, "an image with an unknown part")
    return dict(images)

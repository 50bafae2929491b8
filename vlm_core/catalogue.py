"""What can be loaded: the published checkpoints that are known, and what is on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_core.description import CONFIG, KINDS, MANIFEST

_DEEPEST = 4
_RUN = "training.json"


@dataclass(frozen=True, slots=True)
class Known:
    """A published checkpoint.

    Attributes:
        name: what `load` takes.
        masks, tags: what it gives.
        megabytes: to fetch.
        good_for: in a few words.
        terms: who says what of its use; the weights are never part of this package.
    """

    name: str
    masks: bool
    tags: bool
    megabytes: int
    good_for: str
    terms: str


_OPENAI = "OpenAI's model card: research, deployment only after testing for the task"
_CLIPSEG = "its authors exclude the weights from their code's licence: ask them before commercial use"
KNOWN = (
    Known("demo", True, True, 4, "coloured shapes, to try things out; nothing of photographs", "Apache-2.0"),
    Known("CIDAS/clipseg-rd64-refined", True, True, 603, "photographs: finer masks; the default", _CLIPSEG),
    Known("CIDAS/clipseg-rd64", True, True, 603, "photographs: coarser masks of 16 x 16 px", _CLIPSEG),
    Known("CIDAS/clipseg-rd16", True, True, 603, "photographs: the smallest decoder", _CLIPSEG),
    Known("openai/clip-vit-base-patch16", False, True, 599, "tags of photographs", _OPENAI),
    Known("openai/clip-vit-base-patch32", False, True, 605, "tags, three times as fast, a little less sure", _OPENAI),
    Known("openai/clip-vit-large-patch14", False, True, 1710, "tags, surer, some four times as slow", _OPENAI),
    Known(
        "google/siglip-base-patch16-224",
        False,
        True,
        813,
        "several tags at once, each with its own yes or no",
        "Apache-2.0",
    ),
    Known("google/siglip2-base-patch16-224", False, True, 1500, "the same, many languages", "Apache-2.0"),
)
"""Sizes are those of the files at their publishers, rounded."""


def cached() -> dict[str, Path]:
    """Checkpoints in the hub's cache, whole or not: hub id -> the directory of the files that `load` takes."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    found = {}
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        # The one that the hub's main branch was when it was last asked; else the newest.
        revisions = sorted(repository.revisions, key=lambda one: ("main" in one.refs, one.last_modified))
        if revisions and repository.repo_type == "model" and _is_checkpoint(Path(revisions[-1].snapshot_path)):
            found[repository.repo_id] = Path(revisions[-1].snapshot_path)
    return found


def find_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints in a directory, itself included, down to four levels, and unfinished runs of `vlm train`.

    Of a CLIP with several original decoders beside it each decoder's file is one. Hidden directories are passed over,
    and those that cannot be read.
    """
    return sorted(_walk(directory, 0))


def _walk(directory: Path, depth: int) -> Iterator[Path]:
    if _is_checkpoint(directory):
        decoders = list(directory.glob("*.pth"))
        yield from decoders if len(decoders) > 1 else [directory]
        return
    if unfinished_run(directory) is not None:
        yield directory
        return
    if depth == _DEEPEST:
        return
    try:
        children = [entry.path for entry in os.scandir(directory) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return
    for child in children:
        yield from _walk(Path(child), depth + 1)


def unfinished_run(directory: Path) -> tuple[int, int] | None:
    """Of a run of `vlm train` that has written no checkpoint yet: updates made, and updates in all. None of others."""
    info = _object(directory / _RUN)
    settings, made = info.get("settings"), info.get("step")
    if (directory / "checkpoint").exists() or not isinstance(settings, dict) or not isinstance(made, int):
        return None
    return (made, settings["steps"]) if isinstance(settings.get("steps"), int) else None


def _is_checkpoint(directory: Path) -> bool:
    """Whether its configuration is of a kind that `load` takes."""
    manifest, config = _object(directory / MANIFEST), _object(directory / CONFIG)
    return manifest.get("format") == "vlm-checkpoint" or config.get("model_type") in KINDS


def _object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where that cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

"""`vlm models pull`: fetch a checkpoint once, so that later starts need no network."""

from __future__ import annotations

import shutil
from pathlib import Path

import vlm_core
from vlm_core import checkpoint
from vlm_core.errors import InputError


def pull(name: str, to: Path | None) -> Path:
    """Fetch a checkpoint from the hub and make sure that it loads.

    Args:
        name: a hub id.
        to: a directory that does not exist yet, to carry the files elsewhere; None: the hub's cache alone (HF_HOME).

    Returns:
        Where the checkpoint is.

    Raises:
        CheckpointError: it cannot be fetched, or is none that can be served. `to` is not made then.
        InputError: `to` exists already.
    """
    if to is not None and to.exists():
        raise InputError(f"{to} exists already: choose another directory, or remove it")
    found = checkpoint.find(name)
    vlm_core.load(found, device="cpu")
    if to is None:
        return found
    temporary = to.with_name(f".{to.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    # The cache holds links to files elsewhere; a copy holds the files.
    shutil.copytree(found, temporary, symlinks=False)
    temporary.rename(to)
    return to

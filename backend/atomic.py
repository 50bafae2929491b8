"""Files that are either the old one or the new one, never half of it, and a lock between processes.

A reader may open a file at any moment, and a power cut may come at any moment: so everything is written beside
its place, flushed to the disk, and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` as a whole.

    The directory must exist. Readers see the old content or the new one.

    Raises:
        OSError: the disk is full, or the directory is not writable; `path` is then as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON with sorted keys; see `write_bytes`.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON has no word for.
        TypeError: `value` holds something that JSON cannot say.
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """`value` as the JSON that `write_json` writes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait for whoever holds it.

    The lock is the kernel's and ends with its process, so it cannot be left behind. It works between
    processes and between threads. The file itself stays: removing it would let two holders in.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

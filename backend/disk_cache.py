"""A directory of bytes by key: written whole or not at all, bounded, shared between processes.

A file's modification time says when it was written, its access time (set by hand: many disks are mounted without) when
it was last used; the least recently used make room. A cache only saves time: a disk that is full or gone is logged
and otherwise the same as an empty cache, and so is a file of which the disk has lost or changed a part.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

from backend.cache_counts import CacheCounts
from backend.checked_bytes import DamagedError, UnsealedError, seal, unseal

_log = logging.getLogger(__name__)

_KEEP = 0.9
_SCAN_EVERY = 64
_LEFTOVER_S = 3600.0
_TEMPORARY = ".part"


class DiskCache:
    """Bytes by key, at most `max_bytes` of them.

    A key is a file name; its first two characters choose a folder, so they should be those of a hash.

    Attributes:
        counts: what `get` found: "hit" or "miss".
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Nothing is read or created here.

        Args:
            directory: made on first use, readable by this user only; its name is how the log calls the cache.
            max_bytes: room for all files together; 0 keeps nothing.
        """
        self._directory = directory
        self._max_bytes = max_bytes
        self.counts = CacheCounts("hit", "miss")
        self._lock = threading.Lock()
        # What this process believes; other processes write too, so that it is counted again now and then.
        self._total: int | None = None
        self._since_scan = 0

    def get(self, key: str, *, max_age_s: float | None = None) -> bytes | None:
        """The bytes, or None where they are not there or older than `max_age_s`."""
        data = None if self._max_bytes == 0 else self._get(key, max_age_s)
        self.counts.add("miss" if data is None else "hit")
        return data

    def _get(self, key: str, max_age_s: float | None) -> bytes | None:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if max_age_s is not None and time.time() - status.st_mtime > max_age_s:
                    return None
                sealed = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s cannot be read: %s", self._directory.name, error.strerror)
            return None
        try:
            data = unseal(sealed)
        except UnsealedError:
            self.drop(key)
            return None
        except DamagedError:
            _log.warning("%s: %s is damaged, and is made anew", self._directory.name, key)
            self.drop(key)
            return None
        with contextlib.suppress(OSError):  # another process has just made room
            os.utime(path, (time.time(), status.st_mtime))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes, making room for them; more than the whole room are not kept."""
        sealed = seal(data)
        if len(sealed) > self._max_bytes:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=_TEMPORARY)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(sealed)
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._directory.name, error.strerror)
            return
        self._make_room(len(sealed))

    def drop(self, key: str) -> None:
        """Forget what is kept under a key."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._directory.name, error.strerror)

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / key

    def _make_room(self, added: int) -> None:
        with self._lock:
            self._since_scan += 1
            if self._total is not None:
                self._total += added
                if self._total <= self._max_bytes and self._since_scan < _SCAN_EVERY:
                    return
            files = self._scan()
            self._since_scan = 0
            self._total = sum(size for _, size, _ in files)
            if self._total <= self._max_bytes:
                return
            for _, size, path in sorted(files):
                if self._total <= self._max_bytes * _KEEP:
                    return
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    _log.warning("%s cannot make room: %s", self._directory.name, error.strerror)
                    return
                self._total -= size

    def _scan(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of every file; what a crash left half-written is removed."""
        files = []
        for path in self._directory.glob("??/*"):
            try:
                status = path.stat()
                if path.suffix != _TEMPORARY:
                    files.append((status.st_atime, status.st_size, path))
                elif time.time() - status.st_mtime > _LEFTOVER_S:
                    path.unlink(missing_ok=True)
            except OSError:  # gone meanwhile
                continue
        return files

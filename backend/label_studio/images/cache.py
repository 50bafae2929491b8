"""A directory of fetched images: written whole or not at all, bounded, shared between processes.

A file's name is the hash of what it was fetched from. Its modification time says when it was fetched, its access
time (set by hand: many disks are mounted without) when it was last used; the least recently used make room. The
cache only saves time: a disk that is full or gone is logged and otherwise the same as an empty cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_log = logging.getLogger(__name__)

_KEEP = 0.9
_SCAN_EVERY = 64
_LEFTOVER_S = 3600.0
_TEMPORARY = ".part"

# Query fields that sign an address for a while and say nothing about what it names: S3, Google, Azure, CloudFront.
_SIGNATURES = {
    "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-signedheaders", "x-amz-signature",
    "x-amz-security-token", "awsaccesskeyid", "signature", "expires",
    "x-goog-algorithm", "x-goog-credential", "x-goog-date", "x-goog-expires", "x-goog-signedheaders",
    "x-goog-signature", "googleaccessid",
    "sv", "st", "se", "sr", "sp", "spr", "sig", "skoid", "sktid", "skt", "ske", "sks", "skv",
    "policy", "key-pair-id",
}  # fmt: skip
_PROOFS = {"x-amz-signature", "x-goog-signature", "signature", "sig"}


def cache_key(url: str) -> str:
    """What an address names, as a file name.

    A signed address is told apart from its bare form, but not from the same address signed at another time.
    """
    parts = urlsplit(url)
    fields = parse_qsl(parts.query, keep_blank_values=True)
    signed = any(name.lower() in _PROOFS for name, _ in fields)
    if signed:
        fields = [(name, value) for name, value in fields if name.lower() not in _SIGNATURES]
    query = urlencode(fields) if signed else parts.query
    named = urlunsplit((parts.scheme.lower(), parts.netloc.lower(), parts.path, query, ""))
    return hashlib.sha256(f"{'signed ' if signed else ''}{named}".encode("utf-8", "surrogatepass")).hexdigest()


class DiskCache:
    """Bytes by key, at most `max_bytes` of them.

    Args:
        directory: made on first use, readable by this user only.
        max_bytes: room for all files together; 0 keeps nothing.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Prepare; the directory is not touched yet."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # What this process believes; other processes write too, so that it is counted again now and then.
        self._total: int | None = None
        self._since_scan = 0

    def get(self, key: str, *, max_age_s: float | None = None) -> bytes | None:
        """The bytes, or None where they are not there or older than `max_age_s`."""
        if self._max_bytes == 0:
            return None
        path = self._path(key)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if max_age_s is not None and time.time() - status.st_mtime > max_age_s:
                    return None
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("image cache cannot be read: %s", error.strerror)
            return None
        with contextlib.suppress(OSError):  # another process has just made room
            os.utime(path, (time.time(), status.st_mtime))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes, making room for them; more than the whole room are not kept."""
        if len(data) > self._max_bytes:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=_TEMPORARY)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            _log.warning("image cache cannot be written: %s", error.strerror)
            return
        self._make_room(len(data))

    def drop(self, key: str) -> None:
        """Forget what is kept under a key."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("image cache cannot be written: %s", error.strerror)

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
                    _log.warning("image cache cannot make room: %s", error.strerror)
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

"""Features of images that were seen lately, so that a second question costs the cheap half only.

Features belong to the shared encoders, not to a project's decoder, so they serve all projects and versions. The newest
are in memory, more of them on disk, where they outlive a restart.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

from backend.cache_counts import CacheCounts
from backend.disk_cache import DiskCache

if TYPE_CHECKING:
    from backend.model_store import ServingModel
    from vlm_core.types import ImageFeatures

log = logging.getLogger(__name__)

Kind = Literal["masks", "tags", "both"]

_MOST_WRITES_WAITING = 32


def feature_key(kind: Kind, model: ServingModel, sha256: str) -> str:
    """Names what a model sees of an image file; a file name."""
    return f"{sha256}-{kind}-{model.features_id}"


class FeatureCache:
    """Features by `feature_key`, as many as fit. Safe to share between threads.

    Attributes:
        counts: what `get` found: "memory", "disk" or "miss".
    """

    def __init__(self, max_bytes: int, disk: DiskCache | None = None) -> None:
        """Starts empty.

        Args:
            max_bytes: of memory; 0 keeps nothing there.
            disk: for what memory has no room for; None: no disk.
        """
        self._max_bytes = max_bytes
        self._disk = disk
        self._entries: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.counts = CacheCounts("memory", "disk", "miss")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="features")
        self._writes = threading.Semaphore(_MOST_WRITES_WAITING)

    def get(self, key: str) -> ImageFeatures | None:
        """What is kept under a key."""
        features = self._in_memory(key)
        if features is not None:
            self.counts.add("memory")
            return features
        features = self._on_disk(key)
        self.counts.add("miss" if features is None else "disk")
        return features

    def peek(self, key: str) -> ImageFeatures | None:
        """`get`, for who has asked once already: it is not counted."""
        features = self._in_memory(key)
        return self._on_disk(key) if features is None else features

    def _in_memory(self, key: str) -> ImageFeatures | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        return None

    def _on_disk(self, key: str) -> ImageFeatures | None:
        if self._disk is None:
            return None
        data = self._disk.get(key)
        if data is None:
            return None
        from vlm_core.errors import DataError
        from vlm_core.feature_bytes import parse

        try:
            features = parse(data)
        except DataError:  # cut short by a full disk, say: made anew
            self._disk.drop(key)
            return None
        self._remember(key, features)
        return features

    def put(self, key: str, features: ImageFeatures) -> None:
        """Keep features; the disk gets them soon, unless it is far behind."""
        self._remember(key, features)
        if self._disk is not None and self._writes.acquire(blocking=False):
            try:
                self._writer.submit(self._write, key, features)
            except RuntimeError:  # closed
                self._writes.release()

    def close(self) -> None:
        """Finish what is being written; nothing more is kept on disk."""
        self._writer.shutdown(wait=True)

    def _remember(self, key: str, features: ImageFeatures) -> None:
        with self._lock:
            if features.nbytes > self._max_bytes or key in self._entries:
                return
            self._entries[key] = features
            self._bytes += features.nbytes
            while self._bytes > self._max_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes

    def _write(self, key: str, features: ImageFeatures) -> None:
        from vlm_core.feature_bytes import dump

        try:
            assert self._disk is not None
            self._disk.put(key, dump(features))
        except Exception:  # a cache only saves time
            log.exception("features cannot be kept on disk")
        finally:
            self._writes.release()

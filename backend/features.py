"""Features of images that were seen lately, so that a second question costs the cheap half only.

Features belong to the shared encoders, not to a project's decoder, so they serve all projects and versions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from backend.model_store import ServingModel
    from vlm_core.types import ImageFeatures


class FeatureCache:
    """Features by the hash of the image file, as many as fit in memory. Safe to share between threads.

    It serves one base model: the process that loads another one makes another cache.
    """

    def __init__(self, max_bytes: int) -> None:
        """Starts empty; `max_bytes` 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, str], tuple[ImageFeatures, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def masks(self, model: ServingModel, image: Image.Image, sha256: str) -> ImageFeatures:
        """What `decode` needs; encoded now unless it is known."""
        return self._get(("masks", sha256)) or self._put(
            ("masks", sha256), model.encode_image(image, masks=True, tags=False)
        )

    def tags(self, model: ServingModel, image: Image.Image, sha256: str) -> ImageFeatures:
        """What `rank_features` needs; encoded now unless it is known."""
        return self._get(("tags", sha256)) or self._put(
            ("tags", sha256), model.encode_image(image, masks=False, tags=True)
        )

    def _get(self, key: tuple[str, str]) -> ImageFeatures | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def _put(self, key: tuple[str, str], features: ImageFeatures) -> ImageFeatures:
        size = sum(tensor.nbytes for tensor in features.taps)
        size += 0 if features.image_embeds is None else features.image_embeds.nbytes
        with self._lock:
            if key not in self._entries:
                self._entries[key] = (features, size)
                self._bytes += size
            while self._bytes > self._max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed
        return features

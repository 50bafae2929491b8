"""Features of images that were seen lately, so that a second question costs the cheap half only.

Features belong to the shared encoders, not to a project's decoder, so they serve all projects and versions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from backend.model_store import ServingModel
    from vlm_core.types import ImageFeatures


Kind = Literal["masks", "tags"]


class HashedImage(Protocol):
    """An image file, whose pixels may not have been decoded yet."""

    @property
    def image(self) -> Image.Image:
        """RGB."""

    @property
    def sha256(self) -> str:
        """Of the file."""


class FeatureCache:
    """Features by the hash of the image file, as many as fit in memory. Safe to share between threads.

    It serves one base model: the process that loads another one makes another cache.
    """

    def __init__(self, max_bytes: int) -> None:
        """Starts empty; `max_bytes` 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[Kind, str], tuple[ImageFeatures, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def knows(self, kind: Kind, image: HashedImage) -> bool:
        """Whether `get` would answer without the image's pixels."""
        with self._lock:
            return (kind, image.sha256) in self._entries

    def get(self, kind: Kind, model: ServingModel, image: HashedImage) -> ImageFeatures:
        """What `decode` ("masks") or `rank_features` ("tags") needs; encoded now unless it is known.

        Raises:
            Exception: whatever decoding or encoding the image raises.
        """
        key = (kind, image.sha256)
        known = self._get(key)
        if known is not None:
            return known
        return self._put(key, model.encode_image(image.image, masks=kind == "masks", tags=kind == "tags"))

    def _get(self, key: tuple[Kind, str]) -> ImageFeatures | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def _put(self, key: tuple[Kind, str], features: ImageFeatures) -> ImageFeatures:
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

"""What the frozen image encoder says of each view, computed once and kept on disk.

The encoder is the expensive half and does not change while the decoder learns. Half precision is enough: the
features enter the decoder through linear maps, and the error is far below the encoder's own in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from backend.disk_cache import DiskCache
from training_jobs.views import View
from vlm_core.errors import DataError
from vlm_core.feature_bytes import dump, parse
from vlm_core.model import Model
from vlm_core.types import ImageFeatures

DEFAULT_CACHE_BYTES = 4 * 1024**3


class FeatureCache:
    """Features of views, by image hash, view and base model."""

    def __init__(self, directory: Path, model: Model, *, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        """Nothing is read or created here.

        Args:
            directory: of the cache, shared by all projects and models.
            model: whose encoder is asked.
            max_bytes: room; the features used longest ago make it.
        """
        self._disk = DiskCache(directory, max_bytes)
        self._model = model

    def get(self, sha256: str, view: View, open_image: Callable[[], Image.Image]) -> ImageFeatures:
        """Features of one view, float16 on the CPU, batch of one.

        Args:
            sha256: of the image file.
            view: of the image.
            open_image: gives the RGB image; called only where nothing is cached.
        """

        def encode() -> ImageFeatures:
            encoded = self._model.encode_image(view.image(open_image()))
            # Tensors made in inference mode cannot take part in training: the copies can.
            taps = tuple(tap.clone().to("cpu", torch.float16).contiguous() for tap in encoded.taps)
            return ImageFeatures(taps, encoded.grid_hw)

        return self._kept(f"{sha256}-{view.key}", encode)

    def tags(self, sha256: str, open_image: Callable[[], Image.Image]) -> ImageFeatures:
        """The embedding of the whole image as tags are ranked by it, float32 on the CPU, (1, E); as for `get`."""

        def encode() -> ImageFeatures:
            embeds = self._model.encode_image(open_image(), masks=False, tags=True).image_embeds
            assert embeds is not None  # it was asked for
            return ImageFeatures((), (0, 0), embeds.clone().to("cpu", torch.float32))

        return self._kept(f"{sha256}-tags", encode)

    def _kept(self, name: str, encode: Callable[[], ImageFeatures]) -> ImageFeatures:
        key = f"{name}-{self._model.fingerprint[:16]}"
        data = self._disk.get(key)
        if data is not None:
            try:
                return parse(data)
            except DataError:  # cut short by a full disk, say: made anew
                self._disk.drop(key)
        features = encode()
        self._disk.put(key, dump(features))
        return features

"""What the frozen image encoder says of each view, computed once and kept on disk.

The encoder is the expensive half and does not change while the decoder learns. Half precision is enough: the
features enter the decoder through linear maps, and the error is far below the encoder's own in bfloat16.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from backend import atomic
from training_jobs.views import View
from vlm_core.model import Model
from vlm_core.types import ImageFeatures

log = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES = 4 * 1024**3


class FeatureCache:
    """Features of views, by image hash, view and base model."""

    def __init__(self, directory: Path, model: Model, *, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        """Nothing is read or created here.

        Args:
            directory: of the cache, shared by all projects and models.
            model: whose encoder is asked.
            max_bytes: room; `trim` makes it.
        """
        self._root = directory
        self._directory = directory / model.fingerprint[:16]
        self._model = model
        self._max_bytes = max_bytes
        self._failed = False

    def get(self, sha256: str, view: View, open_image: Callable[[], Image.Image]) -> ImageFeatures:
        """Features of one view, float16 on the CPU, batch of one.

        Args:
            sha256: of the image file.
            view: of the image.
            open_image: gives the RGB image; called only where nothing is cached.
        """
        path = self._directory / f"{sha256}-{view.key}.safetensors"
        known = _read(path)
        if known is not None:
            return known
        encoded = self._model.encode_image(view.image(open_image()))
        # Tensors made in inference mode cannot take part in training: the copies can.
        taps = tuple(tap.clone().to("cpu", torch.float16).contiguous() for tap in encoded.taps)
        data = save(
            {f"tap{index}": tap for index, tap in enumerate(taps)}, metadata={"grid_hw": json.dumps(encoded.grid_hw)}
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(path, data)
        except OSError as error:  # only the next training is slower
            if not self._failed:
                log.warning("features cannot be kept: %s: %s", error.filename or path, error.strerror)
            self._failed = True
        return ImageFeatures(taps, encoded.grid_hw)

    def trim(self) -> None:
        """Remove the files used longest ago until the rest fits in `max_bytes`."""
        files = []
        for path in self._root.glob("*/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


def _read(path: Path) -> ImageFeatures | None:
    try:
        with safe_open(path, framework="pt") as file:
            grid = json.loads((file.metadata() or {})["grid_hw"])
            taps = tuple(file.get_tensor(f"tap{index}") for index in range(len(file.keys())))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None  # not there, or cut short by a full disk: made anew
    with contextlib.suppress(OSError):  # another job may make room at this moment
        os.utime(path)
    return ImageFeatures(taps, (int(grid[0]), int(grid[1])))

"""Features that an older release kept are not taken for the present one's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlm_core
from backend.disk_cache import DiskCache
from backend.features import FeatureCache, feature_key
from tests.core.factories import make_clipseg_directory
from vlm_core import model as model_module
from vlm_core import preprocess
from vlm_core.pictures import to_rgb
from vlm_core.preprocess import CLIP_MEAN, CLIP_STD, SEEN_REVISION, ImageTransform
from vlm_core.types import ImageFeatures

SEEN = {1: "e9c617492df764a07d228d314e4202756e8f67ae9f0d1237e57257f30e166533"}
"""Revision -> a digest of what towers see of `pictures()`."""


def pictures() -> list[Image.Image]:
    """One of each kind that is converted in a way of its own, larger and smaller than what towers see."""
    rows, columns = np.mgrid[0:300, 0:500]
    colours = np.stack([rows * 7 + columns, columns * 3, rows * columns // 50], axis=-1).astype(np.uint8)
    grey = (rows * 131 + columns * 71).astype(np.uint16)
    alpha = np.dstack([colours, (columns // 2).astype(np.uint8)])
    return [
        Image.fromarray(colours),
        Image.fromarray(colours[:40, :90]),
        Image.fromarray(alpha),
        Image.fromarray(grey),
        Image.fromarray(colours).convert("CMYK"),
    ]


def test_a_change_of_what_towers_see_comes_with_a_new_revision() -> None:
    transforms = (
        ImageTransform((352, 352)),
        ImageTransform((224, 224), True, 224, 3, CLIP_MEAN, CLIP_STD),
    )
    digest = hashlib.sha256()
    for picture in pictures():
        for transform in transforms:
            values = transform(to_rgb(picture)).numpy()
            # Rounded: the last bit is the processor's.
            digest.update(np.rint(values * 1024).astype("<i4").tobytes())
    assert SEEN[SEEN_REVISION] == digest.hexdigest(), (
        "what a tower sees of a picture has changed: raise SEEN_REVISION, and write the new digest here"
    )


def test_features_of_another_revision_are_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_clipseg_directory(tmp_path / "tiny", mask_size=64, image_size=32)
    model = vlm_core.load(tmp_path / "tiny", device="cpu", dtype="float32")
    older = feature_key("masks", model, "a" * 64)
    cache = FeatureCache(0, DiskCache(tmp_path / "cache", 10**6))
    cache.put(older, ImageFeatures((torch.zeros(1, 4, 2),), (2, 2), None))
    cache.close()
    assert cache.get(feature_key("masks", model, "a" * 64)) is not None
    monkeypatch.setattr(model_module, "SEEN_REVISION", preprocess.SEEN_REVISION + 1)
    assert cache.get(feature_key("masks", model, "a" * 64)) is None

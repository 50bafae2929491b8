"""Several views of one image, so that few corrections teach more: crops, mirror images, other light.

A view is a pure function of the image's hash and an index, so features of it can be cached. View 0 is the image
itself. Crops and mirror images are made only where no phrase speaks of a place ("left", "top" ...): they would
make it untrue.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from vlm_core.runs import BoolMask

_REVISION = 1
_PLACES = re.compile(
    r"\b(left|right|top|bottom|upper|lower|above|below|under|over|middle|cent(er|re)|corner|side|first|last|nearest)",
    re.IGNORECASE,
)
_LEAST_SIDE = 0.6


@dataclass(frozen=True)
class View:
    """How an image is looked at.

    Attributes:
        crop: left, top, right, bottom as shares of width and height.
        mirrored: left and right exchanged, after the crop.
        brightness, contrast: factors, 1.0 leaves them.
    """

    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirrored: bool = False
    brightness: float = 1.0
    contrast: float = 1.0

    @property
    def key(self) -> str:
        """A short name of exactly this view, for caches."""
        return hashlib.sha256(repr((_REVISION, astuple(self))).encode()).hexdigest()[:12]

    def box(self, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
        """The crop in pixels of an image: left, top, right, bottom, at least one pixel each way."""
        height, width = size_hw
        left, top = int(self.crop[0] * width), int(self.crop[1] * height)
        return left, top, max(left + 1, round(self.crop[2] * width)), max(top + 1, round(self.crop[3] * height))

    def image(self, image: Image.Image) -> Image.Image:
        """The view of an RGB image."""
        seen = image.crop(self.box((image.height, image.width)))
        if self.mirrored:
            seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.brightness != 1.0:
            seen = ImageEnhance.Brightness(seen).enhance(self.brightness)
        if self.contrast != 1.0:
            seen = ImageEnhance.Contrast(seen).enhance(self.contrast)
        return seen

    def mask(self, mask: BoolMask) -> BoolMask:
        """The view of a mask, bool (H, W)."""
        left, top, right, bottom = self.box((mask.shape[0], mask.shape[1]))
        seen = mask[top:bottom, left:right]
        return seen[:, ::-1] if self.mirrored else seen


def speak_of_places(phrases: Iterable[str]) -> bool:
    """Whether a phrase says where something is.

    >>> speak_of_places(["star", "left circle"]), speak_of_places(["star", "bright sky"])
    (True, False)
    """
    return any(_PLACES.search(phrase) for phrase in phrases)


def make_view(sha256: str, index: int, *, geometry: bool) -> View:
    """View number `index` of the image with that hash.

    Args:
        sha256: hex.
        index: 0 is the image itself.
        geometry: crops and mirror images are allowed.
    """
    if index == 0:
        return View()
    generator = np.random.default_rng([int(sha256[:15], 16), index, _REVISION])
    light = [round(float(value), 3) for value in generator.uniform(0.8, 1.25, size=2)]
    sides = generator.uniform(_LEAST_SIDE, 1.0, size=2)
    corner = generator.random(2) * (1 - sides)
    mirrored = bool(generator.random() < 0.5)
    if not geometry:
        return View(brightness=light[0], contrast=light[1])
    left, top = (round(float(value), 4) for value in corner)
    crop = (left, top, round(left + float(sides[0]), 4), round(top + float(sides[1]), 4))
    return View(crop, mirrored, *light)


def coverage(mask: BoolMask, grid_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """How much of each grid cell a mask covers, 0 to 255, (h, w): what the decoder is trained towards."""
    picture = Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255)
    shrinks = mask.shape[0] >= grid_hw[0] and mask.shape[1] >= grid_hw[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(picture.resize((grid_hw[1], grid_hw[0]), method))

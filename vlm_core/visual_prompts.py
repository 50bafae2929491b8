"""Visual prompts: an object shown in a picture instead of named by a phrase.

CLIP is shown the surroundings of the object with all that is not the object blurred and faded, which the CLIPSeg paper
found to draw its attention best. The image projection of that picture is a condition like a text's.

Source: Lueddecke & Ecker, CVPR 2022, arXiv:2112.10003, section 4 (cropping, background intensity 10 %, blur).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from vlm_core.errors import InputError
from vlm_core.masks import bounding_box
from vlm_core.pictures import to_rgb
from vlm_core.preprocess import IMAGENET_MEAN
from vlm_core.runs import BoolMask

Box = tuple[float, float, float, float]
Region = BoolMask | Box
"""Where the object is: a mask, bool (H, W) of the picture's size, or an `xyxy` box, px, the end exclusive."""
Exemplar = tuple[Image.Image, Region]
"""A picture, EXIF rotation already applied, and where the object is in it."""

_CONTEXT = 0.1
"""Of the object's width and height, shown on each of its sides."""
_BACKGROUND = 0.1
"""Of the background's contrast with the fill colour, kept."""
_BLUR = 3 / 352
"""Deviation of the blur in parts of the picture's shorter side: 3 px at CLIPSeg's input, as in its training."""


def highlight(image: Image.Image, region: Region, *, fill: tuple[float, float, float] = IMAGENET_MEAN) -> Image.Image:
    """Crop a picture around an object, blur and fade all that is not the object, and make it square.

    The object keeps its pixels, so its own colours and edges are what the model sees. Of a box nothing inside is faded.

    Args:
        image: H x W px, any mode.
        region: the object; at least one pixel of it inside the picture.
        fill: red, green and blue, 0..1: what the background fades to and what makes the crop square. The mean that a
            model's input is normalised by, which the model sees as zero; the published weights were trained so.

    Returns:
        RGB, square; its side is that of the crop, px.

    Raises:
        InputError: a mask of another shape or type, a box that is none, or a region without pixels.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"an exemplar's picture must be a PIL.Image.Image, got {type(image).__name__}")
    mask, (left, top, right, bottom) = _object(region, image.size)
    wide, high = _CONTEXT * (right - left), _CONTEXT * (bottom - top)
    left, right = max(0, int(left - wide)), min(image.width, math.ceil(right + wide))
    top, bottom = max(0, int(top - high)), min(image.height, math.ceil(bottom + high))
    sigma = _BLUR * min(image.size)
    # What the blur reaches of the rest of the picture, and no more: an object may be small in a large photograph.
    reach = math.ceil(4 * sigma)
    around = (
        max(0, left - reach), max(0, top - reach), min(image.width, right + reach), min(image.height, bottom + reach),
    )  # fmt: skip
    near = to_rgb(image.crop(around))
    inside = (left - around[0], top - around[1], right - around[0], bottom - around[1])
    sharp = np.asarray(near.crop(inside), np.float32)
    blurred = np.asarray(near.filter(ImageFilter.GaussianBlur(sigma)).crop(inside), np.float32)
    colour = np.clip(255 * np.asarray(fill, np.float32), 0, 255)
    kept = mask[top:bottom, left:right, None]
    shown = np.where(kept, sharp, colour + _BACKGROUND * (blurred - colour))
    crop = Image.fromarray(np.rint(shown).astype(np.uint8))
    side = max(crop.size)
    square = Image.new("RGB", (side, side), tuple(round(float(value)) for value in colour))
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square


def mix_conditions(text: Tensor, visual: Tensor, text_weight: float | Tensor) -> Tensor:
    """A convex combination of conditions: `text_weight` of the text's, the rest of the picture's.

    Args:
        text, visual: (..., E), projected and **not** normalised.
        text_weight: in [0, 1]; a tensor of weights (..., 1) gives each row its own.
    """
    return text_weight * text + (1 - text_weight) * visual


def check_exemplars(exemplars: Sequence[Exemplar]) -> tuple[Exemplar, ...]:
    """Return the exemplars as a tuple, or raise InputError where one cannot be used; see `highlight`."""
    out = []
    for number, exemplar in enumerate(exemplars, start=1):
        if not isinstance(exemplar, tuple | list) or len(exemplar) != 2 or not isinstance(exemplar[0], Image.Image):
            raise InputError(f"exemplar {number} must be a pair (PIL image, mask or xyxy box), got {exemplar!r:.80}")
        image, region = exemplar
        _object(region, image.size)
        out.append((image, region))
    return tuple(out)


def _object(region: Region, size: tuple[int, int]) -> tuple[NDArray[np.bool_], tuple[int, int, int, int]]:
    """The mask of a region and the box around it, px; `size` is (width, height) of the picture."""
    width, height = size
    if isinstance(region, np.ndarray) and region.ndim == 2:
        if region.dtype != np.bool_ or region.shape != (height, width):
            raise InputError(
                f"an exemplar's mask must be bool and of its picture's size, ({height}, {width}); "
                f"got {region.dtype} {region.shape}"
            )
        box = bounding_box(region)
        if box is None:
            raise InputError("an exemplar's mask marks no pixel: there is nothing to show")
        return region, box
    try:
        x0, y0, x1, y1 = (float(value) for value in region)
    except (TypeError, ValueError):
        raise InputError(
            f"an exemplar's region must be a mask, bool (H, W), or a box (x0, y0, x1, y1) in px, got {region!r:.80}"
        ) from None
    if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
        raise InputError(f"an exemplar's box must have finite sides, got {(x0, y0, x1, y1)}")
    box = (max(0, round(x0)), max(0, round(y0)), min(width, round(x1)), min(height, round(y1)))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise InputError(
            f"an exemplar's box {(x0, y0, x1, y1)} holds no pixel of its picture of {width} x {height} px: "
            "give x0, y0, x1, y1 in px, the end exclusive"
        )
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask, box

"""Pictures of predictions: masks laid over their image, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from vlm_core.runs import BoolMask

# Okabe & Ito's palette: eight colours that stay apart for colour-blind readers.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (20, 20, 20),
)
_OPACITY = 0.45
_MAX_TEXT_CHARS = 80


def draw_overlay(image: Image.Image, masks: Sequence[BoolMask], legend: Sequence[str]) -> Image.Image:
    """Tint each mask, outline it, and write the legend below the image.

    Args:
        image: RGB, H x W px.
        masks: boolean (H, W) each; later ones lie over earlier ones.
        legend: one line a mask, then further lines without a colour. Long ones are shortened in the middle.

    Returns:
        RGB, at least as wide as the image, with one line of text a legend entry below it.
    """
    pixels = np.array(image.convert("RGB"))
    width = max(1, round(max(image.size) / 300))  # the outline, px: visible on a phone and on 12 megapixels
    for index, mask in enumerate(masks):
        colour = np.asarray(PALETTE[index % len(PALETTE)], dtype=np.float32)
        pixels[mask] = ((1 - _OPACITY) * pixels[mask] + _OPACITY * colour).round()
        outline = mask & ~ndimage.binary_erosion(mask, iterations=width)
        pixels[outline] = colour
    tinted = Image.fromarray(pixels)
    # From the area, not the longer side: letters for a strip of 60,000 x 10 px would fill the memory.
    size = max(12, round((image.width * image.height) ** 0.5 / 35))
    legend = [_short(entry) for entry in legend]
    font = ImageFont.load_default(size)
    line = round(size * 1.5)
    text_width = max((round(font.getlength(entry)) for entry in legend), default=0) + 3 * size
    canvas = Image.new("RGB", (max(image.width, text_width), image.height + line * len(legend)), "white")
    canvas.paste(tinted, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, entry in enumerate(legend):
        top = image.height + line * index
        if index < len(masks):
            box = (size // 2, top + size // 4, size // 2 + size, top + size // 4 + size)
            draw.rectangle(box, fill=PALETTE[index % len(PALETTE)])
        draw.text((2 * size, top + size // 4), entry, fill="black", font=font)
    return canvas


def _short(text: str) -> str:
    """One line of at most `_MAX_TEXT_CHARS` characters: its start and its end, where the score stands."""
    line = " ".join(text.split())
    half = _MAX_TEXT_CHARS // 2
    return line if len(line) <= _MAX_TEXT_CHARS else f"{line[:half]} … {line[3 - half :]}"

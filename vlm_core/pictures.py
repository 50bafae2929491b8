"""Image files and decoded images -> RGB, 8 bit, upright, as a browser shows them.

What a model is trained on, what `vlm predict` reads and what the server fetches all come through here, so that
one file is one picture everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from vlm_core.errors import DataError

FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "ICNS", "QOI",
)  # fmt: skip
"""Formats that are read. An explicit list: Pillow would hand EPS to Ghostscript."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""
_BACKGROUND = (255, 255, 255)
_SHRINK_FROM_PIXELS = 4_000_000
_BAND_PIXELS = 1_000_000


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with, as `Image.open` takes them."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_picture(path: Path) -> Image.Image:
    """An image file as RGB, upright; of an animation the first frame.

    Raises:
        DataError: missing, of an unknown format, broken, or so large that Pillow refuses it (about 179 megapixels).
    """
    return read_picture(path, str(path))


def read_picture(source: Path | BinaryIO, name: str) -> Image.Image:
    """An image file, or an open one, as RGB, upright; of an animation the first frame.

    Args:
        source: where the picture is.
        name: what errors call it.

    Raises:
        DataError: missing, of an unknown format, broken, or so large that Pillow refuses it (about 179 megapixels).
    """
    try:
        with Image.open(source, formats=known_formats()) as image:
            orientation = orientation_of(image)
            image.load()
            return to_rgb(upright(image, orientation))
    except Exception as error:  # on broken files Pillow's readers raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} cannot be read as an image: {reason}") from error


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, that browsers apply to a picture that was opened and not loaded.

    Seen in Chromium: EXIF's, not XMP's; of PNG only where it stands before the pixels, and none in WebP. 1 for TIFF,
    which Pillow turns itself.
    """
    if image.format in ("WEBP", "TIFF"):
        return 1
    try:
        if image.format == "PNG":  # whose `getexif` would load the pixels, to look behind them
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        else:
            for name in ("xmp", "XML:com.adobe.xmp"):
                image.info.pop(name, None)
            exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation)
    except Exception:  # EXIF that cannot be read turns nothing; Pillow's reader raises nearly anything
        return 1
    return orientation if orientation in _TURNS else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """A loaded picture turned as its orientation says; see `orientation_of`."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height that `upright` will give, from the header alone, px."""
    width, height = image.size
    return (height, width) if orientation_of(image) >= 5 else (width, height)


def shrink_on_load(image: Image.Image, at_least_px: int) -> None:
    """Let a large JPEG that was opened and not loaded be decoded at 1/2, 1/4 or 1/8 of its size, several times faster.

    Both sides stay at least `at_least_px`. Other formats are left as they are, and so are pictures below 4 megapixels:
    those decode in some ten milliseconds, which is not worth that a model sees other grey levels.
    """
    if image.width * image.height >= _SHRINK_FROM_PIXELS:
        image.draft(None, (at_least_px, at_least_px))  # None keeps the mode


def shrink_loaded(image: Image.Image, at_least_px: int) -> Image.Image:
    """A large picture that was loaded, by a whole factor smaller; both sides stay at least `at_least_px`.

    What `shrink_on_load` is for other formats: it saves no time, but the memory of pictures that wait for the model.
    """
    factor = min(image.size) // max(1, at_least_px)
    if factor < 2 or image.width * image.height < _SHRINK_FROM_PIXELS:
        return image
    return image.reduce(factor)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, 8 bit: what is transparent lies on white, 16-bit grey is scaled from its full range.

    Large pictures are converted by bands of rows, so that no more memory is needed than for the picture and the result.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    convert = _converter(image)
    if image.width * image.height <= _BAND_PIXELS:
        return convert(image)
    result = Image.new("RGB", image.size)
    for box in _bands(image):
        result.paste(convert(image.crop(box)), box)
    return result


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows, as `Image.crop` takes them."""
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of the picture, or of a part of it."""
    if image.mode.startswith("I;16"):
        # A browser shows 16-bit grey by its upper byte; Pillow's own conversion would cut it off at 255.
        return lambda part: _grey(np.asarray(part).astype(np.float32) / 257.0)
    if image.mode in ("I", "F"):
        offset, factor = _stretch(*_range(image))
        return lambda part: _grey((_finite(part) - offset) * factor)
    if image.has_transparency_data or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        return _on_white
    return lambda part: part.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (*_BACKGROUND, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB")


def _finite(image: Image.Image) -> NDArray[np.float64]:
    """Grey levels, with 0 for what is no number."""
    return np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _range(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest grey level."""
    ranges = [(float(levels.min()), float(levels.max())) for levels in (_finite(image.crop(b)) for b in _bands(image))]
    return min(least for least, _ in ranges), max(most for _, most in ranges)


def _stretch(least: float, most: float) -> tuple[float, float]:
    """Offset and factor that bring grey levels without a standard range to 0..255.

    They are taken as they are, as 16 bit, as shares of 1, or from least to most.
    """
    if least >= 0 and 1 < most <= 255:
        return 0.0, 1.0
    if least >= 0 and 255 < most <= 65535:
        return 0.0, 1 / 257.0
    if least >= 0 and most <= 1:
        return 0.0, 255.0
    return least, 255.0 / (most - least) if most > least else 0.0


def _grey(levels: NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB")

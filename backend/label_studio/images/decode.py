"""Image bytes -> RGB, 8 bit, upright, as the annotator's browser shows them.

Only the header is read before the size is checked, so that a small file cannot claim a large picture. Formats
are an explicit list: Pillow would hand EPS to Ghostscript.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from backend.label_studio.images.errors import ImageDecodeError, ImageTooLargeError

FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "ICNS", "QOI",
)  # fmt: skip
_BACKGROUND = (255, 255, 255)
_MAX_REASON_CHARS = 160


def decode_image(data: bytes, *, max_pixels: int, name: str) -> Image.Image:
    """Decode an image.

    Args:
        data: the whole file.
        max_pixels: most pixels, width times height.
        name: how to call the image in errors.

    Returns:
        RGB, 8 bit, turned as browsers turn it (EXIF); of an animation the first frame. What is transparent is laid on
        white, 16-bit grey is scaled from its full range.

    Raises:
        ImageTooLargeError: more pixels than allowed.
        ImageDecodeError: no image, of an unknown format, or broken.
    """
    if not data:
        raise ImageDecodeError(f"{name} is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageTooLargeError(
                    f"{name} has {width} x {height} pixels, more than the {max_pixels} allowed "
                    "(VLM_IMAGE_MAX_PIXELS). Import a smaller version"
                )
            if width < 1 or height < 1:
                raise ImageDecodeError(f"{name} has {width} x {height} pixels")
            image.load()
            return _to_rgb(_upright(image))
    except UnidentifiedImageError:
        raise ImageDecodeError(
            f"{name} is not an image of a known format (first bytes {data[:8].hex(' ')}). "
            "Use JPEG, PNG, WebP, GIF, BMP or TIFF"
        ) from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(
            f"{name} claims far more than the {max_pixels} pixels allowed (VLM_IMAGE_MAX_PIXELS)"
        ) from None
    except (ImageTooLargeError, ImageDecodeError):
        raise
    except MemoryError:
        raise ImageTooLargeError(f"{name} does not fit into memory") from None
    except Exception as error:
        # On broken files Pillow's readers raise nearly anything: OSError, SyntaxError, TypeError, struct.error ...
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__
        raise ImageDecodeError(f"{name} is broken: {reason}. Export it again") from None


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation that browsers apply, seen in Chromium: EXIF's, not XMP's, and none in WebP."""
    if image.format == "WEBP":
        return image
    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that cannot be read turns nothing; Pillow's reader raises nearly anything.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        # A browser shows 16-bit grey by its upper byte; Pillow's own conversion would cut it off at 255.
        pixels = np.asarray(image).astype(np.float32)
        return _grey(pixels / 257.0)
    if image.mode in ("I", "F"):
        return _grey(_stretched(np.asarray(image).astype(np.float64)))
    if image.has_transparency_data or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*_BACKGROUND, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _stretched(pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Grey levels without a standard range -> 0..255: as they are, as 16 bit, or from least to most."""
    finite = np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)
    least, most = float(finite.min()), float(finite.max())
    if least >= 0 and 1 < most <= 255:
        return finite
    if least >= 0 and 255 < most <= 65535:
        return np.asarray(finite / 257.0)
    if least >= 0 and most <= 1:
        return np.asarray(finite * 255.0)
    return np.asarray((finite - least) * (255.0 / (most - least))) if most > least else np.zeros_like(finite)


def _grey(levels: np.ndarray) -> Image.Image:  # type: ignore[type-arg]
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB")

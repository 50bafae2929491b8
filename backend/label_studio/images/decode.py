"""Image bytes -> RGB, 8 bit, upright, as the annotator's browser shows them (`vlm_core.pictures`).

Only the header is read before the size is checked, so that a small file cannot claim a large picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from backend.label_studio.images.errors import ImageDecodeError, ImageTooLargeError
from vlm_core.pictures import known_formats, shrink_on_load, to_rgb, upright, upright_size

_MAX_REASON_CHARS = 160


def decode_image(data: bytes, *, max_pixels: int, name: str, at_least_px: int | None = None) -> Image.Image:
    """Decode an image.

    Args:
        data: the whole file.
        max_pixels: most pixels, width times height.
        name: how to call the image in errors.
        at_least_px: a JPEG may be decoded smaller, as long as both sides keep so many pixels; None: at its own size.

    Returns:
        RGB, 8 bit, turned as browsers turn it (EXIF); of an animation the first frame. What is transparent is laid on
        white, 16-bit grey is scaled from its full range.

    Raises:
        ImageTooLargeError: more pixels than allowed.
        ImageDecodeError: no image, of an unknown format, or broken.
    """
    with _opened(data, max_pixels, name) as image:
        if at_least_px is not None:
            shrink_on_load(image, at_least_px)
        image.load()
        return to_rgb(upright(image))


def displayed_size(data: bytes, *, max_pixels: int, name: str) -> tuple[int, int]:
    """Height and width of an image as browsers show it, px, from its header; errors as for `decode_image`."""
    with _opened(data, max_pixels, name) as image:
        width, height = upright_size(image)
        return height, width


@contextmanager
def _opened(data: bytes, max_pixels: int, name: str) -> Iterator[Image.Image]:
    """The image, header read and size checked; what goes wrong inside the block becomes one of the two errors."""
    if not data:
        raise ImageDecodeError(f"{name} is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=known_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageTooLargeError(
                    f"{name} has {width} x {height} pixels, more than the {max_pixels} allowed "
                    "(VLM_IMAGE_MAX_PIXELS). Import a smaller version"
                )
            if width < 1 or height < 1:
                raise ImageDecodeError(f"{name} has {width} x {height} pixels")
            yield image
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

"""Image bytes -> RGB, 8 bit, upright, as the annotator's browser shows them (`vlm_core.pictures`).

Only the header is read before the size is checked, so that a small file cannot claim a large picture.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from PIL import Image, UnidentifiedImageError

from backend.label_studio.images.errors import ImageDecodeError, ImageTooLargeError
from backend.label_studio.images.heap import give_back_memory
from vlm_core.pictures import (
    known_formats,
    orientation_of,
    shrink_loaded,
    shrink_on_load,
    to_rgb,
    upright,
    upright_size,
)

_MAX_REASON_CHARS = 160
_TRIM_FROM_PIXELS = 8_000_000
_NO_PICTURES = (
    (b"<!doctype", "a web page, not an image (does it ask for a sign-in?)"),
    (b"<html", "a web page, not an image (does it ask for a sign-in?)"),
    (b"<svg", "a drawing (SVG)"),
    (b"<?xml", "a text (XML), not an image"),
    (b"{", "a text (JSON), not an image"),
    (b"%pdf-", "a document (PDF)"),
    (b"%!ps", "a document (PostScript)"),
    (b"pk\x03\x04", "an archive (ZIP)"),
    (b"8bps", "a Photoshop file (PSD)"),
    (b"\x1a\x45\xdf\xa3", "a video (WebM or Matroska)"),
)
"""What is often found where an image should be: the first bytes in lower case, and its name."""
_BOXED = {b"heic": "an HEIC photograph", b"heix": "an HEIC photograph", b"mif1": "an HEIF photograph"}
"""By the brand of an ISO media file; a brand that is not here is a video's."""


class PixelBudget:
    """How many pixels may be decoded at the same time, by all threads together; who comes first is served first.

    A picture needs up to 8 bytes a pixel while it is decoded, so a few large ones at once would fill the memory.
    """

    def __init__(self, pixels: int) -> None:
        """All is free."""
        self._free = self._all = pixels
        self._freed = threading.Condition()
        self._entrance = threading.Lock()

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Wait for room and take it; a picture larger than the whole budget takes all of it."""
        pixels = min(pixels, self._all)
        # The first one waits inside, the others at the door: small pictures cannot keep a large one waiting.
        with self._entrance, self._freed:
            while self._free < pixels:
                self._freed.wait()
            self._free -= pixels
        try:
            yield
        finally:
            with self._freed:
                self._free += pixels
                self._freed.notify()


def _any_room(_: int) -> AbstractContextManager[None]:
    return nullcontext()


def decode_image(
    data: bytes,
    *,
    max_pixels: int,
    name: str,
    at_least_px: int | None = None,
    room: Callable[[int], AbstractContextManager[None]] = _any_room,
) -> Image.Image:
    """Decode an image.

    Args:
        data: the whole file.
        max_pixels: most pixels, width times height.
        name: how to call the image in errors.
        at_least_px: a large image may be given smaller, as long as both sides keep so many pixels; None: at its own
            size.
        room: entered with the number of pixels while they are decoded, see `PixelBudget`.

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
        pixels, orientation = image.width * image.height, orientation_of(image)
        with room(pixels):
            image.load()
            decoded = to_rgb(upright(image, orientation))
            if at_least_px is not None:
                decoded = shrink_loaded(decoded, at_least_px)
    if pixels >= _TRIM_FROM_PIXELS:
        give_back_memory()
    return decoded


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
        raise ImageDecodeError(f"{name} is {_what(data)}. Use JPEG, PNG, WebP, GIF, BMP or TIFF") from None
    except Image.DecompressionBombError as error:  # far too many: Pillow does not even tell width and height
        has = re.search(r"\d+ pixels", str(error))
        raise ImageTooLargeError(
            f"{name} has {has.group() if has else 'far more'}, more than the {max_pixels} allowed "
            "(VLM_IMAGE_MAX_PIXELS). Import a smaller version"
        ) from None
    except (ImageTooLargeError, ImageDecodeError):
        raise
    except MemoryError:
        raise ImageTooLargeError(f"{name} does not fit into memory") from None
    except Exception as error:
        # On broken files Pillow's readers raise nearly anything: OSError, SyntaxError, TypeError, struct.error ...
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__
        raise ImageDecodeError(f"{name} is broken: {reason}. Export it again") from None


def _what(data: bytes) -> str:
    """What bytes are that no reader knows, as far as their beginning tells."""
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, name in _NO_PICTURES:
        if start.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return _BOXED.get(data[8:12], "a video, or a photograph in a video's format")
    if data[128:132] == b"DICM":
        return "a medical image (DICOM)"
    return f"not an image of a known format (first bytes {data[:8].hex(' ')})"

"""Why an image cannot be had.

    ImageError                      base; its text is for the project owner
    |-- ImageAddressError           the address names nothing we can fetch
    |   `-- ForbiddenAddressError   it leads to a private network or out of the files' directory
    |-- ImageUnavailableError       not there, not allowed, or nobody answers
    |   `-- ImageTimeoutError       too slow
    |-- ImageTooLargeError          too many bytes or pixels
    `-- ImageDecodeError            what came is no image that can be read

Texts never hold tokens, signatures or paths of this machine: addresses are shown without user, query and fragment.
"""

from __future__ import annotations

import copy
from typing import Self
from urllib.parse import urlsplit

_SHOWN_CHARS = 200


class ImageError(Exception):
    """An image cannot be had; the text says which and why.

    Attributes:
        temporary: another try may succeed without anyone's doing.
    """

    temporary = False

    def about(self, name: str) -> Self:
        """The same error with the image's name before the reason."""
        named = copy.copy(self)
        named.args = (f"{name}: {self}",)
        return named


class ImageAddressError(ImageError):
    """The address names nothing that can be fetched."""


class ForbiddenAddressError(ImageAddressError):
    """The address leads where images are not fetched from."""


class ImageUnavailableError(ImageError):
    """The image is not there, or not for us."""

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        """Keep whether another try may help."""
        super().__init__(message)
        self.temporary = temporary


class ImageTimeoutError(ImageUnavailableError):
    """The image did not arrive in time."""

    def __init__(self, message: str) -> None:
        """Another try may help."""
        super().__init__(message, temporary=True)


class ImageTooLargeError(ImageError):
    """More bytes or pixels than allowed."""


class ImageDecodeError(ImageError):
    """The bytes are no image that can be read."""


def shown(uri: str) -> str:
    """An address that may be shown and logged: without user, query, fragment and the bulk of a data URL."""
    if uri[:5].lower() == "data:":  # without copying it: it may have a hundred million characters
        return f"{uri[:61].partition(',')[0][:60]},... ({len(uri)} characters)"
    try:
        parts = urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(an address that cannot be read)"
    text = f"{parts.scheme}://{host}{parts.path}" if parts.scheme else parts.path
    if parts.path == "/data/local-files/" and parts.query.startswith("d="):
        text = f"{text}?{parts.query}"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."

"""Fetching the images of tasks: one way in, with limits, a guard on addresses, and a cache.

The fetcher is imported when it is first asked for (PEP 562), since it brings Pillow: the worker's parent process needs
the errors only, and stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backend.label_studio.images.errors import (
    ForbiddenAddressError,
    ImageAddressError,
    ImageDecodeError,
    ImageError,
    ImageTimeoutError,
    ImageTooLargeError,
    ImageUnavailableError,
)

if TYPE_CHECKING:
    from backend.label_studio.images.fetcher import FetchedImage, ImageConfig, ImageFetcher

__all__ = [
    "FetchedImage",
    "ForbiddenAddressError",
    "ImageAddressError",
    "ImageConfig",
    "ImageDecodeError",
    "ImageError",
    "ImageFetcher",
    "ImageTimeoutError",
    "ImageTooLargeError",
    "ImageUnavailableError",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from backend.label_studio.images import fetcher

        return getattr(fetcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

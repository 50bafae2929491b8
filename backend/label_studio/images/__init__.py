"""Fetching the images of tasks: one way in, with limits, a guard on addresses, and a cache."""

from __future__ import annotations

from backend.label_studio.images.errors import (
    ForbiddenAddressError,
    ImageAddressError,
    ImageDecodeError,
    ImageError,
    ImageTimeoutError,
    ImageTooLargeError,
    ImageUnavailableError,
)
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

"""The one way to an image: whatever a task's data names, checked, bounded, decoded.

| address | how |
|---|---|
| `/data/upload/...`, `/tasks/N/presign/...`, other paths | from Label Studio, with the token |
| `/data/local-files/?d=...` | from `local_files_root` where this machine has the file, else from Label Studio |
| `s3://`, `gs://`, `azure-blob://` ... | through Label Studio, which knows the storage's credentials |
| `http://`, `https://` | directly; addresses of private networks are refused unless allowed |
| `data:` | from the address itself |

The token is sent to Label Studio's own origin only, never to where it redirects.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, unquote_to_bytes, urlencode, urlsplit

import httpx
from PIL import Image

from backend.cache_counts import CacheCounts
from backend.disk_cache import DiskCache
from backend.label_studio.images.addresses import Origin, Resolver, resolve_name
from backend.label_studio.images.cache import cache_key
from backend.label_studio.images.decode import PixelBudget, decode_image, displayed_size
from backend.label_studio.images.download import Credentials, Downloader
from backend.label_studio.images.errors import (
    ForbiddenAddressError,
    ImageAddressError,
    ImageDecodeError,
    ImageError,
    ImageTooLargeError,
    ImageUnavailableError,
    shown,
)

LOCAL_FILES = "/data/local-files/"
_CLOUD = ("s3", "s3s", "gs", "azure-blob", "azure_blob", "azure-spi", "dbx", "databricks")
# Who replaces an image under its address is noticed after this time; Label Studio's own files never change.
_MAX_AGE_S = 3600.0
_MOST_ADDRESS_CHARS = 16_384
"""Twice what servers take; only a data URL may be longer."""


class _ImageSettings(Protocol):
    """The settings that concern images; `backend.settings.Settings` has them."""

    @property
    def data_dir(self) -> Path: ...
    @property
    def label_studio_url(self) -> str | None: ...
    @property
    def allow_private_addresses(self) -> bool: ...
    @property
    def local_files_root(self) -> Path | None: ...
    @property
    def image_max_bytes(self) -> int: ...
    @property
    def image_max_pixels(self) -> int: ...
    @property
    def image_timeout_s(self) -> float: ...
    @property
    def image_cache_bytes(self) -> int: ...


@dataclass(frozen=True)
class ImageConfig:
    """Limits and places.

    Attributes:
        cache_dir: directory of the cache.
        label_studio_url: Label Studio's address as this machine reaches it; None: only complete addresses work.
        allow_private_addresses: fetch from private networks too.
        local_files_root: directory behind /data/local-files/?d=...
        max_bytes: most bytes of a file.
        max_pixels: most pixels of an image.
        timeout_s: seconds for one image in all.
        cache_bytes: room of the cache; 0: none.
    """

    cache_dir: Path
    label_studio_url: str | None = None
    allow_private_addresses: bool = False
    local_files_root: Path | None = None
    max_bytes: int = 50 * 1024 * 1024
    max_pixels: int = 100_000_000
    timeout_s: float = 20.0
    cache_bytes: int = 2 * 1024**3

    @classmethod
    def from_settings(cls, settings: _ImageSettings) -> ImageConfig:
        """Pick what concerns images."""
        return cls(
            cache_dir=settings.data_dir / "cache" / "images",
            label_studio_url=settings.label_studio_url,
            allow_private_addresses=settings.allow_private_addresses,
            local_files_root=settings.local_files_root,
            max_bytes=settings.image_max_bytes,
            max_pixels=settings.image_max_pixels,
            timeout_s=settings.image_timeout_s,
            cache_bytes=settings.image_cache_bytes,
        )


class FetchedImage:
    """An image, ready for the model. Its size and hash are known at once; safe to share between threads.

    Attributes:
        sha256: of the file's bytes, hex.
        size_hw: height and width as displayed, pixels; `image` may be smaller where that was asked for.
    """

    def __init__(self, sha256: str, size_hw: tuple[int, int], decode: Callable[[], Image.Image]) -> None:
        """`decode` is called once, when the pixels are first wanted."""
        self.sha256 = sha256
        self.size_hw = size_hw
        self._decode = decode
        self._image: Image.Image | None = None
        self._lock = threading.Lock()

    @property
    def image(self) -> Image.Image:
        """RGB, 8 bit, EXIF orientation applied. Raises ImageError where it cannot be decoded."""
        with self._lock:
            if self._image is None:
                self._image = self._decode()
            return self._image


class ImageFetcher:
    """Fetches images; safe to share between threads.

    Args:
        config: limits and places.
        credentials: what opens Label Studio's own files, usually a `LabelStudioClient`; None: no token.
        resolver: how names are resolved.
    """

    def __init__(
        self,
        config: ImageConfig,
        credentials: Credentials | None = None,
        *,
        resolver: Resolver = resolve_name,
    ) -> None:
        """Prepare; nothing is fetched yet."""
        self._config = config
        self._base = (config.label_studio_url or "").rstrip("/")
        self._cache = DiskCache(config.cache_dir, config.cache_bytes)
        self._downloader = Downloader(
            max_bytes=config.max_bytes,
            timeout_s=config.timeout_s,
            trusted=Origin.of(urlsplit(self._base)) if self._base else None,
            credentials=credentials,
            allow_private=config.allow_private_addresses,
            resolver=resolver,
            ssl_context=httpx.create_ssl_context(),
        )
        self._pixel_budget = PixelBudget(config.max_pixels)
        # Pillow has one process-wide limit besides ours and nothing per image; ours decides.
        if Image.MAX_IMAGE_PIXELS is not None and config.max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = config.max_pixels

    @property
    def cache_counts(self) -> CacheCounts:
        """What the cache of image files was asked for."""
        return self._cache.counts

    def fetch(
        self, uri: str, *, task_id: int | None = None, project_id: int | None = None, at_least_px: int | None = None
    ) -> FetchedImage:
        """Fetch one image.

        One that is new is decoded to see whether it can be; one from the cache only when its pixels are wanted.

        Args:
            uri: what the task's data holds.
            task_id: the task, for addresses of cloud storage.
            project_id: the project, for the same where there is no task.
            at_least_px: pixels that both sides must keep; a large image may be given smaller then.

        Returns:
            The image as the annotator sees it.

        Raises:
            ImageError: it cannot be had; the text names the image and the reason, for the project owner.
        """
        if not isinstance(uri, str) or not uri.strip():
            raise ImageAddressError("the task's data holds no image address")
        uri = uri.strip()
        try:
            return self._fetch(uri, task_id, project_id, at_least_px)
        except ImageError as error:
            raise error.about(shown(uri)) from None

    def _fetch(self, uri: str, task_id: int | None, project_id: int | None, at_least_px: int | None) -> FetchedImage:
        scheme = _scheme(uri)
        if scheme != "data" and len(uri) > _MOST_ADDRESS_CHARS:
            raise ImageAddressError(f"its address has {len(uri)} characters, more than {_MOST_ADDRESS_CHARS}")
        if scheme != "data":
            try:
                urlsplit(uri)
            except ValueError:
                raise ImageAddressError("its host is not written as one") from None
        if scheme == "data":
            return self._decoded(_data_url(uri, self._config.max_bytes), at_least_px)
        if scheme == "":
            local = self._local_file(uri)
            if local is not None:
                return self._decoded(local, at_least_px)
        url, lasting = self._url(uri, scheme, task_id, project_id)
        key = cache_key(uri if scheme in _CLOUD else url)
        cached = self._cache.get(key, max_age_s=None if lasting else _MAX_AGE_S)
        if cached is not None:
            try:
                size_hw = displayed_size(cached, max_pixels=self._config.max_pixels, name="it")
            except ImageError:
                # Kept only after it was decoded once: the disk has lost something, or the limits are lower now.
                self._cache.drop(key)
            else:
                decode = functools.partial(self._decode_cached, cached, size_hw, key, url, shown(uri), at_least_px)
                return FetchedImage(hashlib.sha256(cached).hexdigest(), size_hw, decode)
        data = self._downloader.get(url)
        fetched = self._decoded(data, at_least_px)
        self._cache.put(key, data)
        return fetched

    def _decoded(self, data: bytes, at_least_px: int | None) -> FetchedImage:
        image = self._pixels(data, at_least_px)
        size_hw = displayed_size(data, max_pixels=self._config.max_pixels, name="it")
        return FetchedImage(hashlib.sha256(data).hexdigest(), size_hw, lambda: image)

    def _pixels(self, data: bytes, at_least_px: int | None) -> Image.Image:
        return decode_image(
            data,
            max_pixels=self._config.max_pixels,
            name="it",
            at_least_px=at_least_px,
            room=self._pixel_budget.room,
        )

    def _decode_cached(
        self, data: bytes, size_hw: tuple[int, int], key: str, url: str, name: str, at_least_px: int | None
    ) -> Image.Image:
        try:
            return self._pixels(data, at_least_px)
        except ImageError:
            # It was decoded before it was kept: the disk has lost something of it, so it is fetched again.
            self._cache.drop(key)
        try:
            data = self._downloader.get(url)
            image = self._pixels(data, at_least_px)
            if displayed_size(data, max_pixels=self._config.max_pixels, name="it") != size_hw:
                raise ImageUnavailableError("it was replaced by another one just now: ask again", temporary=True)
        except ImageError as error:
            raise error.about(name) from None
        self._cache.put(key, data)
        return image

    def _url(self, uri: str, scheme: str, task_id: int | None, project_id: int | None) -> tuple[str, bool]:
        """The URL to ask, and whether what it names never changes."""
        if scheme in ("http", "https"):
            ours = bool(self._base) and uri.startswith(f"{self._base}/data/upload/")
            return uri, ours
        if scheme and scheme not in _CLOUD:
            raise ImageAddressError(
                f"addresses with {scheme}: are not fetched; use http(s), a cloud storage of Label Studio, or an upload"
            )
        if not self._base:
            raise ImageAddressError("it lies in Label Studio, whose address is not known: set LABEL_STUDIO_URL")
        if scheme:
            owner = f"tasks/{task_id}" if task_id is not None else f"projects/{project_id}"
            if task_id is None and project_id is None:
                raise ImageAddressError("an image in cloud storage can be fetched for a task or project only")
            # Label Studio takes the address in URL-safe base64.
            encoded = base64.urlsafe_b64encode(uri.encode("utf-8", "surrogatepass")).decode("ascii")
            return f"{self._base}/{owner}/presign/?{urlencode({'fileuri': encoded})}", False
        path = uri if uri.startswith("/") else f"/{uri}"
        prefix = urlsplit(self._base).path
        if path.startswith("//"):
            raise ImageAddressError("an address without its scheme; write http: or https: before it")
        if prefix and path.startswith(f"{prefix}/"):
            path = path[len(prefix) :]
        return f"{self._base}{path}", path.startswith("/data/upload/")

    def _local_file(self, uri: str) -> bytes | None:
        """The bytes behind /data/local-files/?d=...; None where Label Studio must be asked."""
        parts = urlsplit(uri)
        root = self._config.local_files_root
        if not parts.path.endswith(LOCAL_FILES) and not parts.path.endswith(LOCAL_FILES.rstrip("/")):
            return None
        wanted = parse_qs(parts.query).get("d", [""])[0]
        if root is None or not wanted:
            return None
        if "\0" in wanted:
            raise ImageAddressError("its path holds a zero character")
        try:
            resolved_root = root.resolve(strict=True)
            # Links are followed first, so that one inside cannot lead outside.
            path = (resolved_root / wanted.lstrip("/")).resolve(strict=False)
        except (OSError, RuntimeError):
            return None
        if not path.is_relative_to(resolved_root):
            raise ForbiddenAddressError("its path leads out of the directory of local files (VLM_LOCAL_FILES_ROOT)")
        return self._read_file(path)

    def _read_file(self, path: Path) -> bytes | None:
        try:
            # Without blocking: opening a pipe would wait for ever.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if self._base:
                return None
            raise ImageUnavailableError("there is no such file under VLM_LOCAL_FILES_ROOT") from None
        except OSError as error:
            raise ImageUnavailableError(f"the file cannot be opened ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ForbiddenAddressError("it is a directory or device, not a file")
        limit = self._config.max_bytes
        with os.fdopen(handle, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ImageTooLargeError(f"it has more than the {limit} bytes allowed (VLM_IMAGE_MAX_BYTES)")
        return data


def _scheme(uri: str) -> str:
    """The address's scheme in lower case; empty for a path. A Windows drive is no scheme."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+._-]+):", uri)
    return match.group(1).lower() if match else ""


def _data_url(uri: str, max_bytes: int) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma:
        raise ImageAddressError("a data: address without a comma")
    is_base64 = head.lower().rstrip().endswith(";base64")
    # Four characters stand for three bytes, and percent signs only make it shorter.
    if len(payload) * (3 / 4 if is_base64 else 1 / 3) > max_bytes:
        raise ImageTooLargeError(f"it has more than the {max_bytes} bytes allowed (VLM_IMAGE_MAX_BYTES)")
    raw = payload.encode("utf-8", "surrogatepass")
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    if is_base64:
        raw = _base64(raw)
    if len(raw) > max_bytes:
        raise ImageTooLargeError(f"it has {len(raw)} bytes, more than the {max_bytes} allowed (VLM_IMAGE_MAX_BYTES)")
    return raw


def _base64(text: bytes) -> bytes:
    """Decode base64 with or without padding and line breaks."""
    compact = text.translate(None, b" \t\r\n\f\v")
    if len(compact) % 4:
        compact += b"=" * (-len(compact) % 4)
    try:
        return base64.b64decode(compact, validate=True)
    except binascii.Error:
        raise ImageDecodeError("its base64 is broken") from None

"""One GET with hard limits: total time, bytes, redirects, and where a connection may go.

Built on httpcore, whose network backend is the one place where every connection is made and every byte arrives:
there the address is checked and the clock is watched, also while a server lets headers drip. Proxies of the
environment are not used, since a proxy would resolve names behind the guard's back.
"""

from __future__ import annotations

import ssl
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpcore

from backend.label_studio.errors import LabelStudioError
from backend.label_studio.images.addresses import Origin, Resolver, checked_addresses
from backend.label_studio.images.errors import (
    ImageAddressError,
    ImageError,
    ImageTimeoutError,
    ImageTooLargeError,
    ImageUnavailableError,
    shown,
)

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS: list[tuple[bytes | str, bytes | str]] = [
    ("Accept", "image/*,*/*;q=0.5"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "label-studio-vlm-backend"),
]
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class Credentials(Protocol):
    """What opens Label Studio's own files; `LabelStudioClient` has it."""

    def authorization(self) -> str | None:
        """The `Authorization` header; None: no token. May raise `LabelStudioError`."""

    def renew_authorization(self, refused: str) -> bool:
        """Note that this header was answered with 401; whether there may be a better one now."""


class Deadline:
    """A moment that a whole fetch must not pass."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the clock."""
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            ImageTimeoutError: none.
        """
        left = self._end - self._clock()
        if left <= 0:
            raise ImageTimeoutError(f"it did not arrive within {self.seconds:g} s (VLM_IMAGE_TIMEOUT_S)")
        return left


class _WatchedStream(httpcore.NetworkStream):
    """A connection on which no wait outlasts the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secure = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _WatchedStream(secure, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _GuardedBackend(httpcore.NetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, deadline: Deadline, trusted: Origin | None, allow_private: bool, resolver: Resolver) -> None:
        self._inner = httpcore.SyncBackend()
        self._deadline = deadline
        self._trusted = None if trusted is None else (trusted.host, trusted.port)
        self._allow_private = allow_private
        self._resolver = resolver

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        trusted = (host.rstrip(".").lower(), port) == self._trusted
        addresses = checked_addresses(
            host,
            port,
            allow_private=self._allow_private or trusted,
            resolver=self._resolver,
            timeout_s=self._deadline.left(),
        )
        failure: Exception | None = None
        for address in addresses:
            try:
                stream = self._inner.connect_tcp(address, port, self._deadline.left(), local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _WatchedStream(stream, self._deadline)
        raise failure or httpcore.ConnectError("no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("images are not fetched from sockets of this machine")

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(min(seconds, self._deadline.left()))


class Downloader:
    """Fetches bytes over http(s).

    Args:
        max_bytes: most bytes of a body.
        timeout_s: seconds for one download with all its redirects.
        trusted: the origin that is fetched from whatever its address, and the only one that is sent the token.
        credentials: for the trusted origin; None: no token.
        allow_private: fetch from private addresses too.
        resolver: how names are resolved.
        ssl_context: what https trusts.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout_s: float,
        trusted: Origin | None,
        credentials: Credentials | None,
        allow_private: bool,
        resolver: Resolver,
        ssl_context: ssl.SSLContext,
    ) -> None:
        """Keep the limits; nothing is sent yet."""
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._trusted = trusted
        self._credentials = credentials
        self._allow_private = allow_private
        self._resolver = resolver
        self._ssl_context = ssl_context

    def get(self, url: str) -> bytes:
        """Fetch one URL, following redirects; each hop's address is checked anew.

        Raises:
            ImageError: the reason, without the image's own address: the caller names it.
        """
        deadline = Deadline(self._timeout_s)
        backend = _GuardedBackend(deadline, self._trusted, self._allow_private, self._resolver)
        signed = False
        try:
            with httpcore.ConnectionPool(ssl_context=self._ssl_context, network_backend=backend) as pool:
                for _ in range(MAX_REDIRECTS + 1):
                    request, origin = _request(url)
                    body, location = self._hop(pool, request, origin == self._trusted, signed, deadline)
                    if body is not None:
                        return body
                    signed = signed or origin == self._trusted
                    url = urljoin(url, location)
                raise ImageUnavailableError(f"it is redirected more than {MAX_REDIRECTS} times")
        except httpcore.TimeoutException:
            raise ImageTimeoutError(f"it did not arrive within {self._timeout_s:g} s (VLM_IMAGE_TIMEOUT_S)") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise ImageUnavailableError(f"the connection failed ({said})", temporary=True) from None

    def _hop(
        self, pool: httpcore.ConnectionPool, request: httpcore.URL, trusted: bool, signed: bool, deadline: Deadline
    ) -> tuple[bytes | None, str]:
        """One request, or two where the token had to be renewed: the body, or where it is redirected to."""
        token = self._token() if trusted else None
        renewed = False
        while True:
            headers = [*_HEADERS, ("Authorization", token)] if token else _HEADERS
            with pool.stream("GET", request, headers=headers) as response:
                if response.status in _REDIRECTS:
                    location = _header(response, "location")
                    if not location:
                        raise ImageUnavailableError(f"it is redirected ({response.status}) to nowhere")
                    return None, location
                if response.status == 200:
                    return self._body(response, deadline), ""
                if response.status != 401 or not token or renewed or not self._renew(token):
                    raise _refused(response.status, trusted, signed, token is not None)
            renewed, token = True, self._token()

    def _token(self) -> str | None:
        try:
            return None if self._credentials is None else self._credentials.authorization()
        except LabelStudioError as error:
            raise ImageUnavailableError(str(error), temporary=error.temporary) from None

    def _renew(self, refused: str) -> bool:
        return self._credentials is not None and self._credentials.renew_authorization(refused)

    def _body(self, response: httpcore.Response, deadline: Deadline) -> bytes:
        stated = _header(response, "content-length")
        if stated.isdigit() and int(stated) > self._max_bytes:
            raise self._too_large(int(stated))
        encoding = _header(response, "content-encoding").lower()
        if encoding not in ("", "identity", "gzip", "deflate"):
            raise ImageUnavailableError(f"the server sends it in an encoding we did not ask for ({encoding})")
        unpacker = zlib.decompressobj(47) if encoding in ("gzip", "deflate") else None
        body = bytearray()
        for chunk in response.iter_stream():
            deadline.left()
            try:
                body += unpacker.decompress(chunk, self._max_bytes + 1 - len(body)) if unpacker else chunk
            except zlib.error:
                raise ImageUnavailableError("the server sends it broken (gzip)", temporary=True) from None
            if len(body) > self._max_bytes:
                raise self._too_large(None)
        return bytes(body)

    def _too_large(self, stated: int | None) -> ImageError:
        has = "it has more than" if stated is None else f"it has {stated} bytes, more than"
        return ImageTooLargeError(f"{has} the {self._max_bytes} bytes allowed (VLM_IMAGE_MAX_BYTES)")


def _request(url: str) -> tuple[httpcore.URL, Origin]:
    """What to ask, and whom.

    Raises:
        ImageAddressError: not an http(s) address.
    """
    try:
        parts = urlsplit(url)
        origin = Origin.of(parts)
        host = origin.host if origin.host.isascii() else origin.host.encode("idna").decode("ascii")
        host = f"[{host}]" if ":" in host else host
        # Without user and fragment, and with what may not stand in a request line percent-encoded.
        netloc = host if parts.port is None else f"{host}:{parts.port}"
        target = urlunsplit((origin.scheme, netloc, _quoted(parts.path or "/"), _quoted(parts.query), ""))
        return httpcore.URL(target), origin
    except (ValueError, UnicodeError):
        raise ImageAddressError(f"{shown(url)} is not an http address") from None


def _refused(status: int, trusted: bool, signed: bool, with_token: bool) -> ImageError:
    """Why an answer is none. `signed`: Label Studio itself has led here."""
    if status in (401, 403):
        return ImageUnavailableError(
            f"its server refuses it ({status}); {_remedy(status, trusted, signed, with_token)}"
        )
    if status in (404, 410):
        where = "Label Studio has no such file, or no storage connection for it" if trusted else "its server has none"
        return ImageUnavailableError(f"{where} ({status})")
    if status == 424 and trusted:
        return ImageUnavailableError(
            "Label Studio cannot read it from its storage (424): check the storage's credentials in the project's "
            "settings, under Cloud Storage"
        )
    return ImageUnavailableError(f"its server answers {status}", temporary=status in _TEMPORARY)


def _remedy(status: int, trusted: bool, signed: bool, with_token: bool) -> str:
    if not trusted and signed:
        return (
            "Label Studio's storage connection may not read it: check its credentials in the project's settings, under "
            "Cloud Storage"
        )
    if not trusted:
        return "its server wants a sign-in that the backend has not; is LABEL_STUDIO_URL set?"
    if not with_token:
        return "set LABEL_STUDIO_API_KEY"
    if status == 401:
        return "Label Studio does not accept LABEL_STUDIO_API_KEY for this image"
    return (
        "the user of LABEL_STUDIO_API_KEY may not see it; files of a local storage also need "
        "LOCAL_FILES_SERVING_ENABLED=true in Label Studio"
    )


def _header(response: httpcore.Response, name: str) -> str:
    wanted = name.encode()
    return next((value.decode("latin-1").strip() for key, value in response.headers if key.lower() == wanted), "")


def _quoted(text: str) -> str:
    return "".join(
        chr(byte) if 0x21 <= byte <= 0x7E else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass")
    )

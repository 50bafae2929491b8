"""Bytes with a checksum before them, so that a file of which the disk has lost or changed a part is known for it."""

from __future__ import annotations

import zlib

_MAGIC = b"crc\x01"
_HEADER_BYTES = len(_MAGIC) + 4


class DamagedError(ValueError):
    """The bytes are not what was sealed."""


class UnsealedError(ValueError):
    """The bytes have no checksum: another release has written them."""


def seal(data: bytes) -> bytes:
    """`data` with its checksum; a few bytes longer."""
    return _MAGIC + zlib.crc32(data).to_bytes(4, "big") + data


def unseal(sealed: bytes) -> bytes:
    """What was given to `seal`.

    Raises:
        DamagedError: a part is missing or changed.
        UnsealedError: there is no checksum.
    """
    if len(sealed) >= _HEADER_BYTES and not sealed.startswith(_MAGIC):
        raise UnsealedError("it has no checksum")
    data = sealed[_HEADER_BYTES:]
    if len(sealed) < _HEADER_BYTES or zlib.crc32(data) != int.from_bytes(sealed[len(_MAGIC) : _HEADER_BYTES], "big"):
        raise DamagedError("a part of it is missing or changed")
    return data

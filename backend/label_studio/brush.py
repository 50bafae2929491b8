"""Brush masks as Label Studio stores them: run-length code of the flat RGBA picture.

The format is rle-pack's, as `label_studio_sdk.converter.brush` writes it (the reference; our bytes equal its
`mask2rle`): 32 bits number of values, 5 bits word size - 1, four times 4 bits length size - 1, then runs. A run
is 1 bit (1: one value repeated, 0: that many values follow), 2 bits (which of the four length sizes), its
length - 1, and its value or values. A pixel is four equal values, 0 outside and 255 inside; the editor shows
what has alpha and takes the picture's size from the image itself.

The SDK goes bit by bit through strings; here runs are packed and unpacked as arrays, which matters at 12
megapixels.

Source: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

_CHANNELS = 4
_WORD_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_HEADER_BITS = 32 + 5 + 4 * 4
_LONGEST_RUN = 1 << _LENGTH_BITS[-1]


class BrushError(ValueError):
    """A run-length code that cannot be read as a mask of the given size; the message says why."""


def encode_mask(mask: Mask) -> list[int]:
    """Encode a mask for `value.rle`.

    Args:
        mask: bool, shape (H, W), H and W at least 1.

    Returns:
        Plain ints 0..255, the same as `label_studio_sdk.converter.brush.mask2rle(mask * 255)`.

    Raises:
        ValueError: not a 2-D bool array, empty, or too large for the format's 32-bit count.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"a mask is a non-empty bool array (H, W), not {mask.dtype} {mask.shape}")
    if mask.size * _CHANNELS >= 1 << 32:
        raise ValueError(f"a mask of {mask.shape} has more values than the format can count")
    flat = np.ascontiguousarray(mask).reshape(-1)
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(np.append(starts, flat.size)).astype(np.int64) * _CHANNELS
    inside = flat[starts]
    lengths, inside, cut = _split_long_runs(lengths, inside)

    # Runs are multiples of four values, so that the single-value form never occurs.
    which = np.searchsorted(1 << np.array(_LENGTH_BITS), lengths)
    # The reference writes every piece of a cut run in the longest field.
    which[cut] = len(_LENGTH_BITS) - 1
    length_bits = np.array(_LENGTH_BITS)[which]
    codes = (1 << 2) | which
    codes = (codes << length_bits) | (lengths - 1)
    codes = (codes << _WORD_BITS) | np.where(inside, 255, 0)
    widths = 3 + length_bits + _WORD_BITS

    header = (flat.size * _CHANNELS << 5) | (_WORD_BITS - 1)
    for bits in _LENGTH_BITS:
        header = (header << 4) | (bits - 1)
    header_bits = np.array([header >> shift & 1 for shift in range(_HEADER_BITS - 1, -1, -1)], dtype=np.uint8)
    packed = np.packbits(np.concatenate((header_bits, _to_bits(codes, widths))))
    total_bits = _HEADER_BITS + int(widths.sum())
    # The reference fills up to a whole byte, with a whole zero byte where there is nothing to fill.
    rle: list[int] = packed.tolist()
    return [*rle, 0] if total_bits % 8 == 0 else rle


def decode_mask(rle: Sequence[int], size_hw: tuple[int, int]) -> Mask:
    """Decode `value.rle`.

    A pixel is inside when its alpha is at least half of the region's greatest alpha: strokes drawn in the
    editor have soft edges, and other writers use a constant below 255.

    Args:
        rle: ints 0..255.
        size_hw: height and width that the region states, pixels.

    Returns:
        bool, shape `size_hw`.

    Raises:
        BrushError: not bytes, cut short, another number of values than the size has, or unknown word sizes.
    """
    height, width = size_hw
    if height < 1 or width < 1:
        raise BrushError(f"the region states a size of {width} x {height}")
    try:
        # bytes(5) would be five zero bytes, and bytes(10**12) the end of the process.
        data = bytes(rle if isinstance(rle, Sequence) else [rle])
    except (ValueError, TypeError, OverflowError):
        raise BrushError("rle is not a list of numbers from 0 to 255") from None
    expected = height * width * _CHANNELS
    values = _decode_values(data, expected)
    alpha = values[_CHANNELS - 1 :: _CHANNELS].reshape(height, width)
    most = int(alpha.max())
    if most == 0:
        return np.zeros(size_hw, dtype=np.bool_)
    return alpha >= (most + 1) // 2


def _split_long_runs(lengths: npt.NDArray[np.int64], inside: Mask) -> tuple[npt.NDArray[np.int64], Mask, Mask]:
    """Cut runs that the longest length field cannot hold, full pieces first; the third says which were cut."""
    pieces = -(-lengths // _LONGEST_RUN)
    owner = np.repeat(np.arange(lengths.size), pieces)
    split = np.full(owner.size, _LONGEST_RUN, dtype=np.int64)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST_RUN
    return split, inside[owner], (pieces > 1)[owner]


def _to_bits(codes: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Write each code in its width, most significant bit first, one after the other."""
    most = int(widths.max())
    shifts = np.arange(most - 1, -1, -1)
    bits = (codes[:, None] >> shifts & 1).astype(np.uint8)
    flat: npt.NDArray[np.uint8] = bits[shifts < widths[:, None]]
    return flat


def _decode_values(data: bytes, expected: int) -> npt.NDArray[np.uint8]:
    """The flat values. `expected` is checked before anything of that size is allocated."""
    if len(data) * 8 < _HEADER_BITS:
        raise BrushError(f"rle is cut short: {len(data)} bytes hold no header")
    header = int.from_bytes(data[:7], "big") >> (7 * 8 - _HEADER_BITS)
    count = header >> 21
    word_bits = (header >> 16 & 31) + 1
    length_bits = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    if count != expected:
        raise BrushError(f"rle holds {count} values, but the region's size needs {expected}")
    if word_bits != _WORD_BITS:
        raise BrushError(f"rle has words of {word_bits} bits, not {_WORD_BITS}")

    total_bits = len(data) * 8
    # Room behind the end, so that the last window can be read whole; `position` is checked against the end.
    padded = data + bytes(8)
    bits = np.unpackbits(np.frombuffer(padded, dtype=np.uint8))
    out = np.zeros(count, dtype=np.uint8)
    weights = 1 << np.arange(_WORD_BITS - 1, -1, -1, dtype=np.uint8)
    position, index = _HEADER_BITS, 0
    while index < count:
        byte = position >> 3
        window = int.from_bytes(padded[byte : byte + 5], "big") >> (13 - (position & 7)) & 0x7FFFFFF
        # 27 bits: 1 kind, 2 which length, up to 16 length, 8 value.
        size = length_bits[window >> 24 & 3]
        length = (window >> (24 - size) & ((1 << size) - 1)) + 1
        end = index + length
        if end > count:
            raise BrushError(f"rle runs past its {count} values")
        position += 3 + size
        if window >> 26:
            out[index:end] = window >> (24 - size - _WORD_BITS) & 255
            position += _WORD_BITS
        else:
            stop = position + length * _WORD_BITS
            if stop > total_bits:
                raise BrushError(f"rle is cut short after {index} of {count} values")
            out[index:end] = bits[position:stop].reshape(length, _WORD_BITS) @ weights
            position = stop
        if position > total_bits:
            raise BrushError(f"rle is cut short after {index} of {count} values")
        index = end
    return out

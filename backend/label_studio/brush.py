"""Brush masks as Label Studio stores them: run-length code of the flat RGBA picture.

The format is rle-pack's, as `label_studio_sdk.converter.brush` writes it (the reference; our bytes equal its
`mask2rle`): 32 bits number of values, 5 bits word size - 1, four times 4 bits length size - 1, then runs. A run
is 1 bit (1: one value repeated, 0: that many values follow), 2 bits (which of the four length sizes), its
length - 1, and its value or values. A pixel is four equal values, 0 outside and 255 inside; the editor shows
what has alpha and takes the picture's size from the image itself.

The SDK goes bit by bit through strings; here compiled loops go run by run, which matters at 12 megapixels.

Source: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlm_core.compiled import compiled
from vlm_core.runs import Ints, RunMask, toggles

Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_CHANNELS = 4
_WORD_BITS = 8
_HEADER_BITS = 32 + 5 + 4 * 4


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
    return _encode(toggles(np.ascontiguousarray(mask).reshape(-1)), mask.size)


def encode_runs(runs: RunMask) -> list[int]:
    """`encode_mask` of a mask that is given as its runs; its picture is never made.

    Raises:
        ValueError: an image without pixels, or too large for the format's 32-bit count.
    """
    height, width = runs.size_hw
    if not height * width:
        raise ValueError(f"a mask of {width} x {height} px has no pixels")
    return _encode(runs.flat_edges(), height * width)


def _encode(edges: Ints, pixels: int) -> list[int]:
    if pixels * _CHANNELS >= 1 << 32:
        raise ValueError(f"a mask of {pixels} pixels has more values than the format can count")
    # Every run takes at most 14 bits a pixel, and what is not written takes no memory.
    out = np.empty(pixels * 14 // 8 + 16, dtype=np.uint8)
    rle: list[int] = out[: _pack(edges, pixels, out)].tolist()
    return rle


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
    sizes = _read_header(data, height * width * _CHANNELS)
    # Room behind the end, so that the last window can be read whole; positions are checked against the end.
    padded = np.frombuffer(data + bytes(8), dtype=np.uint8)
    mask = np.zeros(height * width, dtype=np.bool_)
    index, problem, most = _unpack(padded, len(data) * 8, sizes, 0, mask)
    if problem == _CUT_SHORT:
        raise BrushError(f"rle is cut short after {index} of {mask.size * _CHANNELS} values")
    if problem == _TOO_LONG:
        raise BrushError(f"rle runs past its {mask.size * _CHANNELS} values")
    if most:
        _unpack(padded, len(data) * 8, sizes, (int(most) + 1) // 2, mask)
    return mask.reshape(size_hw)


def _read_header(data: bytes, expected: int) -> npt.NDArray[np.int64]:
    """The four length sizes, bits. `expected` is checked before anything of that size is allocated."""
    if len(data) * 8 < _HEADER_BITS:
        raise BrushError(f"rle is cut short: {len(data)} bytes hold no header")
    header = int.from_bytes(data[:7], "big") >> (7 * 8 - _HEADER_BITS)
    count = header >> 21
    word_bits = (header >> 16 & 31) + 1
    if count != expected:
        raise BrushError(f"rle holds {count} values, but the region's size needs {expected}")
    if word_bits != _WORD_BITS:
        raise BrushError(f"rle has words of {word_bits} bits, not {_WORD_BITS}")
    return np.array([(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)], dtype=np.int64)


_CUT_SHORT, _TOO_LONG = 1, 2


@compiled
def _unpack(
    data: Bytes, total_bits: int, sizes: npt.NDArray[np.int64], least: int, mask: Mask
) -> tuple[int, int, np.int64]:
    """Read all runs; mark the pixels whose alpha is at least `least`, which 0 leaves out.

    Returns:
        How many values were read, 0 or one of the two problems, and the greatest alpha.
    """
    count = mask.size * 4
    position, index = 53, 0
    most = np.int64(0)
    while index < count:
        # 27 bits from any position lie within five bytes: 1 kind, 2 which length, up to 16 length, 8 value.
        byte = position >> 3
        window = np.int64(0)
        for offset in range(5):
            window = window << 8 | data[byte + offset]
        window = window >> (13 - (position & 7)) & 0x7FFFFFF
        size = sizes[window >> 24 & 3]
        end = index + (window >> (24 - size) & ((1 << size) - 1)) + 1
        if end > count:
            return index, 2, most
        position += 3 + size
        if window >> 26:
            position += 8
            if position > total_bits:
                return index, 1, most
            value = window >> (16 - size) & 255
            # Alpha is the last of a pixel's four values.
            first, last = index // 4, end // 4
            if first < last:
                most = max(most, value)
                if least and value >= least:
                    mask[first:last] = True
        else:
            if position + (end - index) * 8 > total_bits:
                return index, 1, most
            for place in range(index, end):
                if place % 4 == 3:
                    byte = position >> 3
                    value = (np.int64(data[byte]) << 8 | data[byte + 1]) >> (8 - (position & 7)) & 255
                    most = max(most, value)
                    if least and value >= least:
                        mask[place // 4] = True
                position += 8
        index = end
    return index, 0, most


@compiled
def _pack(edges: Ints, pixels: int, out: Bytes) -> int:
    """Write header and runs of a flat picture that changes at `edges`; returns the number of bytes."""
    # Bits wait in `held` until they fill whole bytes.
    held, bits, written = np.uint64(0), 0, 0
    values = np.uint64(pixels * 4)
    for step in range(-2, edges.size + 1):
        if step == -2:
            code, width, length = values, 32, 0
        elif step == -1:
            # Word size 8, then the length sizes 3, 4, 8 and 16, each less one.
            code, width, length = np.uint64(0b00111_0010_0011_0111_1111), 21, 0
        else:
            first = 0 if step == 0 else int(edges[step - 1])
            last = pixels if step == edges.size else int(edges[step])
            code, width, length = np.uint64(0), 0, (last - first) * 4
        cut = length > 65536
        while width or length:
            if not width:
                # Runs are multiples of four values, so that the single-value form never occurs. A run that is too long
                # is cut into full pieces, and the reference writes its rest in the longest field too.
                piece = min(length, 65536)
                which, size = 0, 3
                if cut or piece > 256:
                    which, size = 3, 16
                elif piece > 16:
                    which, size = 2, 8
                elif piece > 8:
                    which, size = 1, 4
                value = 255 if step % 2 else 0
                code = np.uint64(((4 | which) << size | (piece - 1)) << 8 | value)
                width = 3 + size + 8
                length -= piece
            held = held << np.uint64(width) | code
            bits += width
            width = 0
            while bits >= 8:
                bits -= 8
                out[written] = held >> np.uint64(bits) & np.uint64(255)
                written += 1
    # The reference fills up to a whole byte, with a whole zero byte where there is nothing to fill.
    out[written] = held << np.uint64(8 - bits) & np.uint64(255)
    return written + 1

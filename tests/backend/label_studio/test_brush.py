from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle

from backend.label_studio.brush import BrushError, decode_mask, encode_mask

SIZES = st.tuples(st.integers(1, 24), st.integers(1, 24))
MASKS = SIZES.flatmap(lambda size: hnp.arrays(np.bool_, size))


def sdk_rgba(rle: list[int], size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = decode_rle(rle).reshape(*size_hw, 4)
    return pixels


@given(MASKS)
def test_the_sdk_decodes_what_we_encode(mask: npt.NDArray[np.bool_]) -> None:
    rle = encode_mask(mask)
    assert all(type(value) is int and 0 <= value <= 255 for value in rle)
    pixels = sdk_rgba(rle, mask.shape)  # type: ignore[arg-type]
    assert np.array_equal(pixels, np.repeat(mask[..., None] * 255, 4, axis=2))
    assert rle == mask2rle(mask.astype(np.uint8) * 255)


@given(MASKS)
def test_we_decode_what_we_encode(mask: npt.NDArray[np.bool_]) -> None:
    assert np.array_equal(decode_mask(encode_mask(mask), mask.shape), mask)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "lengths",
    [
        [1],  # one pixel, the smallest image
        [2, 2],  # 8 values: the last length of the 3-bit field
        [3, 4, 5],  # 12, 16 and 20 values: both sides of the 4-bit field's end
        [64, 65],  # 256 and 260 values: both sides of the 8-bit field's end
        [16_384, 16_385, 40_000],  # 65,536 values exactly, one pixel more, and a run in several pieces
    ],
)
def test_runs_at_the_edges_of_the_length_fields(lengths: list[int]) -> None:
    values = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    for mask in (values[None, :], ~values[:, None]):
        rle = encode_mask(mask)
        assert rle == mask2rle(mask.astype(np.uint8) * 255)
        assert np.array_equal(decode_mask(rle, mask.shape), mask)


@settings(max_examples=50)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(4))))
def test_soft_edges_count_from_half_of_the_strongest_alpha(pixels: npt.NDArray[np.uint8]) -> None:
    alpha = pixels[..., 3].astype(int)
    expected = (alpha > 0) & (alpha * 2 >= alpha.max())
    assert np.array_equal(decode_mask(encode_rle(pixels.reshape(-1)), pixels.shape[:2]), expected)


def test_runs_of_different_values_are_read() -> None:
    # rle-pack writes neighbours that differ as one run of values; the SDK's encoder never does. By hand: header for
    # 8 values, then "0" (values follow), "00" (3-bit length), "111" (8 of them), two pixels.
    bits = f"{8:032b}" + f"{7:05b}" + "0010" + "0011" + "0111" + "1111" + "0" + "00" + "111"
    bits += "".join(f"{value:08b}" for value in (10, 20, 30, 255, 255, 255, 255, 127))
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert sdk_rgba(rle, (1, 2)).tolist() == [[[10, 20, 30, 255], [255, 255, 255, 127]]]
    assert decode_mask(rle, (1, 2)).tolist() == [[True, False]]


GOOD = encode_mask(np.eye(8, dtype=np.bool_))


@pytest.mark.parametrize(
    ("rle", "size_hw", "words"),
    [
        ([], (8, 8), "no header"),
        (GOOD[:6], (8, 8), "no header"),
        (GOOD[:-6], (8, 8), "cut short"),
        (GOOD, (8, 9), "256 values, but the region's size needs 288"),
        (GOOD, (0, 0), "0 x 0"),
        ([255] * 400, (8, 8), "values, but"),  # states 4 billion values: refused before memory is taken
        ([*GOOD[:4], 0, *GOOD[5:]], (8, 8), "words of"),
        ([*GOOD[:7], *[255] * 60], (8, 8), "past its"),
        ([256, *GOOD], (8, 8), "0 to 255"),
        (["a"], (8, 8), "0 to 255"),
        ([1.5], (8, 8), "0 to 255"),
        (10**13, (8, 8), "0 to 255"),
        ("abc", (8, 8), "0 to 255"),
    ],
)
def test_a_broken_code_is_named(rle: object, size_hw: tuple[int, int], words: str) -> None:
    with pytest.raises(BrushError, match=words):
        decode_mask(rle, size_hw)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 255), max_size=80))
def test_any_bytes_are_read_or_named_as_broken(tail: list[int]) -> None:
    for rle in (tail, [*GOOD[:7], *tail]):
        try:
            mask = decode_mask(rle, (8, 8))
        except BrushError:
            continue
        assert mask.shape == (8, 8)


@pytest.mark.parametrize(
    "mask", [np.zeros((0, 3), bool), np.zeros(4, bool), np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2), bool)]
)
def test_only_masks_are_encoded(mask: npt.NDArray[np.bool_]) -> None:
    with pytest.raises(ValueError, match="non-empty bool array"):
        encode_mask(mask)

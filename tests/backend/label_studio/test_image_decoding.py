from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.label_studio.images.decode import PixelBudget, decode_image, displayed_size
from backend.label_studio.images.errors import ImageDecodeError, ImageError, ImageTooLargeError
from vlm_core import pictures
from vlm_core.pictures import to_rgb


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(data: bytes, max_pixels: int = 10_000) -> Image.Image:
    image = decode_image(data, max_pixels=max_pixels, name="picture")
    assert image.mode == "RGB"
    return image


def levels(values: list[Any], dtype: Any) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype))


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    return image


# picture, format, options, expected pixels of its first row
MODES = [
    (Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", {}, [(1, 2, 3)]),
    (Image.new("L", (1, 1), 77), "PNG", {}, [(77, 77, 77)]),
    (Image.new("1", (1, 1), 1), "PNG", {}, [(255, 255, 255)]),
    (palette(), "PNG", {}, [(255, 0, 0), (0, 0, 255)]),
    # the palette's transparent entry: on white
    (palette(), "PNG", {"transparency": 1}, [(255, 0, 0), (255, 255, 255)]),
    (palette(), "GIF", {"transparency": 0}, [(255, 255, 255), (0, 0, 255)]),
    (Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", {"transparency": (1, 2, 3)}, [(255, 255, 255)]),
    # half-transparent black on white
    (Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG", {}, [(127, 127, 127)]),
    (Image.new("LA", (1, 1), (0, 0)), "PNG", {}, [(255, 255, 255)]),
    (Image.new("RGBA", (1, 1), (9, 9, 9, 255)), "WEBP", {"lossless": True}, [(9, 9, 9)]),
    # 16 bit: by its upper byte, not cut off at 255
    (levels([0, 257, 32896, 65535], np.uint16), "PNG", {}, [(v, v, v) for v in (0, 1, 128, 255)]),
    (levels([0, 257, 32896, 65535], np.uint16), "TIFF", {}, [(v, v, v) for v in (0, 1, 128, 255)]),
    # 32-bit integers: as they are up to 255, as 16 bit up to 65535, else from least to most
    (levels([0, 77, 255], np.int32), "TIFF", {}, [(v, v, v) for v in (0, 77, 255)]),
    (levels([0, 257, 65535], np.int32), "TIFF", {}, [(v, v, v) for v in (0, 1, 255)]),
    (levels([-100, 0, 100], np.int32), "TIFF", {}, [(v, v, v) for v in (0, 128, 255)]),
    # floats: 0..1 or 0..255, else from least to most; what is no number is black
    (levels([0, 0.5, 1], np.float32), "TIFF", {}, [(v, v, v) for v in (0, 128, 255)]),
    (levels([0, 51.2, 255], np.float32), "TIFF", {}, [(v, v, v) for v in (0, 51, 255)]),
    (levels([-1e30, 0, 1e30, np.nan], np.float32), "TIFF", {}, [(v, v, v) for v in (0, 128, 255, 128)]),
    (levels([3e5, 3e5], np.float32), "TIFF", {}, [(0, 0, 0), (0, 0, 0)]),
    (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF", {}, [(255, 0, 0)]),
    (Image.new("YCbCr", (1, 1), (76, 85, 255)), "TIFF", {}, [(254, 0, 0)]),
]


@pytest.mark.parametrize(("image", "file_format", "options", "expected"), MODES)
def test_every_mode_becomes_rgb(image: Image.Image, file_format: str, options: Any, expected: Any) -> None:
    data = encoded(image, file_format, **options)
    got = np.asarray(decoded(data))[0].astype(int)
    assert np.abs(got - np.array(expected)).max() <= 1


@pytest.mark.parametrize("file_format", ["JPEG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "JPEG2000", "PPM", "TGA", "QOI"])
def test_formats(file_format: str) -> None:
    image = decoded(encoded(Image.new("RGB", (32, 16), (200, 30, 30)), file_format))
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image)[8, 16].astype(int) - (200, 30, 30)).max() < 12


def test_of_several_frames_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        red, _, blue = decoded(data).getpixel((1, 1))  # type: ignore[misc]
        assert red > 200 > 60 > blue


def test_all_orientations_are_applied() -> None:
    """Every way in which a camera may have stored an upright picture gives that picture back."""
    upright = Image.new("RGB", (32, 16), "white")
    for box, colour in (((0, 0, 16, 8), "red"), ((16, 0, 32, 8), "lime"), ((0, 8, 16, 16), "blue")):
        upright.paste(colour, box)
    turn = Image.Transpose
    # EXIF: where row 0 and column 0 of what is stored lie in what is seen.
    stored = {
        1: upright,
        2: upright.transpose(turn.FLIP_LEFT_RIGHT),
        3: upright.transpose(turn.ROTATE_180),
        4: upright.transpose(turn.FLIP_TOP_BOTTOM),
        5: upright.transpose(turn.TRANSPOSE),
        6: upright.transpose(turn.ROTATE_90),
        7: upright.transpose(turn.TRANSVERSE),
        8: upright.transpose(turn.ROTATE_270),
    }
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for file_format in ("JPEG", "PNG", "TIFF"):
            got = decoded(encoded(image, file_format, exif=exif))
            assert got.size == (32, 16), (orientation, file_format)
            different = np.abs(np.asarray(got).astype(int) - np.asarray(upright)).max(axis=2) > 80
            assert different.mean() < 0.1, (orientation, file_format)


def test_orientation_is_applied() -> None:
    # upright: red left, blue right; stored turned by a quarter, which orientation 6 undoes
    upright = Image.new("RGB", (16, 8), "red")
    upright.paste("blue", (8, 0, 16, 8))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    for file_format in ("JPEG", "PNG", "AVIF"):
        image = decoded(encoded(stored, file_format, exif=exif))
        assert image.size == (16, 8)
        assert image.getpixel((1, 4))[0] > 200  # type: ignore[index]
        assert image.getpixel((14, 4))[2] > 200  # type: ignore[index]


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def test_what_browsers_do_not_turn_is_not_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (8, 16), "red")
    assert decoded(encoded(stored, "WEBP", exif=exif)).size == (8, 16)
    with_xmp = encoded(stored, "JPEG", xmp=XMP)
    behind = png_with(stored, b"IEND", chunk(b"eXIf", exif.tobytes()))
    profile = b"\nexif\n%8d\n%s\n" % (len(exif.tobytes()), exif.tobytes().hex().encode())
    text = png_with(stored, b"IDAT", chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)))
    for data in (with_xmp, behind, text):
        assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6  # Pillow reads it there
        assert decoded(data).size == (8, 16)
        assert displayed_size(data, max_pixels=1000, name="picture") == (16, 8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(image: Image.Image, before: bytes, extra: bytes) -> bytes:
    """A PNG file with one more chunk before the first one of a kind."""
    data = encoded(image)
    place = data.index(before) - 4
    return data[:place] + extra + data[place:]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "AVIF"])
def test_the_displayed_size_is_read_from_the_header_alone(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if file_format in ("GIF", "BMP") else {"exif": exif}
    data = encoded(Image.new("RGB", (30, 20)), file_format, **options)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the pixels were read"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("the pixels were read"))
    turned = file_format in ("JPEG", "PNG", "TIFF", "AVIF")
    assert displayed_size(data, max_pixels=1000, name="picture") == ((30, 20) if turned else (20, 30))


def test_broken_exif_turns_nothing() -> None:
    data = encoded(Image.new("RGB", (8, 4), "red"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decoded(data).size == (8, 4)


def test_too_many_pixels_are_refused_before_they_are_read() -> None:
    data = encoded(Image.new("L", (200, 100)))
    with pytest.raises(ImageTooLargeError, match=r"200 x 100 pixels.*VLM_IMAGE_MAX_PIXELS"):
        decoded(data[:60], max_pixels=19_999)  # cut behind the header: the pixels are not even there
    assert decoded(data, max_pixels=20_000).size == (200, 100)
    # a file of some bytes that claims 65535 x 65535 pixels
    bomb = bytearray(encoded(Image.new("L", (1, 1)), "GIF"))
    bomb[6:10] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageTooLargeError):
        decoded(bytes(bomb))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"abcdefghij", "not an image of a known format .first bytes 61 62 63 64 65 66 67 68"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><html>", "a web page"),
        (b"<html></html>", "a web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "a drawing"),
        (b'{"detail": "Not found."}', "JSON"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "a video"),
        (bytes(128) + b"DICM" + bytes(9), "DICOM"),
        (encoded(Image.new("RGB", (50, 50)))[:60], "broken"),
        (encoded(Image.effect_noise((60, 60), 50), "JPEG")[:700], "broken"),
    ],
)
def test_what_cannot_be_read_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ImageDecodeError, match=words) as caught:
        decoded(data)
    assert "picture" in str(caught.value)


SEEDS = [
    encoded(Image.effect_noise((24, 16), 60).convert("RGB"), file_format)
    for file_format in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")
]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8),
    st.integers(0, 3000),
)
def test_a_damaged_file_is_an_image_or_an_image_error(seed: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(seed)
    for position, value in changes:
        data[position % len(data)] = value
    try:
        image = decoded(bytes(data[: len(data) - cut % len(data)]))
    except ImageError:
        return
    assert image.width * image.height <= 10_000


def photograph(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 97), np.cos(y / 71), np.sin((x + y) / 53)], axis=-1)
    return Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8))


@pytest.mark.parametrize(
    ("at_least_px", "expected"),
    [
        (None, (2400, 1800)),
        (1801, (2400, 1800)),
        (901, (2400, 1800)),
        (900, (1200, 900)),
        (450, (600, 450)),
        (1, (300, 225)),
    ],
)
def test_a_jpeg_is_decoded_at_a_half_a_quarter_or_an_eighth(at_least_px: int | None, expected: tuple[int, int]) -> None:
    data = encoded(photograph(2400, 1800), "JPEG", quality=95)
    image = decode_image(data, max_pixels=10**7, name="picture", at_least_px=at_least_px)
    assert image.size == expected
    assert displayed_size(data, max_pixels=10**7, name="picture") == (1800, 2400)


def test_a_jpeg_below_four_megapixels_is_decoded_whole() -> None:
    data = encoded(photograph(2000, 1990), "JPEG", quality=95)
    assert decode_image(data, max_pixels=10**7, name="picture", at_least_px=1).size == (2000, 1990)


def test_a_smaller_jpeg_shows_a_model_the_same_picture() -> None:
    data = encoded(photograph(2400, 1800), "JPEG", quality=90)
    small = [
        np.asarray(
            decode_image(data, max_pixels=10**7, name="picture", at_least_px=least).resize((150, 150), 2), np.float32
        )
        for least in (None, 300)
    ]
    assert np.abs(small[0] - small[1]).mean() < 0.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_the_mode_of_a_jpeg_does_not_matter(mode: str) -> None:
    data = encoded(photograph(2400, 1800).convert(mode), "JPEG", quality=95)
    whole, half = (
        np.asarray(decode_image(data, max_pixels=10**7, name="picture", at_least_px=least).resize((80, 60), 2), float)
        for least in (None, 400)
    )
    assert np.abs(whole - half).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_displayed_size_is_that_of_the_decoded_image(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (30, 20)), file_format, exif=exif)
    image = decode_image(data, max_pixels=1000, name="picture")
    assert displayed_size(data, max_pixels=1000, name="picture") == (image.height, image.width)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "I", "F", "CMYK", "1"])
def test_large_pictures_are_converted_in_parts_to_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    levels = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in levels:
        image = Image.fromarray((rng.random((50, 40)) * 60000 - (0 if mode == "I;16" else 9)).astype(levels[mode]))
    else:
        image = Image.fromarray(rng.integers(0, 256, (50, 40, 4), dtype=np.uint8)).convert(mode)
    assert image.mode == mode
    if mode == "P":
        image.info["transparency"] = 3
    whole = to_rgb(image)
    monkeypatch.setattr(pictures, "_BAND_PIXELS", 130)  # bands of three rows, and a last one of two
    assert to_rgb(image).tobytes() == whole.tobytes()


def test_a_large_picture_that_is_no_jpeg_is_given_smaller() -> None:
    image = photograph(2400, 1800)
    data = encoded(image, "PNG")
    for at_least_px, expected in ((None, (2400, 1800)), (901, (2400, 1800)), (900, (1200, 900)), (600, (800, 600))):
        got = decode_image(data, max_pixels=10**7, name="picture", at_least_px=at_least_px)
        assert got.size == expected
    assert displayed_size(data, max_pixels=10**7, name="picture") == (1800, 2400)
    small, whole = (np.asarray(item.resize((150, 150), 2), np.float32) for item in (got, image))
    assert np.abs(small - whole).mean() < 0.5


def test_no_more_pixels_are_decoded_at_once_than_there_is_room_for() -> None:
    budget, inside, most = PixelBudget(100), 0, 0
    lock, order = threading.Lock(), []

    def decode(pixels: int) -> None:
        nonlocal inside, most
        with budget.room(pixels):
            with lock:
                inside += min(pixels, 100)
                most = max(most, inside)
                order.append(pixels)
            time.sleep(0.001)
            with lock:
                inside -= min(pixels, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [30, 60, 250, 10, 100, 1] * 10))
    assert 60 <= most <= 100
    assert len(order) == 60


def test_small_pictures_do_not_keep_a_large_one_waiting() -> None:
    budget, done = PixelBudget(100), []
    large_waits = threading.Event()

    def large() -> None:
        large_waits.set()
        with budget.room(100):
            done.append("large")

    def small() -> None:
        with budget.room(10):
            done.append("small")

    with budget.room(10):
        threads = [threading.Thread(target=large)]
        threads[0].start()
        large_waits.wait(10)
        deadline = time.monotonic() + 10
        while not budget._entrance.locked():
            assert time.monotonic() < deadline
        threads += [threading.Thread(target=small) for _ in range(4)]
        for thread in threads[1:]:
            thread.start()
    for thread in threads:
        thread.join(10)
    assert done == ["large"] + ["small"] * 4

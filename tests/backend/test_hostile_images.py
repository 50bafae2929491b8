"""Images that mean harm, through `/predict` of a server process: each fails alone, in bounded time and memory.

Every hostile task stands between two good ones of the same request. The peak of the server's resident memory is the
kernel's own count.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from backend.settings import Settings, child_environment
from tests.backend.label_studio.web_server import WebServer
from tests.core.factories import make_clipseg_directory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

CONFIG = """<View><Image name="i" value="$image"/>
<BrushLabels name="b" toName="i"><Label value="red"/></BrushLabels>
<Choices name="c" toName="i"><Choice value="indoors"/><Choice value="outdoors"/></Choices></View>"""
MIB = 1024 * 1024
FETCH_S = 2.0
MOST_PIXELS = 25_000_000


class Server:
    """A server process over a tiny checkpoint."""

    def __init__(self, process: subprocess.Popen[str], url: str, files: Path) -> None:
        self.process, self.files = process, files
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def memory(self, field: str) -> float:
        """VmRSS or VmHWM (the peak), MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def add(self, name: str, data: bytes) -> str:
        """A local file; its address in a task."""
        (self.files / name).write_bytes(data)
        return f"/data/local-files/?d={name}"

    def predict(self, *uris: str) -> list[dict[str, Any]]:
        tasks = [{"id": number, "data": {"image": uri}} for number, uri in enumerate(uris, start=1)]
        reply = self.client.post("/predict", json={"tasks": tasks, "project": "7.17", "label_config": CONFIG})
        assert reply.status_code == 200, reply.text
        items: list[dict[str, Any]] = reply.json()["results"]
        assert len(items) == len(uris)
        return items

    def between_good_ones(self, *hostile: str) -> list[dict[str, Any]]:
        """The hostile tasks' items; the good neighbours must have predictions."""
        first, *items, last = self.predict(self.good, *hostile, self.good)
        assert {region["type"] for region in first["result"]} >= {"choices"}, first
        assert first["result"][-1]["value"] == last["result"][-1]["value"]
        return items

    @property
    def good(self) -> str:
        return "/data/local-files/?d=good.png"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    files = folder / "files"
    files.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(files / "good.png")
    make_clipseg_directory(folder / "tiny", mask_size=64, image_size=64)
    settings = Settings(
        checkpoint=str(folder / "tiny"),
        data_dir=folder / "data",
        device="cpu",
        port=0,
        redis_url="redis://127.0.0.1:1",
        local_files_root=files,
        allow_private_addresses=True,
        image_timeout_s=FETCH_S,
        image_max_pixels=MOST_PIXELS,
        predict_deadline_s=120,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "backend.cli", "serve"],
        cwd=Path(__file__).parents[2],
        env=child_environment(settings) | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listening on" in line)
        found = re.search(r"http://\S+", line)
        assert found is not None
        running = Server(process, found.group(), files)
        deadline = time.monotonic() + 120
        while running.client.get("/health").json()["model"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.between_good_ones()  # warm: what stays in memory afterwards is the requests'
        yield running
        running.client.close()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def web() -> Iterator[WebServer]:
    running = WebServer()
    yield running
    running.close()


def png_of_nothing(width: int, height: int) -> bytes:
    """A valid PNG, black, one bit a pixel: a fraction of its pixels in bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_picture_of_400_megapixels_is_refused_by_its_header(server: Server) -> None:
    uri = server.add("huge.png", png_of_nothing(20_000, 20_000))
    before = server.memory("VmRSS")
    server.forget_peak()
    (item,) = server.between_good_ones(uri)
    assert "result" not in item
    assert item["error"] == (
        "/data/local-files/?d=huge.png: it has 400000000 pixels, more than the 25000000 allowed "
        "(VLM_IMAGE_MAX_PIXELS). Import a smaller version"
    )
    assert server.memory("VmHWM") - before < 50


@pytest.mark.parametrize(
    ("start", "then", "words"),
    [
        (b"", None, "did not arrive within 2 s"),
        (b"HTTP/1.0 200 OK\r\n\r\n\x89PNG\r\n\x1a\n", None, "did not arrive within 2 s"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x", "did not arrive within 2 s"),
        (b"HTTP/1.0 200 OK\r\n\r\n", bytes(MIB), "bytes allowed (VLM_IMAGE_MAX_BYTES)"),
    ],
    ids=["never answers", "stops", "drips for ever", "streams for ever"],
)
def test_a_server_that_never_ends_is_given_up(
    start: bytes, then: bytes | None, words: str, server: Server, web: WebServer
) -> None:
    def behaviour(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while not web.over.wait(0 if then is not None and len(then) > 1 else 0.05):
            handler.wfile.write(then or b"")

    web.routes["/a.png"] = behaviour
    before = server.memory("VmRSS")
    server.forget_peak()
    (item,) = server.between_good_ones(f"{web.url}/a.png?X-Amz-Signature=secret")
    assert "result" not in item
    assert item["error"].startswith(f"{web.url}/a.png: ")
    assert words in item["error"]
    assert "secret" not in item["error"]
    # 50 MiB are read at most, into a buffer that grows.
    assert server.memory("VmHWM") - before < 150


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/", "http://[::ffff:a9fe:a9fe]/"]
)
def test_a_redirect_to_a_link_local_address_is_not_followed(target: str, server: Server, web: WebServer) -> None:
    web.redirect("/a.png", target)
    (item,) = server.between_good_ones(f"{web.url}/a.png")
    assert "result" not in item
    assert "link-local address" in item["error"]
    assert item["error"].startswith(f"{web.url}/a.png: ")


def test_a_data_url_of_100_megabytes_is_refused_and_not_copied_about(server: Server) -> None:
    uri = "data:image/png;base64," + "A" * (100 * 1000 * 1000)
    before = server.memory("VmRSS")
    server.forget_peak()
    (item,) = server.between_good_ones(uri)
    assert "result" not in item
    assert len(item["error"]) < 300
    assert "VLM_IMAGE_MAX_BYTES" in item["error"]
    # The body, its text, and what one of them is made from.
    assert server.memory("VmHWM") - before < 350


def test_an_address_of_100_megabytes_is_refused(server: Server) -> None:
    (item,) = server.between_good_ones("https://example.test/" + "é" * (20 * 1000 * 1000))
    assert "20000021 characters" in item["error"]
    assert len(item["error"]) < 500


def test_the_largest_pictures_are_decoded_one_after_the_other(server: Server) -> None:
    """Eight of 25 megapixels, as many as are worked on at the same time: alone each needs some 200 MB."""
    uris = [server.add(f"large{number}.png", png_of_nothing(5000, 5000 - number)) for number in range(8)]
    before = server.memory("VmRSS")
    server.forget_peak()
    items = server.between_good_ones(*uris)
    assert all("result" in item for item in items), items
    assert server.memory("VmHWM") - before < 500


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def broken_files() -> dict[str, tuple[bytes, str]]:
    """Files by name, each with a word of its reason."""
    noise = Image.effect_noise((64, 64), 50)
    gif = bytearray(encoded(noise, "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    ico = bytearray(encoded(noise, "ICO", sizes=[(64, 64)]))
    tiff = encoded(noise, "TIFF")
    png = bytearray(encoded(noise, "PNG"))
    png[60] ^= 0xFF
    return {
        "empty.png": (b"", "empty"),
        "page.png": (b"<!DOCTYPE html><html><title>Sign in</title></html>", "web page"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "drawing"),
        "postscript.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        "film.mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "video"),
        "scan.dcm": (bytes(128) + b"DICM" + bytes(64), "DICOM"),
        "noise.bin": (bytes(range(1, 200)), "first bytes 01 02 03"),
        "cut.png": (encoded(noise, "PNG")[:200], "broken"),
        "cut.jpg": (encoded(noise, "JPEG")[:500], "broken"),
        "cut.webp": (encoded(noise, "WEBP")[:300], "broken"),
        "cut.tif": (tiff[: len(tiff) // 2], "broken"),
        "flipped.png": (bytes(png), "broken"),
        "claims.gif": (bytes(gif), "pixels"),
        "claims.png": (png_of_nothing(1, 1)[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + bytes(17), ""),
        "cut.ico": (bytes(ico[:100]), ""),
        "bomb.png.gz": (zlib.compress(bytes(10 * MIB)), "first bytes"),
    }


def test_broken_files_fail_alone_and_say_why(server: Server) -> None:
    files = broken_files()
    uris = [server.add(name, data) for name, (data, _) in files.items()]
    before = server.memory("VmRSS")
    server.forget_peak()
    items = server.between_good_ones(*uris)
    for (name, (_, words)), item in zip(files.items(), items, strict=True):
        assert "result" not in item, name
        assert item["error"].startswith(f"/data/local-files/?d={name}: it "), item
        assert words in item["error"], item
        assert str(server.files) not in item["error"]
        assert "unexpected" not in item["error"], item
    assert server.memory("VmHWM") - before < 100


@pytest.mark.realdata
def test_the_hostile_files_of_pillows_own_tests(server: Server) -> None:
    root = os.environ.get("VLM_REALDATA", "")
    if not root or not Path(root).is_dir():
        pytest.skip(f"VLM_REALDATA is {root!r}: not a folder")
    folder = Path(root) / "hostile_images"
    about = json.loads((folder / "manifest.json").read_text())
    names = sorted(about)
    assert len(names) == 83
    uris = [server.add(name, (folder / name).read_bytes()) for name in names]
    before = server.memory("VmRSS")
    server.forget_peak()
    items = server.between_good_ones(*uris)
    refused = {name: item["error"] for name, item in zip(names, items, strict=True) if "result" not in item}
    assert set(refused) >= {name for name in names if not about[name]["ok"]}
    for name, reason in refused.items():
        assert reason.startswith(f"/data/local-files/?d={name}: it "), reason
        assert "unexpected" not in reason, reason
    assert server.memory("VmHWM") - before < 400


def test_the_same_pictures_in_the_task_itself(server: Server) -> None:
    """What is refused as a file is refused as a data URL too, and a good one is not."""
    good, page = (
        base64.b64encode(data).decode() for data in ((server.files / "good.png").read_bytes(), b"<html></html>")
    )
    items = server.between_good_ones(f"data:image/png;base64,{good}", f"data:image/png;base64,{page}")
    assert "result" in items[0]
    assert "web page" in items[1]["error"]

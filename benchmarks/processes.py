"""Cases that need a process of their own: memory, imports, the server's start."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from backend.demo.processes import child_environment, free_port
from benchmarks.pairing import Samples, seconds
from benchmarks.results import Row, ms

ROOT = Path(__file__).resolve().parent.parent

_MEMORY = """
import sys
import numpy as np
import vlm_core
from PIL import Image
model = vlm_core.load(sys.argv[1], "cpu", "float32")
rng = np.random.default_rng(0)
images = [Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)) for _ in range(32)]
conditions = model.encode_text([f"red {word}" for word in sys.argv[2].split()])
model.decode_batch(model.encode_image(images), [conditions] * 32)
weights = sum(p.nbytes for p in [*model.clip.parameters(), *model.decoder.parameters()])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(1024 * int(peak), weights)
"""
_WORDS = "circle square triangle cross heart ring house player"


def peak_memory(checkpoint: Path, _: Path, repeats: int) -> Iterator[Row]:
    used: list[float] = []
    allowed = 0.0
    for _ in range(max(1, repeats // 2)):
        out = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(checkpoint), _WORDS],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        ).stdout.split()
        peak, weights = float(out[0]), float(out[1])
        allowed = 2 * weights + 1e9
        used.append(peak / allowed)
    yield Row(
        "peak memory, 32 images x 8 prompts",
        "peak / (2 x weights + 1 GB)",
        Samples(tuple(used)),
        floor=f"{allowed / 1e9:.2f} GB allowed",
        ours=f"{Samples(tuple(used)).median * allowed / 1e9:.2f} GB",
        most=1.0,
    )


def start_up(_: Path, folder: Path, repeats: int) -> Iterator[Row]:
    vlm = str(Path(sys.executable).with_name("vlm"))
    for case, command, most in (
        ("import vlm_core", [sys.executable, "-c", "import vlm_core"], 0.3),
        ("vlm --help", [vlm, "--help"], 0.5),
    ):
        subprocess.run(command, check=True, capture_output=True)
        times = Samples(
            tuple(
                seconds(lambda command=command: subprocess.run(command, check=True, capture_output=True))  # type: ignore[misc]
                for _ in range(2 * repeats)
            )
        )
        yield Row(case, "seconds", times, ours=ms(times), most=most)
    times = Samples(tuple(_until_healthy(vlm, folder / f"start-{number}") for number in range(repeats + 1))[1:])
    yield Row("vlm serve to the first healthy answer", "seconds", times, ours=ms(times), most=3.0)


def _until_healthy(vlm: str, folder: Path) -> float:
    port = free_port()
    environment = child_environment(
        (), VLM_CHECKPOINT="demo", VLM_DATA_DIR=str(folder), VLM_HOST="127.0.0.1", PORT=str(port)
    )
    started = time.perf_counter()
    with subprocess.Popen(
        [vlm, "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                        if answer.status == 200:
                            return time.perf_counter() - started
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None or time.perf_counter() - started > 60:
                        raise
                time.sleep(0.01)
        finally:
            process.terminate()
            process.wait(30)

"""Cases of a GPU; none where there is none."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

import vlm_core
from benchmarks.cases import photograph
from benchmarks.checkpoint import PHRASES
from benchmarks.pairing import Samples
from benchmarks.results import Row
from vlm_core.model import Model

BATCH = 64


def throughput(checkpoint: Path, _: Path, repeats: int) -> Iterator[Row]:
    if not torch.cuda.is_available():
        return
    model = vlm_core.load(checkpoint, "cuda", "bfloat16")
    assert model.decoder is not None
    taps = model.decoder.config.taps
    pixels = torch.randn(BATCH, 3, 352, 352, device="cuda", dtype=torch.bfloat16)

    def encode() -> object:
        with torch.inference_mode():
            return model.clip.image_encoder(pixels, taps, pooled=False)

    flop = 2 * BATCH * _multiplications(model)
    share = Samples(tuple(flop / _on_gpu(encode) / _matrix_peak() for _ in range(2 * repeats)))
    yield Row("GPU: encoder, batch 64, bf16", "share of the measured matrix peak", share, least=0.5)

    files = []
    for seed in range(BATCH):
        buffer = io.BytesIO()
        photograph((1280, 960), seed).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    conditions = model.encode_text(PHRASES[:8])

    def whole() -> None:
        images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        model.decode_batch(model.encode_image(images), [conditions] * BATCH)

    whole()
    torch.cuda.reset_peak_memory_stats()
    rate = Samples(tuple(BATCH / _on_gpu(whole, 1) for _ in range(repeats)))
    yield Row("GPU: JPEG files of 1280 x 960 to logits, 8 prompts", "images per second", rate)
    peak = Samples((torch.cuda.max_memory_allocated() / 1e9,))
    yield Row("GPU: memory of the same", "GB at most", peak)


def _multiplications(model: Model) -> float:
    """Multiply-adds of one image through the tapped blocks."""
    tower = model.clip.image_encoder
    assert model.decoder is not None
    tokens, width = (352 // tower.patch_size) ** 2 + tower.num_prefix_tokens, tower.width
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return (max(model.decoder.config.taps) + 1) * block + (tokens - 1) * 3 * tower.patch_size**2 * width


def _on_gpu(work: Callable[[], object], rounds: int = 10) -> float:
    """Seconds of one run."""
    work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / rounds


def _matrix_peak() -> float:
    """Operations per second of one large product in bfloat16, as this GPU does it now."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / _on_gpu(lambda: a @ b)

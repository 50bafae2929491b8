"""A training step on cached activations against one that encodes its images first, at the size of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import vlm_core
from benchmarks.cases import PHRASES, ms, photograph
from benchmarks.pairing import Samples, paired, ratios
from benchmarks.results import Row
from training_jobs.recipes.finetune_decoder import Example, FinetuneConfig, PromptTable, fit
from vlm_core.types import ImageFeatures

LEAST_RATIO = 7.0
STEPS = 4
LABELS = 5


def cached_step(checkpoint: Path, _: Path, repeats: int) -> Iterator[Row]:
    """The decoder's recipe as it is, a batch of its own size; what encoding costs is added for each image of a step."""
    model = vlm_core.load(checkpoint, "cpu", "float32")
    assert model.decoder is not None
    config = FinetuneConfig(steps=STEPS)
    images = [photograph((640, 480), seed) for seed in range(config.batch_images)]
    prompts = PromptTable(model.encode_text(PHRASES[:LABELS]).clone(), tuple((row,) for row in range(LABELS)))
    encoded = [model.encode_image(image) for image in images]
    cells = encoded[0].grid_hw[0] * model.decoder.config.upsampling
    generator = np.random.default_rng(0)
    examples = []
    for number, features in enumerate(encoded):
        target = np.zeros((LABELS, cells, cells), dtype=np.uint8)
        for mask in target:
            top, left = generator.integers(0, cells // 2, 2)
            mask[top : top + cells // 3, left : left + cells // 3] = 255
        taps = tuple(tap.clone().half() for tap in features.taps)
        view = ImageFeatures(taps, features.grid_hw)
        examples.append(Example(f"{number:064d}", (view,), tuple(range(LABELS)), (target,)))
    decoder = model.decoder

    def cached() -> None:
        fit(decoder, examples, prompts, config, (STEPS,), lambda share, loss: None)

    def uncached() -> None:
        for _ in range(STEPS):
            model.encode_image(images)
        cached()

    times = paired({"uncached": uncached, "cached": cached}, repeats)
    steps = {name: Samples(tuple(value / STEPS for value in found.values)) for name, found in times.items()}
    yield Row(
        f"a training step, {config.batch_images} images, {LABELS} labels, fp32",
        "encoding / cached",
        ratios(steps["uncached"], steps["cached"]),
        reference=ms(steps["uncached"]),
        ours=ms(steps["cached"]),
        least=LEAST_RATIO,
    )

"""A training step on cached activations against one that encodes its images first, at the size of the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import vlm_core
from benchmarks.cases import PHRASES, ms, photograph
from benchmarks.pairing import Samples, ratios, seconds
from benchmarks.results import Row
from training_jobs.recipes.finetune_decoder import Example, FinetuneConfig, PromptTable, fit
from training_jobs.recipes.fit_mask_head import MaskHeadConfig
from training_jobs.recipes.fit_mask_head import fit as fit_head
from training_jobs.recipes.tune_conditions import ConditionsConfig, tune
from vlm_core.model import Model
from vlm_core.types import ImageFeatures

LEAST_RATIO = 7.0
STEPS = 4
Tick = Callable[[float, float], None]


def cached_step(checkpoint: Path, _: Path, repeats: int) -> Iterator[Row]:
    """All recipes at their own settings, on as many images; what encoding those costs comes on top of each step."""
    model = vlm_core.load(checkpoint, "cpu", "float32")
    decoder = model.decoder
    assert decoder is not None
    config, conditions = FinetuneConfig(steps=STEPS), ConditionsConfig(steps=STEPS)
    head = MaskHeadConfig(steps=STEPS, batch_images=config.batch_images)
    images = [photograph((640, 480), seed) for seed in range(config.batch_images)]
    features = [model.encode_image(image) for image in images]
    for labels in (1, 5):
        prompts = PromptTable(model.encode_text(PHRASES[:labels]).clone(), tuple((row,) for row in range(labels)))
        examples = [_example(model, number, seen, labels) for number, seen in enumerate(features)]
        about = range(labels)
        fits: dict[str, Callable[[Tick], object]] = {
            "conditions": lambda tick, e=examples, p=prompts, a=about: tune(decoder, e, p, a, conditions, config, tick),
            "head": lambda tick, e=examples, p=prompts: fit_head(decoder.config, e, p, head, config, tick),
            "decoder": lambda tick, e=examples, p=prompts: fit(decoder, e, p, config, tick),
        }
        for name, learn in fits.items():
            steps, whole = [], []
            _step_seconds(learn)
            for _round in range(repeats):
                encoding = seconds(lambda: model.encode_image(images))
                steps.append(_step_seconds(learn))
                whole.append(encoding + steps[-1])
            cached, uncached = Samples(tuple(steps)), Samples(tuple(whole))
            yield Row(
                f"a training step of the {name}, {len(images)} images, {labels} label{'s' * (labels > 1)} each, fp32",
                "encoding / cached",
                ratios(uncached, cached),
                reference=ms(uncached),
                ours=ms(cached),
                least=LEAST_RATIO,
            )


def _step_seconds(learn: Callable[[Tick], object]) -> float:
    """Of one step, without what a fit does once."""
    ends: list[float] = []
    learn(lambda share, loss: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _example(model: Model, number: int, seen: ImageFeatures, labels: int) -> Example:
    assert model.decoder is not None
    cells = seen.grid_hw[0] * model.decoder.config.upsampling
    target = np.zeros((labels, cells, cells), dtype=np.uint8)
    target[:, cells // 4 : cells // 2, cells // 4 : cells // 2] = 255
    taps = tuple(tap.clone().half() for tap in seen.taps)
    return Example(f"{number:064d}", (ImageFeatures(taps, seen.grid_hw),), tuple(range(labels)), (target,))

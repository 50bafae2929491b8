"""Features made by hand, for tests of recipes: one channel of a token says what is there."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from training_jobs.recipes.finetune_decoder import Example, FinetuneConfig, PromptTable
from vlm_core.clipseg import CLIPSegDecoder, DecoderConfig
from vlm_core.types import ImageFeatures

GRID = (4, 4)
QUICK = FinetuneConfig(steps=60, learning_rate=2e-2, body_rate=1.0, hold=0.0, pull=0.0, threads=1)


def for_steps(config: FinetuneConfig, steps: int) -> FinetuneConfig:
    return config.model_copy(update={"steps": steps})


def make_decoder(seed: int = 0) -> CLIPSegDecoder:
    torch.manual_seed(seed)
    config = DecoderConfig(
        taps=(0, 1), tap_width=6, condition_dim=5, reduce_dim=8, num_heads=2, mlp_width=16, head_kernels=(2,)
    )
    return CLIPSegDecoder(config).eval()


def prompts() -> PromptTable:
    # Two labels; the second has two phrases.
    return PromptTable(torch.eye(5)[:3] * 2, ((0,), (1, 2)))


def example(number: int, *, views: int = 2) -> Example:
    """Label 0 where channel 0 is set, label 1 where channel 1 is; label 1 is absent from every third image."""
    generator = np.random.default_rng(number)
    seen, targets = [], []
    for _ in range(views):
        cells = np.zeros((2, *GRID), dtype=bool)
        cells[0, generator.integers(4), generator.integers(4)] = True
        if number % 3:
            cells[1, :, generator.integers(4)] = True
            cells[1] &= ~cells[0]
        tokens = generator.normal(0, 0.3, size=(1, 17, 6)).astype(np.float32)
        tokens[0, 1:, 0] += 2 * cells[0].reshape(-1)
        tokens[0, 1:, 1] += 2 * cells[1].reshape(-1)
        tap = torch.from_numpy(tokens).half()
        seen.append(ImageFeatures((tap, tap), GRID))
        targets.append(np.kron(cells, np.ones((1, 2, 2), dtype=np.uint8)).astype(np.uint8) * 255)
    return Example(hashlib.sha256(str(number).encode()).hexdigest(), tuple(seen), (0, 1), tuple(targets))


def examples(numbers: range) -> list[Example]:
    return [example(number) for number in numbers]

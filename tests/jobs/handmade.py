"""Features made by hand, for tests of recipes: one channel of a token says what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from timm.models.vision_transformer import Block

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


def make_blocks() -> tuple[Block, ...]:
    """One block of an encoder, which leads from the first tap to the second and attends to nothing yet."""
    torch.manual_seed(5)
    block = Block(dim=6, num_heads=1, mlp_ratio=4.0).eval().requires_grad_(False)
    block.attn.proj.weight.zero_()
    return (block,)


def switched_example(number: int, blocks: Sequence[Block]) -> Example:
    """Label 0 covers the image where the class token has channel 2 set; label 1 as always.

    A head does not see that token: only blocks that attend to it can tell.
    """
    made = example(number, views=1)
    tokens = made.views[0].taps[0].float().div(2).round().mul(2)  # no noise: there is nothing else to learn by heart
    target = made.targets[0].copy()
    switched = number % 2 == 0
    tokens[0, 0, 2] = 4.0 if switched else -4.0
    target[0] = 255 * switched
    with torch.no_grad():
        after = torch.nn.Sequential(*blocks)(tokens)
    return replace(made, views=(ImageFeatures((tokens.half(), after.half()), GRID),), targets=(target,))

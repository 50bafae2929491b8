"""Learn what phrases mean to the decoder, and change nothing else.

A phrase acts on an image through one vector, its condition. For a label that is marked badly (a word that the text
encoder does not know, or knows in another sense) the vector itself is learned from the corrected masks, with every
weight frozen: prompt tuning (Zhou et al., arXiv:2109.01134), but behind the text encoder, where it is a few hundred
numbers a phrase. Other phrases are answered as before, to the bit: no label can pay for another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training_jobs.recipes.batch import Batch
from training_jobs.recipes.finetune_decoder import (
    Batches,
    Example,
    FinetuneConfig,
    PromptTable,
    corrections_loss,
)
from training_jobs.recipes.micro_batches import Backward, MicroBatches, share
from training_jobs.recipes.schedule import rise_and_fall
from vlm_core.clipseg import CLIPSegDecoder


class ConditionsConfig(BaseModel):
    """Settings of the recipe; what it shares with `finetune_decoder` it takes from there.

    Raises:
        pydantic.ValidationError: a value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(default=200, ge=1, description="Of one fit; twice as many learn these images by heart.")
    learning_rate: float = Field(
        default=0.1, gt=0, description="Of Adam: about so much of the text's condition moves in ten steps."
    )
    batch_images: int = Field(default=6, ge=1, description="In a step.")
    pull: float = Field(default=0.1, ge=0, description="Weight of the squared relative distance from the text's.")
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="Of the steps, with a rising rate; then it falls.")


def tune(
    decoder: CLIPSegDecoder,
    examples: Sequence[Example],
    prompts: PromptTable,
    labels: Collection[int],
    config: ConditionsConfig,
    shared: FinetuneConfig,
    tick: Callable[[float, float], None],
    parts: MicroBatches | None = None,
) -> Tensor:
    """Learn the conditions of some labels' phrases.

    Args:
        decoder: that they are for; not changed.
        examples: at least one, each image once. **Only** training images.
        prompts: of the project's labels; where learning starts.
        labels: whose phrases are learned, at least one.
        config: the settings.
        shared: loss weights and seed. With equal input and threads, two runs on a CPU give equal bits.
        tick: called after each step with done share (0 to 1) and loss; may raise to give up.
        parts: how batches are computed; None: anew.

    Returns:
        Conditions (P, E), float32, CPU; rows of other labels' phrases are those of `prompts`.

    Raises:
        ValueError: no example says anything about the labels.
    """
    chosen = sorted(labels)
    ordered = sorted(examples, key=lambda example: example.image)  # the order of arrival changes nothing
    about = [part for example in ordered if (part := _about(example, chosen)) is not None]
    if not about:
        raise ValueError(f"no example speaks about the labels {chosen}")
    device = next(decoder.parameters()).device
    frozen = copy.deepcopy(decoder).float().requires_grad_(False)
    start = prompts.conditions.to(device, torch.float32)
    rows = sorted({row for label in chosen for row in prompts.groups[label]})
    # In parts of the text's length: encoders differ in scale.
    size = start[rows].square().mean().sqrt()
    moved = torch.zeros(len(rows), start.shape[1], device=device, requires_grad=True)
    optimiser = torch.optim.Adam([moved], lr=config.learning_rate, fused=device.type == "cuda")
    schedule = rise_and_fall(optimiser, config.steps, config.warmup_share)
    shared = shared.model_copy(update={"batch_images": config.batch_images})
    batches = Batches(about, prompts, shared, np.random.default_rng([shared.seed, 29]), device)
    places = torch.tensor(rows, device=device)

    def loss_of(batch: Batch, part: slice) -> Tensor:
        features, picked, target = batch.part(part)
        table = start.index_add(0, places, size * moved)
        logits = frozen(features.taps, table[picked], features.grid_hw)
        loss = corrections_loss(logits, target, shared, of=batch.target)
        return loss + share(part, len(batch)) * config.pull * moved.square().mean()

    backward = Backward(loss_of, optimiser.zero_grad, parts or MicroBatches())
    batch = batches.draw()
    for step in range(1, config.steps + 1):
        loss = backward(batch)
        optimiser.step()
        schedule.step()
        if step < config.steps:
            batch = batches.draw()  # while a GPU still computes
        tick(step / config.steps, float(loss))
    learned = start.clone()
    learned[rows] += size * moved.detach()
    return learned.cpu()


def _about(example: Example, labels: Sequence[int]) -> Example | None:
    """What an example says about some labels; None where that is nothing."""
    kept = [index for index, label in enumerate(example.labels) if label in labels]
    if not kept:
        return None
    return replace(
        example,
        labels=tuple(example.labels[index] for index in kept),
        targets=tuple(target[kept] for target in example.targets),
    )

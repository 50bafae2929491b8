"""Learn masks of a project's labels straight from the image encoder's features; see `vlm_core.mask_head`.

All labels that images speak about are outputs of one body, also those that the decoder marks well: what the others look
like teaches the body what a label is not. Which of the outputs are used at all is for `training_jobs.ladder` to choose.

What keeps few images from being learned by heart: decoupled weight decay (AdamW, arXiv:1711.05101), dropout of whole
channels (arXiv:1411.4280), several views of each image, and few steps.

With `blocks`, the image encoder's last blocks learn with the head: low-rank changes of their linear maps, by peft
(LoRA: Hu et al., arXiv:2106.09685). They run in each step, forwards and backwards; what comes before them is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training_jobs.recipes.batch import Batch
from training_jobs.recipes.finetune_decoder import (
    Batches,
    Example,
    FinetuneConfig,
    PromptTable,
    State,
    corrections_loss,
)
from training_jobs.recipes.micro_batches import Backward, MicroBatches
from training_jobs.recipes.schedule import rise_and_fall
from vlm_core.adapted_blocks import AdaptedBlocks
from vlm_core.clipseg import DecoderConfig
from vlm_core.mask_head import Kept, MaskHead, load_whole_state, whole_state

_LINEAR = ("qkv", "proj", "fc1", "fc2")
"""timm's names of a block's linear maps."""
_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""peft's names of A and B."""

_MOST_SPREAD_IMAGES = 64
"""Whose tokens say how channels are spread; more say the same."""
_LEAST_SPREAD = 0.1
"""In parts of the median channel's: what hardly changes in the images that there are may change in others, and must not
drown all else then."""


class MaskHeadConfig(BaseModel):
    """Settings of the recipe; what it shares with `finetune_decoder` it takes from there.

    Raises:
        pydantic.ValidationError: a value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(default=300, ge=1, description="Of one fit.")
    batch_images: int = Field(default=12, ge=1, description="In a step.")
    hidden: int = Field(default=64, ge=1, description="Width of the body.")
    learning_rate: float = Field(default=1e-2, gt=0, description="Of AdamW, at its highest.")
    weight_decay: float = Field(default=1.0, ge=0, description="In parts of the learning rate, a step.")
    dropout: float = Field(default=0.15, ge=0, lt=1, description="Share of channels that are left out while learning.")
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="Of the steps, with a rising rate; then it falls.")
    lora_rank: int = Field(default=8, ge=1, description="Of the changes to the encoder's blocks, where these learn.")
    lora_rate: float = Field(default=3e-3, gt=0, description="Learning rate of those, at its highest.")


def fit(
    decoder: DecoderConfig,
    examples: Sequence[Example],
    prompts: PromptTable,
    config: MaskHeadConfig,
    shared: FinetuneConfig,
    tick: Callable[[float, float], None],
    parts: MicroBatches | None = None,
    device: torch.device | None = None,
    blocks: Sequence[nn.Module] = (),
) -> State:
    """Train a head for all labels.

    Args:
        decoder: beside which it will answer.
        examples: at least one, each image once. **Only** training images.
        prompts: of their labels; only how many labels there are matters.
        config: the settings.
        shared: loss weights and seed. With equal input and threads, two runs on a CPU give equal bits.
        tick: called after each step with done share (0 to 1) and loss; may raise to give up.
        parts: how batches are computed; None: anew.
        device: where; None: the CPU.
        blocks: of the image encoder (`Model.adaptable_blocks`), which stay as they are; empty: none learns.

    Returns:
        The weights of a `MaskHead` with an output for each label, float32 on the CPU; `head_of` reads them.
    """
    device = device or torch.device("cpu")
    ordered = sorted(examples, key=lambda example: example.image)  # the order of arrival changes nothing
    head = _start(decoder, ordered, len(prompts.groups), config, shared.seed, device)
    labels = PromptTable(prompts.conditions, tuple((label,) for label in range(len(prompts.groups))))
    drawn = shared.model_copy(update={"batch_images": config.batch_images, "labels_per_image": len(labels.groups)})
    factor = decoder.upsampling // head.cells
    small = [replace(one, targets=tuple(_shrunk(target, factor) for target in one.targets)) for one in ordered]
    generator = np.random.default_rng([shared.seed, 43])
    batches = Batches(small, labels, drawn, generator, device)
    learning: list[dict[str, Any]] = [{"params": list(head.parameters())}]
    if blocks:
        head.adapted = _adapted(decoder, blocks, config.lora_rank, shared.seed, device)
        changes = list(head.adapted.changes.values())
        learning.append({"params": changes, "lr": config.lora_rate, "weight_decay": 0.0})
    optimiser = torch.optim.AdamW(
        learning, lr=config.learning_rate, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )
    schedule = rise_and_fall(optimiser, config.steps, config.warmup_share)
    batch = batches.draw()
    # Drawn before a step and not within it: a step that is taken in parts, or recorded, must draw nothing.
    kept: Kept = (
        torch.ones(len(batch), len(head.mean), device=device),
        torch.ones(len(batch), config.hidden, device=device),
    )

    def loss_of(batch: Batch, part: slice) -> Tensor:
        features, rows, target = batch.part(part)
        logits = head(features.taps, features.grid_hw, (kept[0][part], kept[1][part]))
        asked = logits.gather(1, rows[..., None, None].expand(-1, -1, *logits.shape[-2:]))
        return corrections_loss(asked, target, shared, of=batch.target)

    backward = Backward(loss_of, optimiser.zero_grad, parts or MicroBatches())
    for step in range(1, config.steps + 1):
        for mask in kept:
            mask.copy_(_drop(mask.shape, config.dropout, generator))
        loss = backward(batch)
        optimiser.step()
        schedule.step()
        if step < config.steps:
            batch = batches.draw()  # while a GPU still computes
        tick(step / config.steps, float(loss))
    return {name: value.detach().to("cpu", torch.float32).clone() for name, value in whole_state(head).items()}


def head_of(decoder: DecoderConfig, state: State, device: torch.device, blocks: Sequence[nn.Module] = ()) -> MaskHead:
    """What `fit` has learned, to be asked: its outputs are the labels, by number. `blocks` as it had them, or any."""
    hidden, labels = state["out.weight"].shape[:2]
    head = MaskHead(decoder, [str(label) for label in range(labels)], hidden)
    load_whole_state(head, state, blocks)
    return head.to(device, torch.float32).eval().requires_grad_(False)


def _adapted(
    decoder: DecoderConfig, blocks: Sequence[nn.Module], rank: int, seed: int, device: torch.device
) -> AdaptedBlocks:
    """Copies of the blocks that answer as these do yet; their `changes` are what learns."""
    from peft import LoraConfig, inject_adapter_in_model  # some seconds; only who asks for it waits

    adapted = AdaptedBlocks(decoder.taps, blocks, {}).to(device, torch.float32)
    kind = LoraConfig(r=rank, lora_alpha=rank, target_modules=[*_LINEAR])  # of scale 1: B A is the change
    inject_adapter_in_model(kind, adapted.blocks)
    random = torch.Generator().manual_seed(seed + 1)  # its own: other fits may run beside this one
    for name, down in adapted.blocks.named_parameters():
        if name.endswith(_DOWN):
            up = adapted.blocks.get_parameter(name.removesuffix(_DOWN) + _UP)
            start = torch.empty(down.shape)
            torch.nn.init.kaiming_uniform_(start, a=5**0.5, generator=random)
            with torch.no_grad():
                down.copy_(start)
                up.zero_()
            linear = name.removesuffix(_DOWN)
            adapted.changes |= {f"{linear}.A": down, f"{linear}.B": up}
    return adapted


def _start(
    decoder: DecoderConfig,
    examples: Sequence[Example],
    labels: int,
    config: MaskHeadConfig,
    seed: int,
    device: torch.device,
) -> MaskHead:
    """A head that marks nothing yet, for channels as they are spread in the examples."""
    head = MaskHead(decoder, [str(label) for label in range(labels)], config.hidden)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (head.reduce, head.mix):
            torch.nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=random)
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it is built with one
        torch.nn.init.normal_(head.out.weight, std=0.02, generator=random)
        torch.nn.init.constant_(head.out.bias, -2.0)  # type: ignore[arg-type]  # likewise
        some = [example.views[0].taps for example in examples[:_MOST_SPREAD_IMAGES]]
        tokens = torch.cat([head.inputs([tap.to(device).float() for tap in taps]) for taps in some]).flatten(0, 1)
        head.to(device)
        head.mean.copy_(tokens.mean(0))
        spread = tokens.std(0, correction=0)
        head.spread.copy_(torch.maximum(spread, _LEAST_SPREAD * spread.median()).clamp_min(1e-6))
    return head.train()


def _shrunk(target: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """(K, h, w) -> (K, h / factor, w / factor), means."""
    labels, rows, columns = target.shape
    blocks = target.reshape(labels, rows // factor, factor, columns // factor, factor)
    means: NDArray[np.uint8] = np.rint(blocks.mean((2, 4))).astype(np.uint8)
    return means


def _drop(shape: torch.Size, share: float, generator: np.random.Generator) -> Tensor:
    """What dropout multiplies channels with: 0, or what keeps their mean."""
    return torch.from_numpy((generator.random(tuple(shape)) >= share).astype(np.float32) / (1 - share))

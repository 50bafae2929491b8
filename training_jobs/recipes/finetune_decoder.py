"""Fine-tune the decoder on a project's corrections.

The encoders stay frozen and their features are computed once; only the decoder learns: all of it by default, or with
`body_rate: 0` FiLM alone, the two linear maps through which phrases act on an image. `training_jobs.ladder` decides
whether it learns at all, from which conditions, and how far to go towards what was learned (WiSE-FT, arXiv:2109.01903:
part of the way is often better than all of it).

What keeps few corrections from doing harm: the answers to labels that were marked well are held (`_Hold`), the pull
towards the start (L2-SP, arXiv:1802.01483), an average over the weights of the last steps, labels that are not there as
negatives, several views of each image, and the gate (`training_jobs.promote`), which this module knows nothing of.

AdamW moves each weight by about the learning rate per step whatever the loss's scale, and decoders of this family share
their width (64) and so the scale of their weights; so one rate serves the small and the published one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training_jobs.recipes.batch import Batch
from training_jobs.recipes.micro_batches import Backward, MicroBatches, share
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.losses import dice_losses
from vlm_core.types import ImageFeatures

NAME = "finetune_decoder"

_BAD, _GOOD = 0.5, 0.8
"""IoU up to which a label is free to change, and from which its answers are held with full weight."""

State = dict[str, Tensor]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class FinetuneConfig(BaseModel):
    """All settings of the recipe; part of the manifest.

    Raises:
        pydantic.ValidationError: a value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=0, ge=0, description="Of order, views and phrases; with it a CPU repeats every bit.")
    steps: int = Field(default=200, ge=1, description="Of one fit.")
    batch_images: int = Field(default=6, ge=1, description="In a step.")
    labels_per_image: int = Field(default=5, ge=1, description="Drawn anew each step where there are more.")
    learning_rate: float = Field(default=7e-4, gt=0, description="Of FiLM, through which the phrases act.")
    body_rate: float = Field(default=1.0, ge=0, description="Of all else, in parts of the learning rate; 0: kept.")
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="Of the steps, with a rising rate.")
    average: float = Field(default=0.97, ge=0, lt=1, description="Memory of the running average of weights.")
    pull: float = Field(default=1.0, ge=0, description="Weight of the squared relative distance from the start.")
    hold: float = Field(
        default=30.0, ge=0, description="Weight of how far the answers move for labels that were marked well before."
    )
    dice_weight: float = Field(default=1.0, ge=0, description="Beside cross entropy, for labels that are there.")
    absent_weight: float = Field(default=0.5, ge=0, description="Of labels that are not there.")
    max_gradient: float = Field(default=1.0, gt=0, description="Norm at which gradients are cut.")
    encoded_views: int = Field(default=240, ge=1, description="Views in all, shared among the images.")
    max_views: int = Field(default=8, ge=1, description="Of one image.")
    interpolations: tuple[Share, ...] = Field(
        default=(0.5, 0.75, 1.0), min_length=1, description="How far to go towards what was learned; 0 is tried too."
    )
    threads: int | None = Field(default=None, ge=1, description="Of the CPU; None: as torch decides.")

    def views(self, images: int) -> int:
        """Views of each of `images` images, at least one."""
        return min(self.max_views, max(1, self.encoded_views // max(1, images)))


@dataclass(frozen=True)
class Example:
    """One training image.

    Attributes:
        image: content hash.
        views: features of one image each, float16; the first is of the image itself. On the CPU, or where it is
            learned from them (`training_jobs.recipes.resident`).
        labels: K indices into the prompt table: those that its annotation speaks about.
        targets: per view uint8 (K, h, w): share of each cell that is covered, 0 to 255.
    """

    image: str
    views: tuple[ImageFeatures, ...]
    labels: tuple[int, ...]
    targets: tuple[NDArray[np.uint8], ...]

    @property
    def present(self) -> frozenset[str]:
        """The labels that are there, as strings for the stratified split."""
        return frozenset(str(label) for label, mask in zip(self.labels, self.targets[0], strict=True) if mask.any())


@dataclass(frozen=True)
class PromptTable:
    """Labels and the conditions of their phrases.

    Attributes:
        conditions: (P, E), projected and not normalised.
        groups: for each label the rows of its phrases.
    """

    conditions: Tensor
    groups: tuple[tuple[int, ...], ...]


def fit(
    start: CLIPSegDecoder,
    examples: Sequence[Example],
    prompts: PromptTable,
    config: FinetuneConfig,
    tick: Callable[[float, float], None],
    parts: MicroBatches | None = None,
    alive: Callable[[], None] = lambda: None,
) -> State:
    """Train for all of the steps.

    Args:
        start: where learning starts; not changed.
        examples: at least one.
        prompts: of their labels.
        config: the settings.
        tick: called after each step with done share (0 to 1) and loss; may raise to give up.
        parts: how batches are computed; None: anew.
        alive: called between the images that are looked at before the first step; may raise to give up.

    Returns:
        The averaged weights after the last step, float32 on the CPU.
    """
    decoder = copy.deepcopy(start).float().requires_grad_(True)
    device = next(decoder.parameters()).device
    origin = [parameter.detach().clone() for parameter in decoder.parameters()]
    size = sum(float(value.square().sum()) for value in origin)
    average = copy.deepcopy(decoder).requires_grad_(False)
    film = [parameter for name, parameter in decoder.named_parameters() if name.startswith("film_")]
    body = [parameter for name, parameter in decoder.named_parameters() if not name.startswith("film_")]
    groups: list[dict[str, Any]] = [{"params": film}, {"params": body, "lr": config.learning_rate * config.body_rate}]
    # fused: one kernel for all weights, where a GPU would wait for a thousand small ones.
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0, fused=device.type == "cuda")
    warmup = max(1, round(config.warmup_share * config.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / warmup))
    generator = np.random.default_rng([config.seed, 17])
    batches = Batches(examples, prompts, config, generator, device)
    table = prompts.conditions.to(device, torch.float32)
    hold = _Hold.of(start, prompts, quality(start, examples, prompts, alive), device) if config.hold else None

    def loss_of(batch: Batch, part: slice) -> Tensor:
        features, rows, target = batch.part(part)
        logits = decoder(features.taps, table[rows], features.grid_hw)
        loss = corrections_loss(logits, target, config, of=batch.target)
        weight = share(part, len(batch))
        if config.pull:
            pairs = zip(decoder.parameters(), origin, strict=True)
            moved = torch.stack([(new - old).square().sum() for new, old in pairs]).sum()
            loss = loss + weight * config.pull / size * moved
        if hold is not None:
            loss = loss + weight * config.hold * hold(features, rows, logits)
        return loss

    backward = Backward(loss_of, optimiser.zero_grad, parts or MicroBatches())
    batch = batches.draw()
    for step in range(1, config.steps + 1):
        loss = backward(batch)
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.max_gradient)
        optimiser.step()
        schedule.step()
        memory = min(config.average, (1 + step) / (10 + step))
        blend = get_ema_multi_avg_fn(memory)  # type: ignore[no-untyped-call]  # torch has no annotation here
        blend(list(average.parameters()), list(decoder.parameters()), step)
        if step < config.steps:
            batch = batches.draw()  # while a GPU still computes
        tick(step / config.steps, float(loss))
    return decoder_state(average)


def corrections_loss(logits: Tensor, target: Tensor, config: FinetuneConfig, of: Tensor | None = None) -> Tensor:
    """Cross entropy and Dice where a label is there, weighted cross entropy where it is not.

    Args:
        logits: (B, K, h, w).
        target: the same shape, 0..1; a label is absent where its target is 0 everywhere.
        config: the weights.
        of: the targets of the batch of which these images are a part, of any type: the losses of all its parts sum up
            to the batch's. None: these are all.
    """
    # No question to the device whose answer the CPU would wait for, and the same kernels whatever the batch.
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    there, there_in_all = _there(target), _there(target if of is None else of)
    weight, weight_of_all = (torch.where(one, 1.0, config.absent_weight) for one in (there, there_in_all))
    loss = (entropy * weight).sum() / weight_of_all.sum().clamp_min(1e-6)
    if config.dice_weight:
        dice = (dice_losses(logits, target) * there).sum() / there_in_all.sum().clamp_min(1)
        loss = loss + config.dice_weight * dice
    return loss


def _there(target: Tensor) -> Tensor:
    """Which labels are there, bool (B, K)."""
    return target.flatten(-2).amax(-1) > 0


@torch.inference_mode()
def quality(
    decoder: CLIPSegDecoder,
    examples: Sequence[Example],
    prompts: PromptTable,
    alive: Callable[[], None] = lambda: None,
) -> list[float]:
    """How well each label is marked: intersection over union, both summed over the images, 0..1.

    1.0 for a label that is nowhere and marked nowhere.
    """
    device = next(decoder.parameters()).device
    both, either = (torch.zeros(len(prompts.groups), dtype=torch.int64, device=device) for _ in range(2))
    for example in examples:
        alive()
        rows = [row for label in example.labels for row in prompts.groups[label]]
        taps = tuple(tap.to(device).float() for tap in example.views[0].taps)
        logits = decoder(taps, prompts.conditions[rows].to(device)[None], example.views[0].grid_hw)[0]
        phrases = logits.split([len(prompts.groups[label]) for label in example.labels])
        predicted = torch.stack([each.amax(0) for each in phrases]) >= 0
        true = torch.from_numpy(example.targets[0]).to(device) >= 128
        labels = torch.tensor(example.labels, device=device)
        both.index_add_(0, labels, (predicted & true).sum((-2, -1)))
        either.index_add_(0, labels, (predicted | true).sum((-2, -1)))
    return [b / e if e else 1.0 for b, e in zip(both.tolist(), either.tolist(), strict=True)]


class _Hold:
    """How far the answers have moved for phrases of labels that were marked well before.

    One loss for all labels lets a new label pay with the known ones: the same weights serve all phrases. So the answers
    to known phrases are held where they were, on the images that there are (learning without forgetting, Li & Hoiem,
    arXiv:1606.09282).
    """

    @classmethod
    def of(
        cls, start: CLIPSegDecoder, prompts: PromptTable, quality: Sequence[float], device: torch.device
    ) -> _Hold | None:
        """None where no label was marked well enough to be held."""
        return cls(start, prompts, quality, device) if max(quality, default=0.0) > _BAD else None

    def __init__(
        self, start: CLIPSegDecoder, prompts: PromptTable, quality: Sequence[float], device: torch.device
    ) -> None:
        self._start = copy.deepcopy(start).float().to(device).requires_grad_(False)
        self._table = prompts.conditions.to(device, torch.float32)
        weights = torch.zeros(len(self._table), device=device)
        for value, group in zip(quality, prompts.groups, strict=True):
            for row in group:
                weights[row] = max(float(weights[row]), min(1.0, max(0.0, (value - _BAD) / (_GOOD - _BAD))))
        self._weights = weights

    def __call__(self, features: ImageFeatures, rows: Tensor, logits: Tensor) -> Tensor:
        """Mean over images and labels of the weighted mean squared change of the probabilities, a scalar.

        Args:
            features: of the batch.
            rows: (B, K) of the prompt table.
            logits: (B, K, h, w), what the decoder says now.
        """
        with torch.no_grad():
            before = self._start(features.taps, self._table[rows], features.grid_hw).sigmoid()
        moved: Tensor = (self._weights[rows] * (logits.sigmoid() - before).square().mean((-2, -1))).mean()
        return moved


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> State:
    """Weights `share` of the way from `start` to `end`."""
    return {name: torch.lerp(value, end[name], share) for name, value in start.items()}


class Batches:
    """Draws batches: each image once, in a random view, before any comes again."""

    def __init__(
        self,
        examples: Sequence[Example],
        prompts: PromptTable,
        config: FinetuneConfig,
        generator: np.random.Generator,
        device: torch.device,
    ) -> None:
        self._examples = examples
        self._prompts = prompts
        self._size = min(config.batch_images, len(examples))
        self._width = min(config.labels_per_image, min(len(example.labels) for example in examples))
        self._generator = generator
        self._device = device
        self._queue: list[int] = []

    def draw(self) -> Batch:
        """The next batch; all have one shape."""
        taps: list[tuple[Tensor, ...]] = []
        rows: list[list[int]] = []
        targets: list[NDArray[np.uint8]] = []
        for _ in range(self._size):
            if not self._queue:
                self._queue = [int(index) for index in self._generator.permutation(len(self._examples))]
            example = self._examples[self._queue.pop()]
            view = int(self._generator.integers(len(example.views)))
            picked = self._labels(example, view)
            taps.append(example.views[view].taps)
            rows.append([self._phrase(example.labels[index]) for index in picked])
            targets.append(example.targets[view][picked])
        device = self._device
        return Batch(
            taps=tuple(torch.cat([tap.to(device) for tap in column]) for column in zip(*taps, strict=True)),
            rows=torch.tensor(rows).to(device),
            target=torch.from_numpy(np.stack(targets)).to(device),
            grid_hw=self._examples[0].views[0].grid_hw,
        )

    def _labels(self, example: Example, view: int) -> list[int]:
        """Positions of the labels to ask for, those that are there first."""
        order = self._generator.permutation(len(example.labels))
        there = [bool(mask.any()) for mask in example.targets[view]]
        return sorted((int(index) for index in order), key=lambda index: not there[index])[: self._width]

    def _phrase(self, label: int) -> int:
        """One of the label's phrases: each must find what the label means."""
        group = self._prompts.groups[label]
        return group[int(self._generator.integers(len(group)))]


def decoder_state(decoder: CLIPSegDecoder) -> State:
    """Its weights, float32, CPU, copied."""
    return {name: value.detach().to("cpu", torch.float32).clone() for name, value in decoder.state_dict().items()}

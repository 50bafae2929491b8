"""Recipe: train a dual encoder on image-text pairs.

Read from top to bottom: check all settings, set up, train, save. Run it with `vlm train clip`, also under `torchrun`
for several processes, or call :func:`train_clip` with a source of one's own.

Source: Radford et al., arXiv:2103.00020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlm_core import checkpoint
from vlm_core.clip import CLIP
from vlm_core.data import PairSource, batch_indices
from vlm_core.losses import contrastive_loss, contrastive_loss_of_part
from vlm_core.projection import normalised
from vlm_core.recipes import common
from vlm_core.recipes.best import Best
from vlm_core.recipes.clip_settings import TrainClipSettings
from vlm_core.recipes.clip_validation import MEAN_RECALL, Validation
from vlm_core.recipes.distributed import Processes
from vlm_core.recipes.encoders import make_image_encoder, make_text_encoder, make_transform
from vlm_core.recipes.event_log import EventLog, event_log_problems
from vlm_core.recipes.grad_cache import cached_backward, random_state, set_random_state
from vlm_core.recipes.progress import Progress
from vlm_core.recipes.towers import Pairs, Towers

__all__ = ["TrainClipSettings", "train_clip"]


def train_clip(
    settings: TrainClipSettings,
    train: PairSource,
    validation: PairSource | None,
    output: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Train, measuring as it goes, and write `output/checkpoint`.

    Where several processes were joined (`vlm_core.recipes.distributed`), each calls this with the same arguments and
    works on its part of every batch. Rank 0 alone measures and writes; `output` must be one directory for all.

    Args:
        settings: see `TrainClipSettings`.
        train: what to learn from. An image that raises `UnreadableSampleError` is left out, and another one taken.
        validation: what to measure matching on; None measures nothing but the loss.
        output: directory of the run: `checkpoint/`, `metrics.jsonl`, `metrics.png`, and the state to resume from.
        resume: go on with the run in `output`; with the same settings it ends as if never interrupted.
        quiet: no progress bar.

    Returns:
        The checkpoint's directory, in our own layout.

    Raises:
        SettingsError: settings that cannot work, all of them listed.
        CheckpointError: an encoder cannot be loaded.
        DataError: an image or text that cannot be read.
        DivergedError: several processes no longer hold the same weights.
    """
    # --- check everything before any work ----------------------------------------------------------------
    processes = Processes.joined(settings.device)
    measured_on = None if validation is None else Validation(validation, settings.validation_images, settings.seed)
    problems = settings.problems() + _problems_together(settings, train, measured_on, processes)
    problems += common.output_problems(output, resume)
    if processes.any(bool(problems)) and not problems:
        problems = ["another process cannot use them, or sees another output directory; its message says why"]
    common.raise_all(problems)

    # --- set up ------------------------------------------------------------------------------------------
    common.seed_everything(settings.seed)
    device = processes.device
    precision = common.resolve_precision(settings.precision, device)
    image_encoder = make_image_encoder(settings.image_encoder, settings.image_args, settings.image_size)
    text_encoder, tokenizer = make_text_encoder(
        settings.text_encoder, settings.text_args, settings.pooling, settings.max_tokens, train.vocabulary()
    )
    image_size = settings.image_size or int(image_encoder.vit.patch_embed.img_size[0])
    transform = make_transform(image_encoder, image_size, crop=settings.crop)
    clip = CLIP(image_encoder, text_encoder, settings.projection_dim).to(device)
    towers = Towers(settings, clip, tokenizer, transform, train, device)
    optimizer = torch.optim.AdamW(
        common.parameter_groups([clip], settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.98)
    )
    processes.copy_weights(clip)
    run = _Run(settings, processes, output, clip, optimizer)
    start = run.resume() if resume else run.begin()
    validate = None if measured_on is None else partial(measured_on.measure, clip, tokenizer, transform)

    def embed(pairs: Pairs) -> tuple[Tensor, Tensor]:
        with common.computing(device, precision):
            image = normalised(clip.visual_projection(towers.image_features(pairs)))
            text = normalised(clip.text_projection(towers.text_features(pairs)))
        return image.float(), text.float()

    def loss_of(image: Tensor, text: Tensor) -> Tensor:
        if processes.size == 1:
            return contrastive_loss(clip.temperature_scale * image @ text.T)
        return contrastive_loss_of_part(
            clip.temperature_scale * image @ processes.gather(text).T,
            clip.temperature_scale * text @ processes.gather(image).T,
            first=processes.rank * len(image),
        )

    # --- train -------------------------------------------------------------------------------------------
    losses: list[float] = []
    if start == 0:
        run.measure(0, losses, validate)
    with Progress("train clip", settings.steps, start, quiet=quiet or not processes.main) as progress:
        for step in range(start, settings.steps):
            if run.ended:
                break
            towers.training_mode()
            for group in optimizer.param_groups:
                group["lr"] = common.learning_rate(step, settings.steps, settings.learning_rate, warmup=settings.warmup)
            batch = batch_indices(len(train), settings.batch_size, step, settings.seed)
            with common.computing(device, precision):
                pairs = towers.pairs(processes.part(batch), batch, step, settings.seed)
            optimizer.zero_grad()
            if settings.micro_batch is None:
                loss = loss_of(*embed(pairs))
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
            else:
                parts = [partial(embed, part) for part in pairs.parts(settings.micro_batch)]
                loss = cached_backward(parts, loss_of, device)
            processes.average_gradients(clip.parameters())
            nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
            optimizer.step()
            clip.limit_temperature()
            losses.append(loss.item())
            done = step + 1
            progress.advance(loss=losses[-1])
            if done % settings.evaluate_every == 0 or done == settings.steps:
                run.measure(done, losses, validate)
                losses.clear()
                run.save(done)

    # --- save and clean up -------------------------------------------------------------------------------
    processes.check_equal(clip)
    step, metrics = run.close()
    if processes.main:
        checkpoint.save(
            output / common.CHECKPOINT,
            clip=clip,
            tokenizer=tokenizer,
            tag_transform=transform,
            name=settings.name,
            about={"recipe": "clip", "settings": common.jsonable(settings), "step": step, "metrics": metrics},
        )
    processes.any(False)  # none returns before the checkpoint is there
    return output / common.CHECKPOINT


def _problems_together(
    settings: TrainClipSettings, train: PairSource, validation: Validation | None, processes: Processes
) -> list[str]:
    """What is wrong with the settings on these data and processes."""
    found = []
    if len(train) < settings.batch_size:
        found.append(f"{len(train)} training images are fewer than batch_size {settings.batch_size}: lower it")
    if validation is not None:
        found += validation.problems()
    elif settings.patience is not None:
        found.append("patience needs validation data: without any nothing says which weights are best")
    if settings.batch_size % processes.size:
        found.append(f"batch_size {settings.batch_size} cannot be shared equally by {processes.size} processes")
    if processes.size > 1 and settings.learns_batch_norms:
        found.append("the batch norms of stem_widths would see one process's part of a batch: use one process")
    if settings.tensorboard:
        found += event_log_problems()
    return found


@dataclass(slots=True)
class _Run:
    """What a run leaves on disk as it goes, and what it is resumed from. Rank 0 alone writes."""

    settings: TrainClipSettings
    processes: Processes
    output: Path
    clip: CLIP
    optimizer: torch.optim.Optimizer
    log: common.MetricsLog = field(init=False)
    events: EventLog | None = field(init=False, default=None)
    best: Best | None = field(init=False, default=None)
    ended: bool = field(init=False, default=False)

    def begin(self) -> int:
        """Open what is written to; gives the first step."""
        rank = self.processes.rank
        if rank:
            # Else all would drop out the same units; rank 0 draws what a process alone would.
            torch.manual_seed(int(np.random.default_rng([self.settings.seed, 13, rank]).integers(2**62)))
        self._open(0, {})
        return 0

    def resume(self) -> int:
        """Go on from the last state; gives the step that it was written at.

        Raises:
            SettingsError: it was written with other settings, or by another number of processes.
        """
        start = common.load_state(self.output, {"clip": self.clip}, self.optimizer, self.settings)
        notes, extra = common.read_extra(self.output)
        if notes["processes"] != self.processes.size:
            raise common.SettingsError(
                f"the run in {self.output} was started with {notes['processes']} processes, not {self.processes.size}: "
                "resume it with as many, or choose another output directory"
            )
        own = f".{self.processes.rank}"
        if state := {key.removesuffix(own): value for key, value in extra.items() if key.endswith(own)}:
            set_random_state(state, self.processes.device)
        self._open(start, notes["best"])
        return start

    def _open(self, start: int, best: dict[str, Any]) -> None:
        if self.processes.main:
            self.output.mkdir(parents=True, exist_ok=True)
            self.log = common.MetricsLog(self.output, resumed_at=start)
            if self.settings.tensorboard:
                self.events = EventLog(self.output, resumed_at=start)
            if self.settings.patience is not None:
                self.best = Best(self.output, self.settings.patience, best)
        self._agree_on_the_end()

    def _agree_on_the_end(self) -> None:
        self.ended = self.processes.any(self.best is not None and self.best.ended)

    def measure(self, step: int, losses: list[float], validate: Callable[[], dict[str, float]] | None) -> None:
        """Measure after `step` updates, note it, and decide whether that was enough."""
        values = {"loss": self.processes.mean(float(np.mean(losses)))} if losses else {}
        if self.processes.main:
            if validate is not None:
                values |= validate()
            self.log.add(step, **values)
            self.log.draw()
            if self.events is not None:
                rate = self.optimizer.param_groups[0]["lr"]
                self.events.add(step, {**values, "learning_rate": rate} if losses else values)
            if self.best is not None and step > 0:
                self.best.offer(step, values[MEAN_RECALL], self.clip)
        self._agree_on_the_end()

    def save(self, step: int) -> None:
        """Write the state after `step` updates."""
        self.processes.check_equal(self.clip)
        extra = {
            f"{kind}.{rank}": state
            for kind, own in random_state(self.processes.device).items()
            for rank, state in enumerate(self.processes.every(own))
            if rank
        }
        if self.processes.main:
            notes = {"processes": self.processes.size, "best": {} if self.best is None else self.best.notes}
            common.save_state(
                self.output, step, {"clip": self.clip}, self.optimizer, self.settings, notes=notes, extra=extra
            )
            if self.best is not None:
                self.best.forget_others()

    def close(self) -> tuple[int, dict[str, float]]:
        """Put the weights that are to be saved into the CLIP; gives their step and what was measured of them."""
        if not self.processes.main:
            return 0, {}
        if self.events is not None:
            self.events.close()
        metrics = self.log.rows[-1]
        if self.best is not None and self.best.value is not None:
            self.best.load_into(self.clip)
            metrics = next(row for row in self.log.rows if row["step"] == self.best.step)
        return int(metrics["step"]), metrics

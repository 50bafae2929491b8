"""Recipe: train a dual encoder on image-text pairs.

Read from top to bottom: settings, check all of them, set up, train, save. Run it with
`vlm train clip`, or call :func:`train_clip` with a source of one's own.

Source: Radford et al., arXiv:2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlm_core import checkpoint
from vlm_core.checkpoint import resolve_device
from vlm_core.clip import CLIP
from vlm_core.data import PairSource, batch_indices, sample_rng
from vlm_core.evaluate import can_match, evaluate_matching
from vlm_core.image_encoder import ImageEncoder
from vlm_core.losses import contrastive_loss
from vlm_core.model import Model
from vlm_core.preprocess import ImageTransform, TextTokenizer
from vlm_core.projection import normalised
from vlm_core.recipes import common
from vlm_core.recipes.encoders import make_image_encoder, make_text_encoder, make_transform
from vlm_core.recipes.progress import Progress
from vlm_core.text_encoder import TextEncoder


@dataclass(frozen=True, slots=True)
class TrainClipSettings:
    """Settings of `train_clip`. The defaults suit a few dozen to a few thousand pairs and pre-trained encoders.

    Attributes:
        image_encoder: a timm model with weights, `hf-hub:owner/name`, a directory in timm's layout
            (`config.json`, `model.safetensors`), or `scratch:NAME` for random weights.
        text_encoder: hub id or directory of DistilBERT or another BERT-like, or `scratch:distilbert`.
        image_args, text_args: constructor values, only with `scratch:`.
        pooling: of the text encoder, "mean" over real tokens or "first".
        image_size: square input, px; None takes the encoder's own.
        crop: cut out the centre as CLIP does; False squashes the whole image to the square.
        max_tokens: longest text.
        projection_dim: width of the shared space.
        train_image_encoder, train_text_encoder: whether the towers learn too; None: only towers from scratch
            do. Frozen towers run once per image and text, so that training takes seconds.
        steps: updates.
        batch_size: images in an update; each has to find its text among those of the whole batch.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of weight matrices.
        evaluate_every: updates between measurements on the validation part.
        validation_images: at most so many are measured.
        seed: decides weights, order and dropout; with it a CPU run gives the same weights again.
        device: "auto", "cpu", "cuda", ...
        precision: "fp32", "bf16" or "auto": bf16 on a GPU.
        name: base of version names of the model.
    """

    image_encoder: str
    text_encoder: str
    image_args: Mapping[str, Any] | None = None
    text_args: Mapping[str, Any] | None = None
    pooling: str = "mean"
    image_size: int | None = None
    crop: bool = True
    max_tokens: int = 64
    projection_dim: int = 256
    train_image_encoder: bool | None = None
    train_text_encoder: bool | None = None
    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    evaluate_every: int = 50
    validation_images: int = 300
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    name: str = "clip"

    def problems(self) -> list[str]:
        """Everything that is wrong with these values alone."""
        found = []
        if self.steps < 1 or self.batch_size < 2 or self.evaluate_every < 1:
            found.append(
                f"steps {self.steps}, batch_size {self.batch_size}, evaluate_every {self.evaluate_every}: "
                "at least 1, 2 and 1"
            )
        if not 0 < self.learning_rate <= 1 or self.weight_decay < 0:
            found.append(f"learning_rate {self.learning_rate} must be in (0, 1], weight_decay not negative")
        if self.pooling not in ("mean", "first"):
            found.append(f'pooling {self.pooling!r} must be "mean" or "first"')
        if self.precision not in ("auto", "fp32", "bf16"):
            found.append(f'precision {self.precision!r} must be "auto", "fp32" or "bf16"')
        if self.projection_dim < 1 or self.max_tokens < 4:
            found.append(f"projection_dim {self.projection_dim} and max_tokens {self.max_tokens}: at least 1 and 4")
        if self.image_args and not self.image_encoder.startswith("scratch:"):
            found.append("image_args are for scratch: encoders; pre-trained weights fix them")
        if self.text_args and not self.text_encoder.startswith("scratch:"):
            found.append("text_args are for scratch: encoders; pre-trained weights fix them")
        return found


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

    Args:
        settings: see `TrainClipSettings`.
        train: what to learn from.
        validation: what to measure one-of-four matching on; None measures nothing but the loss.
        output: directory of the run: `checkpoint/`, `metrics.jsonl`, `metrics.png`, and the state to resume from.
        resume: go on with the run in `output`; with the same settings it ends as if never interrupted.
        quiet: no progress bar.

    Returns:
        The checkpoint's directory, in our own layout.

    Raises:
        SettingsError: settings that cannot work, all of them listed.
        CheckpointError: an encoder cannot be loaded.
        DataError: an image or text that cannot be read.
    """
    # --- check everything before any work ----------------------------------------------------------------
    problems = settings.problems()
    if len(train) < settings.batch_size:
        problems.append(f"{len(train)} training images are fewer than batch_size {settings.batch_size}: lower it")
    if validation is not None and len(validation) < 4:
        problems.append(f"{len(validation)} validation images: one-of-four matching needs at least 4")
    elif validation is not None:
        asked, right = _asked(settings, validation)
        if not can_match(asked, right=right):
            problems.append("no validation image has three texts that are not its own: one-of-four cannot be asked")
    problems += common.output_problems(output, resume)
    common.raise_all(problems)

    # --- set up ------------------------------------------------------------------------------------------
    common.seed_everything(settings.seed)
    device = resolve_device(settings.device)
    precision = common.resolve_precision(settings.precision, device)
    image_encoder = make_image_encoder(settings.image_encoder, settings.image_args, settings.image_size)
    text_encoder, tokenizer = make_text_encoder(
        settings.text_encoder, settings.text_args, settings.pooling, settings.max_tokens, train.vocabulary()
    )
    image_size = settings.image_size or int(image_encoder.vit.patch_embed.img_size[0])
    transform = make_transform(image_encoder, image_size, crop=settings.crop)
    clip = CLIP(image_encoder, text_encoder, settings.projection_dim).to(device)
    towers = _Towers(settings, clip, tokenizer, transform, train, device)
    optimizer = torch.optim.AdamW(
        common.parameter_groups([clip], settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.98)
    )
    output.mkdir(parents=True, exist_ok=True)
    start = common.load_state(output, {"clip": clip}, optimizer, settings) if resume else 0
    log = common.MetricsLog(output, resumed_at=start)

    def measure(step: int, losses: list[float]) -> None:
        values = {"loss": float(np.mean(losses))} if losses else {}
        if validation is not None:
            values["one_of_four"] = _one_of_four(settings, clip, tokenizer, transform, validation)
        log.add(step, **values)
        log.draw()

    # --- train -------------------------------------------------------------------------------------------
    losses: list[float] = []
    if start == 0:
        measure(0, losses)
    with Progress("train clip", settings.steps, start, quiet=quiet) as progress:
        for step in range(start, settings.steps):
            towers.training_mode()
            for group in optimizer.param_groups:
                group["lr"] = common.learning_rate(step, settings.steps, settings.learning_rate)
            indices = batch_indices(len(train), settings.batch_size, step, settings.seed)
            texts = [train.text(index, sample_rng(settings.seed, step, index)) for index in indices]
            with common.computing(device, precision):
                image = normalised(clip.visual_projection(towers.image_features(indices)))
                text = normalised(clip.text_projection(towers.text_features(texts)))
            loss = contrastive_loss(clip.temperature_scale * image.float() @ text.float().T)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
            nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
            optimizer.step()
            clip.limit_temperature()
            losses.append(loss.item())
            done = step + 1
            progress.advance(loss=losses[-1])
            if done % settings.evaluate_every == 0 or done == settings.steps:
                measure(done, losses)
                losses.clear()
                common.save_state(output, done, {"clip": clip}, optimizer, settings)

    # --- save and clean up -------------------------------------------------------------------------------
    checkpoint.save(
        output / common.CHECKPOINT,
        clip=clip,
        tokenizer=tokenizer,
        tag_transform=transform,
        name=settings.name,
        about={"recipe": "clip", "settings": common.jsonable(settings), "metrics": log.rows[-1]},
    )
    return output / common.CHECKPOINT


class _Towers:
    """Features before the projections: computed anew while a tower learns, once and kept while it does not."""

    def __init__(
        self,
        settings: TrainClipSettings,
        clip: CLIP,
        tokenizer: TextTokenizer,
        transform: ImageTransform,
        source: PairSource,
        device: torch.device,
    ) -> None:
        self.image_encoder: ImageEncoder = clip.image_encoder
        self.text_encoder: TextEncoder = clip.text_encoder
        self.tokenizer, self.transform, self.source, self.device = tokenizer, transform, source, device
        self.learn_image = _learns(settings.train_image_encoder, settings.image_encoder)
        self.learn_text = _learns(settings.train_text_encoder, settings.text_encoder)
        self.image_encoder.requires_grad_(self.learn_image)
        self.text_encoder.requires_grad_(self.learn_text)
        self._images: dict[int, Tensor] = {}
        self._texts: dict[str, Tensor] = {}

    def training_mode(self) -> None:
        """Dropout on in the towers that learn, off in those that are frozen."""
        self.image_encoder.train(self.learn_image)
        self.text_encoder.train(self.learn_text)

    def image_features(self, indices: list[int]) -> Tensor:
        """(B, D) pooled features of these images."""
        if self.learn_image:
            return self._encode_images(indices)
        missing = [index for index in indices if index not in self._images]
        if missing:
            with torch.no_grad():
                self._images.update(zip(missing, self._encode_images(missing), strict=True))
        return torch.stack([self._images[index] for index in indices])

    def text_features(self, texts: list[str]) -> Tensor:
        """(B, D) pooled features of these texts."""
        if self.learn_text:
            return self._encode_texts(texts)
        missing = sorted(set(texts) - set(self._texts))
        if missing:
            with torch.no_grad():
                self._texts.update(zip(missing, self._encode_texts(missing), strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def _encode_images(self, indices: list[int]) -> Tensor:
        pixels = torch.stack([self.transform(self.source.image(index)) for index in indices])
        pooled = self.image_encoder(pixels.to(self.device)).pooled
        assert isinstance(pooled, Tensor)
        return pooled

    def _encode_texts(self, texts: list[str]) -> Tensor:
        input_ids, attention_mask = self.tokenizer(texts)
        features: Tensor = self.text_encoder(input_ids.to(self.device), attention_mask.to(self.device))
        return features


def _learns(choice: bool | None, source: str) -> bool:
    return source.startswith("scratch:") if choice is None else choice


def _one_of_four(
    settings: TrainClipSettings,
    clip: CLIP,
    tokenizer: TextTokenizer,
    transform: ImageTransform,
    validation: PairSource,
) -> float:
    """One-of-four matching through the same code that users call."""
    with common.evaluating(clip) as frozen:
        model = Model(
            clip=frozen,
            decoder=None,
            tokenizer=tokenizer,
            mask_transform=None,
            tag_transform=transform,
            name=settings.name,
            fingerprint="",
            device=frozen.logit_scale.device,
        )
        asked, right = _asked(settings, validation)
        images = (validation.image(index) for index in range(len(asked)))
        return evaluate_matching(model, images, asked, right=right, seed=settings.seed)


def _asked(settings: TrainClipSettings, validation: PairSource) -> tuple[list[str], list[Sequence[str]]]:
    """For each validation image the text that it is asked for, and all that it has."""
    indices = range(min(len(validation), settings.validation_images))
    asked = [validation.text(index, sample_rng(settings.seed, 0, index)) for index in indices]
    return asked, [validation.texts_of(index) for index in indices]

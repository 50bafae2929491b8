"""Settings of the contrastive training, and all that can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
        max_tokens: longest text, tokens, >= 4.
        projection_dim: width of the shared space, >= 1.
        train_image_encoder, train_text_encoder: whether the towers learn too; None: only towers from scratch
            do. Frozen towers run once per image and text, so that training takes seconds. A pre-trained
            image tower that is frozen beside a text tower that learns is locked-image tuning (LiT: Zhai et al.,
            arXiv:2111.07991).
        steps: updates, >= 1.
        batch_size: images in an update, of all processes together, >= 2; each has to find its text among those of the
            whole batch.
        micro_batch: images that go through the towers at once in each process, 1 to batch_size. The memory of a batch
            falls to that of so many, every tower is computed twice for it, and the gradients are those of the whole
            batch (GradCache: Gao et al., arXiv:2101.06983). None: the whole batch at once.
        learning_rate: peak of the schedule, in (0, 1].
        warmup: part of the steps in which the rate rises linearly to its peak, in [0, 1); it falls as half a cosine to
            a hundredth of the peak in the others (Loshchilov & Hutter, arXiv:1608.03983). 0 starts at the peak.
        weight_decay: of weight matrices, >= 0.
        evaluate_every: updates between measurements on the validation part, >= 1.
        validation_images: at most so many are measured, >= 4.
        patience: end after so many measurements in a row, >= 1, that do not exceed the best `mean_recall` so far, and
            save the best weights. None: train to the end, and save the last. Weights before the first update do not
            count. The schedule is that of all `steps` either way.
        tensorboard: write event files for TensorBoard too, below `tensorboard/`; needs the extra of that name.
        seed: decides weights, order and dropout; with it a CPU run gives the same weights again.
        device: "auto", "cpu", "cuda", ...
        precision: "fp32", "bf16" or "auto": bf16 on a GPU. The loss is computed in fp32 either way.
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
    micro_batch: int | None = None
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.1
    evaluate_every: int = 50
    validation_images: int = 300
    patience: int | None = None
    tensorboard: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    name: str = "clip"

    @property
    def image_encoder_learns(self) -> bool:
        """What `train_image_encoder` comes to."""
        return _learns(self.train_image_encoder, self.image_encoder)

    @property
    def text_encoder_learns(self) -> bool:
        """What `train_text_encoder` comes to."""
        return _learns(self.train_text_encoder, self.text_encoder)

    @property
    def learns_batch_norms(self) -> bool:
        """Whether an image depends on the others that are encoded with it."""
        return self.image_encoder_learns and "stem_widths" in (self.image_args or {})

    def problems(self) -> list[str]:
        """Everything that is wrong with these values alone."""
        found = []
        if self.steps < 1 or self.batch_size < 2 or self.evaluate_every < 1:
            found.append(
                f"steps {self.steps}, batch_size {self.batch_size}, evaluate_every {self.evaluate_every}: "
                "at least 1, 2 and 1"
            )
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch_size:
            found.append(f"micro_batch {self.micro_batch} must be between 1 and batch_size {self.batch_size}")
        if self.micro_batch is not None and self.learns_batch_norms:
            found.append(
                "micro_batch: the batch norms of stem_widths would see a part of the batch; leave one of them out"
            )
        if not 0 < self.learning_rate <= 1 or self.weight_decay < 0:
            found.append(f"learning_rate {self.learning_rate} must be in (0, 1], weight_decay not negative")
        if not 0 <= self.warmup < 1:
            found.append(f"warmup {self.warmup} must be in [0, 1)")
        if self.validation_images < 4:
            found.append(f"validation_images {self.validation_images}: one-of-four matching needs at least 4")
        if self.patience is not None and self.patience < 1:
            found.append(f"patience {self.patience}: at least 1 measurement, or None to train to the end")
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


def _learns(choice: bool | None, source: str) -> bool:
    return source.startswith("scratch:") if choice is None else choice

"""The values that models take and give: frozen, shapes checked once, when they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_core.errors import InputError


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What the image encoder keeps of B images: the expensive half of every answer, cacheable.

    Attributes:
        taps: outputs of the tapped blocks, shallowest first, each (B, T, D) with T = prefix tokens + grid
            cells, row by row. Empty when masks were not asked for.
        grid_hw: rows and columns of the patch grid that `taps` hold; (0, 0) without taps.
        image_embeds: (B, E), projected and L2-normalised, for tags; None when tags were not asked for.
    """

    taps: tuple[Tensor, ...]
    grid_hw: tuple[int, int]
    image_embeds: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {t.shape[0] for t in self.taps}
        if self.image_embeds is not None:
            sizes.add(self.image_embeds.shape[0])
        if len(sizes) != 1:
            raise InputError(f"features of one batch need one batch size, got {sorted(sizes) or 'nothing'}")

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """The images of several batches in one. Raises InputError where they do not hold the same things."""
        if len(parts) == 1:
            return parts[0]
        kinds = {(len(part.taps), part.grid_hw, part.image_embeds is None) for part in parts}
        if len(kinds) != 1:
            raise InputError(f"features of {len(parts)} batches hold different things and cannot be joined")
        embeds = [part.image_embeds for part in parts if part.image_embeds is not None]
        return cls(
            tuple(torch.cat(taps) for taps in zip(*(part.taps for part in parts), strict=True)),
            parts[0].grid_hw,
            torch.cat(embeds) if embeds else None,
        )

    def __len__(self) -> int:
        """The number of images, B."""
        first = self.taps[0] if self.taps else self.image_embeds
        assert first is not None
        return int(first.shape[0])

    def room_for(self, images: int) -> ImageFeatures:
        """Features of so many images of the same kind, not yet written: for `place`."""
        embeds = self.image_embeds
        return ImageFeatures(
            tuple(tap.new_empty((images, *tap.shape[1:])) for tap in self.taps),
            self.grid_hw,
            None if embeds is None else embeds.new_empty((images, *embeds.shape[1:])),
        )

    def place(self, part: ImageFeatures, start: int) -> None:
        """Write the images of another batch into this one, from image `start` on."""
        rows = slice(start, start + len(part))
        for own, other in zip(self.taps, part.taps, strict=True):
            own[rows] = other
        if self.image_embeds is not None:
            assert part.image_embeds is not None
            self.image_embeds[rows] = part.image_embeds

    def clone(self) -> ImageFeatures:
        """The same in memory of their own: what `[index]` gives keeps its whole batch alive."""
        embeds = None if self.image_embeds is None else self.image_embeds.clone()
        return ImageFeatures(tuple(tap.clone() for tap in self.taps), self.grid_hw, embeds)

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        embeds = 0 if self.image_embeds is None else self.image_embeds.nbytes
        return sum(tap.nbytes for tap in self.taps) + embeds

    def __getitem__(self, index: int) -> ImageFeatures:
        """The features of one image, still with a batch axis of 1."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        rows = slice(index, index + 1)
        embeds = None if self.image_embeds is None else self.image_embeds[rows]
        return ImageFeatures(tuple(t[rows] for t in self.taps), self.grid_hw, embeds)


@dataclass(frozen=True, slots=True)
class MaskLogits:
    """Mask logits of one image for P prompts.

    Attributes:
        logits: float32, CPU, (P, H, W), in prompt order, also for P = 1. Unbounded; their sigmoid is a
            probability per pixel and is not calibrated.
        prompts: the P phrases; empty strings where conditions came from elsewhere than text.
    """

    logits: Tensor
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.logits.ndim != 3 or self.logits.shape[0] != len(self.prompts):
            raise InputError(
                f"mask logits need shape (P, H, W) with P = {len(self.prompts)} prompts, got {tuple(self.logits.shape)}"
            )

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the grid that the logits stand on, in pixels of that grid."""
        return int(self.logits.shape[1]), int(self.logits.shape[2])

    def probabilities(self) -> Tensor:
        """Sigmoid of the logits: float32 in [0, 1], (P, H, W)."""
        return torch.sigmoid(self.logits)


@dataclass(frozen=True, slots=True)
class TagScore:
    """How well one tag describes an image.

    Attributes:
        tag: the text that was asked.
        probability: in [0, 1]. For a single choice a softmax over the tags that were asked together, so it depends on
            the others; for several choices that of this tag alone.
        similarity: cosine of image and text embeddings, in [-1, 1]; it does not depend on the others.
    """

    tag: str
    probability: float
    similarity: float


def check_phrases(phrases: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the phrases as a tuple, or raise.

    Raises:
        InputError: a single string instead of a sequence, no phrase, a blank one, or one that is no string.
    """
    if isinstance(phrases, str):
        raise InputError(f"{what}s must be a sequence of strings, got the one string {phrases!r}: write [{phrases!r}]")
    out = tuple(phrases)
    if not out:
        raise InputError(f"at least one {what} is needed")
    for i, phrase in enumerate(out):
        if not isinstance(phrase, str) or not phrase.strip():
            raise InputError(f"{what} {i + 1} of {len(out)} must be a non-blank string, got {phrase!r}")
    return out

"""Features of a batch's images and texts before the projections, of towers that learn and of towers that do not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_core.clip import CLIP
from vlm_core.data import PairSource, sample_rng
from vlm_core.errors import DataError, UnreadableSampleError
from vlm_core.preprocess import ImageTransform, TextTokenizer
from vlm_core.recipes.clip_settings import TrainClipSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Some pairs of a step.

    Attributes:
        indices: of the images.
        texts: one for each.
        pixels: (B, 3, H, W), on the CPU; None where the images' features are known.
    """

    indices: list[int]
    texts: list[str]
    pixels: Tensor | None

    def parts(self, size: int | None) -> list[Pairs]:
        """The same pairs, at most so many at a time; None: all at once."""
        each = size or len(self.indices)
        return [
            Pairs(
                self.indices[start : start + each],
                self.texts[start : start + each],
                None if self.pixels is None else self.pixels[start : start + each],
            )
            for start in range(0, len(self.indices), each)
        ]


class Towers:
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
        """Freeze the towers that do not learn."""
        self._image_encoder, self._text_encoder = clip.image_encoder, clip.text_encoder
        self._tokenizer, self._transform, self._source, self._device = tokenizer, transform, source, device
        self._learn_image, self._learn_text = settings.image_encoder_learns, settings.text_encoder_learns
        self._at_once = settings.micro_batch
        self._image_encoder.requires_grad_(self._learn_image)
        self._text_encoder.requires_grad_(self._learn_text)
        self._images: dict[int, Tensor] = {}
        self._texts: dict[str, Tensor] = {}
        self._unreadable: set[int] = set()

    def training_mode(self) -> None:
        """Dropout on in the towers that learn, off in those that are frozen."""
        self._image_encoder.train(self._learn_image)
        self._text_encoder.train(self._learn_text)

    def pairs(self, indices: Sequence[int], batch: Sequence[int], step: int, seed: int) -> Pairs:
        """Open the images of a step and draw their texts.

        An image that the source gives up is replaced by the next one that can be read and is not in the batch: that
        depends on the data alone, so a resumed run does the same.

        Args:
            indices: what this process works on.
            batch: what all processes do.
            step, seed: they decide which of an image's texts it gets.

        Raises:
            DataError: an image cannot be read and is not to be left out, or too few can be read.
        """
        taken = set(batch)
        opened = [self._open(index, taken) for index in indices]
        texts = [self._source.text(index, sample_rng(seed, step, index)) for index, _ in opened]
        pixels = [values for _, values in opened if values is not None]
        found = [index for index, _ in opened]
        if self._learn_image:
            return Pairs(found, texts, torch.stack(pixels))
        if pixels:
            missing = [index for index, values in opened if values is not None]
            with torch.no_grad():
                for some, stacked in _chunks(missing, pixels, self._at_once):
                    self._images.update(zip(some, self._encode_images(stacked), strict=True))
        return Pairs(found, texts, None)

    def image_features(self, pairs: Pairs) -> Tensor:
        """(B, D) pooled features of the images."""
        if pairs.pixels is not None:
            return self._encode_images(pairs.pixels)
        return torch.stack([self._images[index] for index in pairs.indices])

    def text_features(self, pairs: Pairs) -> Tensor:
        """(B, D) pooled features of the texts."""
        if self._learn_text:
            return self._encode_texts(pairs.texts)
        missing = sorted(set(pairs.texts) - set(self._texts))
        if missing:
            with torch.no_grad():
                self._texts.update(zip(missing, self._encode_texts(missing), strict=True))
        return torch.stack([self._texts[text] for text in pairs.texts])

    def _open(self, index: int, taken: set[int]) -> tuple[int, Tensor | None]:
        """An image that can be read, with its pixels (3, H, W), or None where its features are known."""
        count = len(self._source)
        for candidate in ((index + offset) % count for offset in range(count)):
            if candidate in self._unreadable or (candidate != index and candidate in taken):
                continue
            if candidate not in self._images:
                try:
                    pixels = self._transform(self._source.image(candidate))
                except UnreadableSampleError:
                    self._unreadable.add(candidate)
                    continue
            else:
                pixels = None
            taken.add(candidate)
            return candidate, pixels
        raise DataError(
            f"{len(self._unreadable)} of {count} training images cannot be read, and those that can do not fill a "
            "batch: repair them, or lower batch_size"
        )

    def _encode_images(self, pixels: Tensor) -> Tensor:
        pooled = self._image_encoder(pixels.to(self._device)).pooled
        assert isinstance(pooled, Tensor)
        return pooled

    def _encode_texts(self, texts: list[str]) -> Tensor:
        input_ids, attention_mask = self._tokenizer(texts)
        features: Tensor = self._text_encoder(input_ids.to(self._device), attention_mask.to(self._device))
        return features


def _chunks(indices: list[int], pixels: list[Tensor], size: int | None) -> Iterator[tuple[list[int], Tensor]]:
    each = size or len(indices)
    for start in range(0, len(indices), each):
        yield indices[start : start + each], torch.stack(pixels[start : start + each])

"""What the contrastive training is measured by as it goes: one-of-four matching, and recall in both directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlm_core.clip import CLIP
from vlm_core.data import PairSource, sample_rng
from vlm_core.errors import UnreadableSampleError
from vlm_core.evaluate import can_match, draw_candidates, one_of_k_accuracy, recall_at_k
from vlm_core.evaluation.embeds import FloatArray, embed_images, embed_texts
from vlm_core.evaluation.matching import RECALL_AT, group_texts, right_ranks
from vlm_core.model import Model
from vlm_core.preprocess import ImageTransform, TextTokenizer
from vlm_core.recipes import common

MEAN_RECALL = "mean_recall"
"""The figure that says which weights are best: the mean of all recalls of both directions."""


class Validation:
    """The first images of a source, each with the text that it is asked for and all that it has."""

    def __init__(self, source: PairSource, limit: int, seed: int) -> None:
        """Draw the texts; images are opened when they are measured.

        Args:
            source: what is measured on.
            limit: at most so many images are.
            seed: decides which of an image's texts it is asked for, and among which.
        """
        self._source = source
        self._seed = seed
        self._indices = list(range(min(len(source), limit)))

    def problems(self) -> list[str]:
        """Why nothing can be measured on it."""
        if len(self._indices) < 4:
            return [f"{len(self._indices)} validation images: one-of-four matching needs at least 4"]
        if not can_match(self._asked(), right=self._right()):
            return ["no validation image has three texts that are not its own: one-of-four cannot be asked"]
        return []

    def measure(self, clip: CLIP, tokenizer: TextTokenizer, transform: ImageTransform) -> dict[str, float]:
        """`one_of_four`, `image_to_text_recall@k`, `text_to_image_recall@k` and their mean, each in [0, 1].

        Only k that there are candidates for. Images that a source gives up are left out, now and later.

        Args:
            clip: what is measured, with the code that users call; it is left as it is.
            tokenizer, transform: its texts' and images'.

        Raises:
            DataError: an image cannot be read, or too few can.
        """
        with common.evaluating(clip) as frozen:
            model = Model(
                clip=frozen,
                decoder=None,
                tokenizer=tokenizer,
                mask_transform=None,
                tag_transform=transform,
                name="",
                fingerprint="",
                device=frozen.logit_scale.device,
            )
            image_embeds = self._image_embeds(model)
            unique, owned, owners = group_texts(self._right())
            text_embeds = embed_texts(model, unique)
        row = dict(zip(unique, text_embeds, strict=True))
        chosen = [
            [float(embed @ row[candidate]) for candidate in candidates]
            for embed, candidates in zip(
                image_embeds, draw_candidates(self._asked(), right=self._right(), seed=self._seed), strict=True
            )
            if candidates
        ]
        recalls: dict[str, float] = {}
        for direction, ranks, candidates in (
            ("image_to_text", right_ranks(image_embeds, text_embeds, owned), len(unique)),
            ("text_to_image", right_ranks(text_embeds, image_embeds, owners), len(image_embeds)),
        ):
            recalls |= {f"{direction}_recall@{k}": recall_at_k(ranks, k) for k in RECALL_AT if k <= candidates}
        return {
            "one_of_four": one_of_k_accuracy(chosen),
            **recalls,
            MEAN_RECALL: float(np.mean(list(recalls.values()))),
        }

    def _image_embeds(self, model: Model) -> FloatArray:
        """Embeddings of the images that can be read; the others' indices are dropped."""
        parts, kept = [], []
        for start in range(0, len(self._indices), model.encode_batch):
            images: list[Image.Image] = []
            for index in self._indices[start : start + model.encode_batch]:
                try:
                    images.append(self._source.image(index))
                except UnreadableSampleError:
                    continue
                kept.append(index)
            if images:
                parts.append(embed_images(model, images.__getitem__, len(images)))
        self._indices = kept
        return np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.float32)

    def _asked(self) -> list[str]:
        return [self._source.text(index, sample_rng(self._seed, 0, index)) for index in self._indices]

    def _right(self) -> list[Sequence[str]]:
        return [self._source.texts_of(index) for index in self._indices]

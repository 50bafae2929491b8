"""One image as the model sees it: encoded when it is first asked for, then shared by all controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from backend.answers.request import PredictionRequest
from backend.decoding import Logits
from backend.features import Kind
from backend.inference import AskTags, HashedImage, ImagePart, Inference
from backend.metrics import Stopwatch, Times
from backend.tag_question import TagQuestion

if TYPE_CHECKING:
    from vlm_core.runs import RunMask
    from vlm_core.tiles import Box, Windows
    from vlm_core.types import ImageFeatures, TagScore


class SizedImage(HashedImage, Protocol):
    """An image file that knows how large the annotator sees it; its pixels may be fewer."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """As the annotator sees it, px."""


class ImageView:
    """Answers of the model about one image. For one thread.

    Attributes:
        drawing: runs while masks are drawn and written, which is done in several places.

    Raises:
        BusyError: the model did not become free before the request's deadline.
        VLMError: as the model raises it.
    """

    def __init__(
        self, inference: Inference, image: SizedImage, request: PredictionRequest, *, masks: bool, tags: bool
    ) -> None:
        """Nothing is computed yet.

        Args:
            inference: caches, and batches with others.
            image: of the task.
            request: that the task belongs to.
            masks: whether grids will be asked for.
            tags: whether rankings will be.
        """
        self.drawing = Stopwatch()
        self.image = image
        self.request = request
        self._inference = inference
        self._in_one_pass = masks and tags and request.model.one_view

    @property
    def size_hw(self) -> tuple[int, int]:
        """Of the displayed image, px."""
        return self.image.size_hw

    def grids(self, phrases: Sequence[str]) -> dict[str, Logits]:
        """Logits of each phrase on the model's grid, (h, w) each, from the view of the whole image."""
        return self._inference.grids(self.request.model, self._mask_features, phrases, self._remaining(), self._times)

    def grid_like(self, regions: Sequence[RunMask]) -> Logits:
        """Logits (1, h, w), on the model's grid, of what is like regions of this image, of its displayed size each."""
        from PIL import Image

        picture = self.image.image
        masks = [
            Image.fromarray(region.to_array()).resize(picture.size, Image.Resampling.NEAREST) for region in regions
        ]
        exemplars = [(picture, np.asarray(mask, dtype=np.bool_)) for mask in masks]
        return self._inference.grid_like(self.request.model, self._mask_features, exemplars, self._remaining())

    def windows_grids(self, phrases: Sequence[str], levels: Sequence[Windows]) -> dict[str, Logits]:
        """The same from windows as well, on a finer grid; see `vlm_core.tiles`."""
        import torch

        from vlm_core.tiles import join_windows

        model = self.request.model

        def answers(boxes: Sequence[Box]) -> Iterator[torch.Tensor]:
            for start in range(0, len(boxes), model.encode_batch):
                parts = [ImagePart(self.image, box) for box in boxes[start : start + model.encode_batch]]
                self.request.check_time()  # there may be thousands
                features = self._inference.features_of("masks", model, parts, self._remaining(), self._times)
                for logits in self._inference.grids_of(model, features, phrases, self._remaining(), self._times):
                    yield torch.from_numpy(logits)

        whole = self.grids(phrases)
        stacked = torch.stack([torch.from_numpy(whole[phrase]) for phrase in phrases])
        joined = join_windows(stacked, levels, model.patch_cells, answers).numpy()
        return dict(zip(phrases, joined, strict=True))

    def rank(self, texts: Sequence[str]) -> dict[str, TagScore]:
        """How well each text describes the image."""
        scores = self._ranked(self._tag_features, lambda model, features: model.rank_features(features, texts))
        return {score.tag: score for score in scores}

    def ask(self, question: TagQuestion) -> list[TagScore]:
        """What the image says to a question, best first."""
        return self._ranked(self._tag_features, question.ask)

    def ask_parts(self, boxes_xyxy_px: Sequence[Box], question: TagQuestion) -> list[list[TagScore]]:
        """`ask` for parts of the image, encoded together; boxes in the displayed image, the end exclusive."""
        model = self.request.model
        ranked: list[list[TagScore]] = []
        for start in range(0, len(boxes_xyxy_px), model.encode_batch):
            parts = [ImagePart(self.image, self._in_pixels(box)) for box in boxes_xyxy_px[start:][: model.encode_batch]]
            self.request.check_time()
            features = self._inference.features_of("tags", model, parts, self._remaining(), self._times)
            ranked += [self._ranked(one, question.ask) for one in features]
        return ranked

    @cached_property
    def _mask_features(self) -> ImageFeatures:
        return self._features("both" if self._in_one_pass else "masks")

    @cached_property
    def _tag_features(self) -> ImageFeatures:
        return self._mask_features if self._in_one_pass else self._features("tags")

    def _features(self, kind: Kind) -> ImageFeatures:
        return self._inference.features(kind, self.request.model, self.image, self._remaining(), self._times)

    def _ranked(self, features: ImageFeatures, ask: AskTags) -> list[TagScore]:
        return self._inference.ranking(self.request.model, features, ask, self._remaining(), self._times)

    def _in_pixels(self, box: Box) -> Box:
        """A box in the pixels that there are, which may be fewer than are displayed."""
        height, width = self.size_hw
        columns, rows = self.image.image.size
        left, right = box[0] * columns // width, -(-box[2] * columns // width)
        top, bottom = box[1] * rows // height, -(-box[3] * rows // height)
        return left, top, right, bottom

    @property
    def _times(self) -> Times:
        return self.request.times

    def _remaining(self) -> float:
        return self.request.deadline.remaining()

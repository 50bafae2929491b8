"""What predictions ask of the model: features from caches, and one batch for all who ask at the same time.

Requests of any projects and threads are encoded together, for encoders are shared; those that the same decoder answers
are decoded together, each with its own phrases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from backend.cache_counts import CacheCounts
from backend.decoding import Logits
from backend.features import FeatureCache, Kind, feature_key
from backend.metrics import BatchStage, Metrics, Times
from backend.model_store import ModelStore, ServingModel

if TYPE_CHECKING:
    from PIL import Image

    from vlm_core.types import ImageFeatures, TagScore
    from vlm_core.visual_prompts import Exemplar

What = TypeVar("What")
AskTags = Callable[["ServingModel", "ImageFeatures"], "list[TagScore]"]
"""Asks a model for the scores of tags on one image, best first."""


class HashedImage(Protocol):
    """An image file, whose pixels may not have been decoded yet."""

    @property
    def image(self) -> Image.Image:
        """RGB."""

    @property
    def sha256(self) -> str:
        """Of the file."""


class ImagePart:
    """A part of an image as an image of its own, cut out when its pixels are wanted.

    Attributes:
        sha256: names the file and the part.
    """

    def __init__(self, whole: HashedImage, box_xyxy_px: tuple[int, int, int, int]) -> None:
        """`box_xyxy_px`: in the image's pixels, the end exclusive."""
        self._whole = whole
        self._box = box_xyxy_px
        self.sha256 = f"{whole.sha256}-{'.'.join(map(str, box_xyxy_px))}"

    @cached_property
    def image(self) -> Image.Image:
        """RGB, 8 bit."""
        return self._whole.image.crop(self._box)


@dataclass(frozen=True)
class _Asked(Generic[What]):
    """What a request wants of the model, and since when."""

    what: What
    times: Times
    since: float = field(default_factory=time.monotonic)


class Inference:
    """Answers of the model. Safe to share between threads."""

    def __init__(self, store: ModelStore, cache: FeatureCache, metrics: Metrics) -> None:
        """Computes nothing yet."""
        self._store = store
        self._cache = cache
        self._metrics = metrics

    def close(self) -> None:
        """Finish what is being kept."""
        self._cache.close()

    @property
    def cache_counts(self) -> CacheCounts:
        """What the cache of features was asked for."""
        return self._cache.counts

    def features(
        self, kind: Kind, model: ServingModel, image: HashedImage, timeout_s: float, times: Times
    ) -> ImageFeatures:
        """What the encoders make of an image; its pixels are decoded only where nothing is known of it.

        Raises:
            BusyError: the model did not become free in time.
            Exception: whatever decoding or encoding the image raises.
        """
        return self.features_of(kind, model, [image], timeout_s, times)[0]

    def features_of(
        self, kind: Kind, model: ServingModel, images: Sequence[HashedImage], timeout_s: float, times: Times
    ) -> list[ImageFeatures]:
        """`features` of several images, encoded together: at most `model.encode_batch`, for others wait meanwhile."""
        keys = [feature_key(kind, model, image.sha256) for image in images]
        known = {key: self._cache.get(key) for key in keys}
        missing = [(key, image) for key, image in zip(keys, images, strict=True) if known[key] is None]
        if missing:
            with times.timed("decode_image"):
                for _, image in missing:
                    _ = image.image  # decoded by this thread, beside the model's work for others
            known.update(self._encoded(kind, model, missing, timeout_s, times))
        return [features for key in keys if (features := known[key]) is not None]

    def _encoded(
        self,
        kind: Kind,
        model: ServingModel,
        images: Sequence[tuple[str, HashedImage]],
        timeout_s: float,
        times: Times,
    ) -> dict[str, ImageFeatures]:
        """The features of images by their key, from the model."""

        def encode(requests: Sequence[_Asked[Sequence[tuple[str, HashedImage]]]]) -> list[dict[str, ImageFeatures]]:
            # The same image may be asked for twice at once, or have been encoded while this one waited.
            asked = {key: image for request in requests for key, image in request.what}
            found = {key: features for key in asked if (features := self._cache.peek(key)) is not None}
            missing = {key: image.image for key, image in asked.items() if key not in found}
            with self._batch("encode", requests, len(missing)):
                if missing:
                    batch = model.encode_image(list(missing.values()), masks=kind != "tags", tags=kind != "masks")
            for index, key in enumerate(missing):
                features = batch if len(batch) == 1 else batch[index].clone()
                self._cache.put(key, features)
                found[key] = features
            return [{key: found[key] for key, _ in request.what} for request in requests]

        group = ("encode", kind, model.features_id)
        most = max(1, model.encode_batch // len(images))
        return self._store.compute(group, _Asked(images, times), encode, timeout_s, most=most)

    def grids(
        self, model: ServingModel, features: ImageFeatures, prompts: Sequence[str], timeout_s: float, times: Times
    ) -> dict[str, Logits]:
        """Logits of each phrase on the model's own grid, (h, w) each.

        Raises:
            BusyError: the model did not become free in time.
            VLMError: as `decode_batch` raises it.
        """
        (logits,) = self.grids_of(model, [features], prompts, timeout_s, times)
        return dict(zip(prompts, logits, strict=True))

    def grids_of(
        self,
        model: ServingModel,
        features: Sequence[ImageFeatures],
        prompts: Sequence[str],
        timeout_s: float,
        times: Times,
    ) -> list[Logits]:
        """The same phrases for several images: (P, h, w) of each, in the order of the phrases."""

        def decode(requests: Sequence[_Asked[tuple[Sequence[ImageFeatures], Sequence[str]]]]) -> list[list[Logits]]:
            from vlm_core.types import ImageFeatures

            whats = [request.what for request in requests]
            phrases = list(dict.fromkeys(phrase for _, asked in whats for phrase in asked))
            rows = dict(zip(phrases, range(len(phrases)), strict=True))
            with self._batch("decode_masks", requests, sum(len(images) for images, _ in whats)):
                conditions = model.encode_text(phrases)
                masks = iter(
                    model.decode_batch(
                        ImageFeatures.join([one for images, _ in whats for one in images]),
                        [conditions[[rows[phrase] for phrase in asked]] for images, asked in whats for _ in images],
                    )
                )
            return [[next(masks).logits.numpy() for _ in images] for images, _ in whats]

        group = ("decode", id(model))
        most = max(1, model.encode_batch // len(features))
        return self._store.compute(group, _Asked((features, prompts), times), decode, timeout_s, most=most)

    def grid_like(
        self, model: ServingModel, features: ImageFeatures, exemplars: Sequence[Exemplar], timeout_s: float
    ) -> Logits:
        """Logits (1, h, w) of what is like exemplars: the mean of their conditions asks. Raises as `grids` does."""

        def decode(requests: Sequence[tuple[ImageFeatures, Sequence[Exemplar]]]) -> list[Logits]:
            ((features, shown),) = requests
            condition = model.encode_exemplars(shown).mean(0, keepdim=True)
            return [model.decode_batch(features, [condition])[0].logits.numpy()]

        return self._store.compute(("like", id(model)), (features, exemplars), decode, timeout_s, most=1)

    def ranking(
        self, model: ServingModel, features: ImageFeatures, ask: AskTags, timeout_s: float, times: Times
    ) -> list[TagScore]:
        """What `ask` has the model say of an image's tags, best first. Raises as `grids` does."""

        def rank(requests: Sequence[_Asked[tuple[ImageFeatures, AskTags]]]) -> list[list[TagScore]]:
            with self._batch("rank_tags", requests, len(requests)):
                return [own(model, features) for features, own in (request.what for request in requests)]

        asked = _Asked((features, ask), times)
        return self._store.compute(("rank", id(model)), asked, rank, timeout_s, most=model.encode_batch)

    @contextmanager
    def _batch(self, stage: BatchStage, requests: Sequence[_Asked[Any]], images: int) -> Iterator[None]:
        """Time what the model does for several requests at once, and how long each of them had waited for it."""
        started = time.monotonic()
        for request in requests:
            request.times.stage("wait", started - request.since)
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            if images:  # else another batch has just encoded them
                self._metrics.batch(stage, seconds, images)
            for request in requests:
                request.times.batch(stage, seconds, images)

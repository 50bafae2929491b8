"""What predictions ask of the model: features from caches, and one batch for all who ask at the same time.

Requests of any projects and threads are encoded together, for encoders are shared; those that the same decoder answers
are decoded together, each with its own phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from backend.decoding import Logits
from backend.features import FeatureCache, Kind, feature_key
from backend.model_store import ModelStore, ServingModel

if TYPE_CHECKING:
    from PIL import Image

    from vlm_core.types import ImageFeatures, TagScore


class HashedImage(Protocol):
    """An image file, whose pixels may not have been decoded yet."""

    @property
    def image(self) -> Image.Image:
        """RGB."""

    @property
    def sha256(self) -> str:
        """Of the file."""


class Inference:
    """Answers of the model. Safe to share between threads."""

    def __init__(self, store: ModelStore, cache: FeatureCache) -> None:
        """Computes nothing yet."""
        self._store = store
        self._cache = cache

    def close(self) -> None:
        """Finish what is being kept."""
        self._cache.close()

    def features(self, kind: Kind, model: ServingModel, image: HashedImage, timeout_s: float) -> ImageFeatures:
        """What the encoders make of an image; its pixels are decoded only where nothing is known of it.

        Raises:
            BusyError: the model did not become free in time.
            Exception: whatever decoding or encoding the image raises.
        """
        key = feature_key(kind, model, image.sha256)
        known = self._cache.get(key)
        if known is not None:
            return known
        _ = image.image  # decoded by this thread, beside the model's work for others

        def encode(requests: Sequence[tuple[str, HashedImage]]) -> list[ImageFeatures]:
            # The same image may be asked for twice at once, or have been encoded while this one waited.
            found = {key: self._cache.get(key) for key, _ in requests}
            missing = {key: image.image for key, image in requests if found[key] is None}
            if missing:
                batch = model.encode_image(list(missing.values()), masks=kind != "tags", tags=kind != "masks")
                for index, key in enumerate(missing):
                    features = batch if len(batch) == 1 else batch[index].clone()
                    self._cache.put(key, features)
                    found[key] = features
            return [known for key, _ in requests if (known := found[key]) is not None]

        group = ("encode", kind, model.features_id)
        return self._store.compute(group, (key, image), encode, timeout_s, most=model.encode_batch)

    def grids(
        self, model: ServingModel, features: ImageFeatures, prompts: Sequence[str], timeout_s: float
    ) -> dict[str, Logits]:
        """Logits of each phrase on the model's own grid, (h, w) each.

        Raises:
            BusyError: the model did not become free in time.
            VLMError: as `decode_batch` raises it.
        """

        def decode(requests: Sequence[tuple[ImageFeatures, Sequence[str]]]) -> list[Logits]:
            from vlm_core.types import ImageFeatures

            phrases = list(dict.fromkeys(phrase for _, asked in requests for phrase in asked))
            rows = dict(zip(phrases, range(len(phrases)), strict=True))
            conditions = model.encode_text(phrases)
            masks = model.decode_batch(
                ImageFeatures.join([features for features, _ in requests]),
                [conditions[[rows[phrase] for phrase in asked]] for _, asked in requests],
            )
            return [mask.logits.numpy() for mask in masks]

        request = (features, prompts)
        logits = self._store.compute(("decode", id(model)), request, decode, timeout_s, most=model.encode_batch)
        return dict(zip(prompts, logits, strict=True))

    def ranking(
        self,
        model: ServingModel,
        features: ImageFeatures,
        tags: Sequence[str],
        timeout_s: float,
        *,
        multiple: bool = False,
    ) -> list[TagScore]:
        """Tags, best first; with `multiple`, each with a probability of its own. Raises as `grids` does."""

        def rank(requests: Sequence[tuple[ImageFeatures, Sequence[str]]]) -> list[list[TagScore]]:
            return [model.rank_features(features, asked, multiple=multiple) for features, asked in requests]

        request = (features, tags)
        group = ("rank", multiple, id(model))
        return self._store.compute(group, request, rank, timeout_s, most=model.encode_batch)

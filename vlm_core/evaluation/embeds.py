"""Image and text embeddings of a whole data set: what ranking everything against everything needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from vlm_core.model import Model

FloatArray = npt.NDArray[np.float32]
_TEXTS = 256


def embed_images(
    model: Model, image: Callable[[int], Image.Image], count: int, advance: Callable[[], None] = lambda: None
) -> FloatArray:
    """Embeddings of `count` images, float32 (count, E), L2-normalised; a batch of images is held at a time.

    Args:
        model: any model.
        image: gives the image of an index.
        count: how many there are, >= 1.
        advance: called once an image.
    """
    parts = []
    for start in range(0, count, model.encode_batch):
        batch = [image(index) for index in range(start, min(count, start + model.encode_batch))]
        embeds = model.encode_image(batch, masks=False, tags=True).image_embeds
        assert embeds is not None
        parts.append(embeds.float().cpu().numpy())
        for _ in batch:
            advance()
    return np.concatenate(parts)


def embed_texts(model: Model, texts: Sequence[str]) -> FloatArray:
    """Embeddings of texts, float32 (N, E), L2-normalised, as tags are embedded."""
    chunks = [texts[start : start + _TEXTS] for start in range(0, len(texts), _TEXTS)]
    return np.concatenate([model.text_embeds(chunk).float().cpu().numpy() for chunk in chunks])

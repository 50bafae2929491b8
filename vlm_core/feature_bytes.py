"""Image features as bytes and back, for caches: safetensors."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from vlm_core.errors import DataError
from vlm_core.types import ImageFeatures

_EMBEDS = "image_embeds"
_GRID = "grid_hw"


def dump(features: ImageFeatures) -> bytes:
    """Features of any number of images, in the precision that they have, wherever they are."""
    tensors = {f"tap{index}": tap for index, tap in enumerate(features.taps)}
    if features.image_embeds is not None:
        tensors[_EMBEDS] = features.image_embeds
    tensors[_GRID] = torch.tensor(features.grid_hw)
    return bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def parse(data: bytes) -> ImageFeatures:
    """What `dump` wrote, on the CPU.

    Raises:
        DataError: it is something else, or cut short.
    """
    try:
        tensors = load(data)
        rows, columns = (int(value) for value in tensors.pop(_GRID))
        embeds = tensors.pop(_EMBEDS, None)
        return ImageFeatures(tuple(tensors[f"tap{index}"] for index in range(len(tensors))), (rows, columns), embeds)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"these bytes hold no image features: {error}") from error

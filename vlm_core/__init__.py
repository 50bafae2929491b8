"""CLIP and CLIPSeg: masks from text prompts, rankings of tags.

    import vlm_core
    model = vlm_core.load("demo")
    masks = model.segment(image, ["left circle", "red cross"])
    tags = model.rank(image, ["a red circle", "a blue square"])

Importing this package is free: the names below load torch only when they are first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_core.checkpoint import load
    from vlm_core.errors import CheckpointError, InputError, VLMError
    from vlm_core.model import Model
    from vlm_core.prompts import Prompt
    from vlm_core.tags import TagCalibration, fit_tag_calibration
    from vlm_core.types import ImageFeatures, MaskLogits, TagScore

__all__ = [
    "CheckpointError",
    "ImageFeatures",
    "InputError",
    "MaskLogits",
    "Model",
    "Prompt",
    "TagCalibration",
    "TagScore",
    "VLMError",
    "fit_tag_calibration",
    "load",
]

_HOME = {
    "CheckpointError": "errors",
    "ImageFeatures": "types",
    "InputError": "errors",
    "MaskLogits": "types",
    "Model": "model",
    "Prompt": "prompts",
    "TagCalibration": "tags",
    "TagScore": "types",
    "VLMError": "errors",
    "fit_tag_calibration": "tags",
    "load": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"vlm_core.{_HOME[name]}"), name)
    raise AttributeError(f"module 'vlm_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

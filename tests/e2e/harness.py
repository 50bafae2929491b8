"""What the end-to-end tests share besides their fixtures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from label_studio_sdk.converter.brush import decode_rle

from backend.demo.project import Picture

PICTURES, LEFT_ALONE, SCENES = 56, 8, 60


@dataclass(frozen=True)
class PreLabelled:
    """A connected project whose predictions were retrieved, as it was before any correction.

    `predictions` maps each task to all its predictions in Label Studio at that time.
    """

    project_id: int
    tasks: dict[int, Picture]
    predictions: dict[int, list[dict[str, Any]]]
    version: str

    @property
    def left_alone(self) -> list[int]:
        """Tasks that no test corrects."""
        return sorted(self.tasks)[-LEFT_ALONE:]


def label_studio_executable() -> Path | None:
    """Named by the Makefile; None lets the stack look for it."""
    given = os.environ.get("VLM_TEST_LABEL_STUDIO")
    return Path(given) if given else None


def brush_masks(prediction: dict[str, Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """Per label its mask, with Label Studio's own decoder."""
    found: dict[str, npt.NDArray[np.bool_]] = {}
    for region in prediction["result"]:
        if region["type"] != "brushlabels":
            continue
        pixels = decode_rle(region["value"]["rle"])
        alpha = pixels.reshape(region["original_height"], region["original_width"], 4)[..., 3]
        assert set(np.unique(alpha)) <= {0, 255}
        (label,) = region["value"]["brushlabels"]
        found[label] = found.get(label, np.zeros(alpha.shape, dtype=np.bool_)) | (alpha > 0)
    return found

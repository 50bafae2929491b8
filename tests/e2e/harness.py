"""What the end-to-end tests share besides their fixtures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

"""The best weights of a run so far, on disk, and how long nothing better has been measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from vlm_core.recipes import common

WEIGHTS = "best.safetensors"


class Best:
    """Keeps the weights of the best measurement, and says when to end.

    Attributes:
        value: the best so far; None before the first.
        step: updates made by then.
        stale: measurements since.
    """

    def __init__(self, directory: Path, patience: int, notes: Mapping[str, Any] | None = None) -> None:
        """Begin, or go on with what `notes` gave when the run's state was written."""
        self._directory = directory
        self._patience = patience
        notes = notes or {}
        self.value: float | None = notes.get("value")
        self.step: int = notes.get("step", 0)
        self.stale: int = notes.get("stale", 0)

    @property
    def notes(self) -> dict[str, Any]:
        """What goes into the run's state; it names the file of weights by its step."""
        return {"value": self.value, "step": self.step, "stale": self.stale}

    @property
    def ended(self) -> bool:
        """Whether the training has gone on for long enough without getting better."""
        return self.stale >= self._patience

    def offer(self, step: int, value: float, module: nn.Module) -> None:
        """Take a measurement into account; equal is not better. The weights before stay until `forget_others`."""
        if self.value is not None and value <= self.value:
            self.stale += 1
            return
        self.value, self.step, self.stale = value, step, 0
        common.save_tensors(self._path, module.state_dict())

    def forget_others(self) -> None:
        """Remove weights that the run's state on disk names no more."""
        for old in self._directory.glob(f"*-{WEIGHTS}"):
            if old != self._path:
                old.unlink()

    def load_into(self, module: nn.Module) -> None:
        """Give a module the best weights; it is left as it is where nothing was measured."""
        if self.value is not None:
            module.load_state_dict(load_file(self._path))

    @property
    def _path(self) -> Path:
        return self._directory / f"{self.step:08d}-{WEIGHTS}"

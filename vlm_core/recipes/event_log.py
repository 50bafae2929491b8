"""Measurements as event files, for those who look at runs in TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

DIRECTORY = "tensorboard"


def event_log_problems() -> list[str]:
    """Why no event files can be written: the package that torch writes them with is optional."""
    if importlib.util.find_spec("tensorboard") is None:
        return [
            "tensorboard is asked for but not installed: pip install 'label-studio-vlm-backend[tensorboard]', "
            "or leave it out"
        ]
    return []


class EventLog:
    """Scalars of a run, below `tensorboard/` of its directory."""

    def __init__(self, directory: Path, *, resumed_at: int = 0) -> None:
        """Open the log; what was written of steps that a resumed run makes again is hidden."""
        from torch.utils.tensorboard.writer import SummaryWriter  # slow, and not installed everywhere

        self._writer = SummaryWriter(str(directory / DIRECTORY), purge_step=resumed_at + 1 if resumed_at else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write a measurement made after `step` updates, so that it can be seen at once."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

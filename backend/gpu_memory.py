"""The part of a GPU's memory that this process may take: `VLM_GPU_MEMORY_FRACTION`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backend.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def bound_gpu_memory(settings: Settings, devices: Sequence[torch.device] = ()) -> None:
    """Let torch take no more of a GPU than the settings allow; what is over fails with torch's out-of-memory error.

    Without a GPU, or with the whole of one allowed, nothing is done. Call it before a model is loaded.

    Args:
        settings: name one device.
        devices: that are taken beside it.
    """
    if settings.gpu_memory_fraction >= 1:
        return
    import torch

    if not torch.cuda.is_available():
        return
    taken = {torch.device("cuda" if settings.device == "auto" else settings.device), *devices}
    for index in {device.index for device in taken if device.type == "cuda"}:
        torch.cuda.set_per_process_memory_fraction(settings.gpu_memory_fraction, index)

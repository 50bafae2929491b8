"""The part of a GPU's memory that this process may take: `VLM_GPU_MEMORY_FRACTION`."""

from __future__ import annotations

from backend.settings import Settings


def bound_gpu_memory(settings: Settings) -> None:
    """Let torch take no more of the GPU than the settings allow; what is over fails with torch's out-of-memory error.

    Without a GPU, or with the whole of one allowed, nothing is done. Call it before a model is loaded.
    """
    if settings.gpu_memory_fraction >= 1:
        return
    import torch

    if not torch.cuda.is_available() or settings.device in ("cpu", "mps"):
        return
    index = torch.device("cuda" if settings.device == "auto" else settings.device).index
    torch.cuda.set_per_process_memory_fraction(settings.gpu_memory_fraction, index)

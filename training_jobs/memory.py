"""Memory that is short, told as an error of ours, with what can be done about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backend.failures import is_out_of_memory
from backend.logs import error_text
from training_jobs.errors import MemoryShortError

_SENTENCES = 3
"""Of torch's message: how much was asked for, and how much is free. What follows is advice on its settings."""


def memory_short(error: Exception) -> MemoryShortError:
    """What to raise from an error that says that memory is short."""
    first_line = error_text(error).partition("\n")[0]
    said = ". ".join(first_line.split(". ")[:_SENTENCES]) or type(error).__name__
    return MemoryShortError(
        f"memory is short, even for one image at a time ({said}). On a GPU let trainings take more of it and the "
        "server less (VLM_GPU_MEMORY_FRACTION of each); else learn from fewer views and labels at a time "
        "(VLM_TRAIN_RECIPE: {decoder: {encoded_views: 120, labels_per_image: 2}}), or choose a smaller checkpoint "
        "(VLM_CHECKPOINT)"
    )


@contextmanager
def short_memory_told() -> Iterator[None]:
    """For work that has nothing to divide: encoding, of a few images at a time, the optimiser, loading a model.

    Raises:
        MemoryShortError: memory was short inside.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise memory_short(error) from error
        raise

"""Why a task has no prediction, in a few words of a fixed set: for counting, where the error itself is for people."""

from __future__ import annotations

from typing import Literal

from backend.answers.request import TaskError
from backend.label_studio.config import LabelConfigError
from backend.label_studio.images.errors import (
    ForbiddenAddressError,
    ImageAddressError,
    ImageDecodeError,
    ImageError,
    ImageTimeoutError,
    ImageTooLargeError,
)
from backend.label_studio.interaction import InteractionError
from backend.model_store import BusyError, ModelFailedError, ModelLoadingError
from backend.versions import VersionError
from vlm_core.errors import VLMError

Reason = Literal[
    "config",
    "task_data",
    "late",
    "refused",
    "question",
    "image_address",
    "image_forbidden",
    "image_unavailable",
    "image_timeout",
    "image_too_large",
    "image_unreadable",
    "model_loading",
    "model_failed",
    "model_busy",
    "version",
    "model",
    "out_of_memory",
    "unexpected",
]

_BY_KIND: tuple[tuple[type[Exception], Reason], ...] = (
    # The first that fits: a kind of error stands before what it is a kind of.
    (LabelConfigError, "config"),
    (InteractionError, "question"),
    (ForbiddenAddressError, "image_forbidden"),
    (ImageAddressError, "image_address"),
    (ImageTimeoutError, "image_timeout"),
    (ImageTooLargeError, "image_too_large"),
    (ImageDecodeError, "image_unreadable"),
    (ImageError, "image_unavailable"),
    (BusyError, "model_busy"),
    (ModelLoadingError, "model_loading"),
    (ModelFailedError, "model_failed"),
    (VersionError, "version"),
    (VLMError, "model"),
)


def reason_of(error: Exception) -> Reason:
    """What an error counts as."""
    if isinstance(error, TaskError):
        return error.reason
    if is_out_of_memory(error):
        return "out_of_memory"
    return next((reason for kind, reason in _BY_KIND if isinstance(error, kind)), "unexpected")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short: the machine's or the accelerator's."""
    # torch.OutOfMemoryError, known by its name so that this module does not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""How torch says so where it raises a plain RuntimeError."""

"""Errors of `vlm_core`. Each message names the value that is wrong and what to do about it.

VLMError
├── InputError (also ValueError)   an argument that cannot be used
├── CapabilityError                the checkpoint cannot do what was asked (masks from a tags-only CLIP)
├── DataError (also ValueError)    a training or evaluation file that cannot be read
│   └── UnreadableSampleError      one sample of many, which a training may leave out
└── CheckpointError                a checkpoint that cannot be loaded
    ├── CheckpointNotFoundError    nothing there, or the hub cannot be reached
    ├── CheckpointIncompleteError  a file or a tensor is missing
    └── CheckpointMismatchError    the files do not belong together, or are of another kind
"""

from __future__ import annotations


class VLMError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(VLMError, ValueError):
    """An argument has a value that cannot be used."""


class CapabilityError(VLMError):
    """The loaded checkpoint lacks the part that the call needs."""


class DataError(VLMError, ValueError):
    """A data file is missing, malformed or inconsistent."""


class UnreadableSampleError(DataError):
    """One sample of a large set is broken; the set is of use without it."""


class CheckpointError(VLMError):
    """A checkpoint cannot be loaded."""


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint under that name, or it cannot be reached."""


class CheckpointIncompleteError(CheckpointError):
    """A file or a tensor of the checkpoint is missing."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint's files contradict each other, or hold another kind of model."""

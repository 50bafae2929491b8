"""Errors of training jobs. Messages name the value that is wrong and what to do.

TrainingError (vlm_core.errors.VLMError)
├── CannotTrainError      as things are it cannot work; trying again is pointless
├── CannotPrelabelError   the same for pre-labelling: what was asked for is dropped
├── ProcessEndedError     the job's process was killed or crashed
└── GivenUpError          try again, or somebody else does already
    ├── ProjectBusyError  another job of the project holds its lock
    ├── LockLostError     this job lost its lock: another may have taken over
    ├── ImagesAwayError   too many images could not be fetched, for reasons that may pass
    └── MemoryShortError  the machine's memory or the GPU's is short, even for one image at a time
"""

from __future__ import annotations

from vlm_core.errors import VLMError


class TrainingError(VLMError):
    """A training job cannot go on."""


class CannotTrainError(TrainingError):
    """As things are it cannot work: settings or the project must be changed first."""


class CannotPrelabelError(TrainingError):
    """As things are the project cannot be pre-labelled."""


class ProcessEndedError(TrainingError):
    """The job's process was killed, or crashed, without a word."""


class GivenUpError(TrainingError):
    """It cannot go on now, and may work later."""


class ProjectBusyError(GivenUpError):
    """Another job of the project holds its lock."""


class LockLostError(GivenUpError):
    """The job lost its lock, as after a long sleep of the machine: another may have taken over."""


class ImagesAwayError(GivenUpError):
    """Too many images could not be fetched, for reasons that may pass."""


class MemoryShortError(GivenUpError):
    """Memory is short even for one image at a time; what else takes it may end."""

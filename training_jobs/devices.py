"""The devices that share the fits of a training: `VLM_TRAIN_DEVICES`."""

from __future__ import annotations

import torch

from backend.settings import Settings
from training_jobs.errors import CannotTrainError


def training_devices(settings: Settings) -> tuple[torch.device, ...]:
    """Those that the settings name; none where the one of the model is all.

    Raises:
        CannotTrainError: one that this machine does not have.
    """
    if settings.train_devices is None:
        return ()
    gpus = torch.cuda.device_count()
    if settings.train_devices == "all":
        return tuple(torch.device("cuda", index) for index in range(gpus))
    found = []
    for name in settings.train_devices.split(","):
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
        there = {"cuda": (device.index or 0) < gpus, "mps": torch.backends.mps.is_available()}.get(device.type, True)
        if not there:
            raise CannotTrainError(
                f"VLM_TRAIN_DEVICES names {name}, which is not there: torch sees {gpus} GPU{'s' * (gpus != 1)}; "
                "leave it out, or use all"
            )
        found.append(device)
    return tuple(found)

"""Examples that stay on the GPU while they are learned from, as far as there is room.

A step takes milliseconds there; carrying its features over from the CPU's memory takes as long again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from training_jobs.recipes.finetune_decoder import Example
from vlm_core.types import ImageFeatures

_MOST = 0.25
"""Of the memory that is free now and that this process may take: the steps need the rest."""


def resident(examples: Sequence[Example], device: torch.device) -> list[Example]:
    """The same examples, the features of the first ones on the device.

    Args:
        examples: with features on the CPU.
        device: where they are learned from; for any but a GPU nothing is moved.
    """
    if device.type != "cuda":
        return list(examples)
    free, whole = torch.cuda.mem_get_info(device)
    room = _MOST * min(free, torch.cuda.get_per_process_memory_fraction(device) * whole)
    found = []
    for example in examples:
        room -= sum(tap.nbytes for view in example.views for tap in view.taps)
        if room >= 0:
            moved = (ImageFeatures(tuple(tap.to(device) for tap in view.taps), view.grid_hw) for view in example.views)
            example = replace(example, views=tuple(moved))
        found.append(example)
    return found

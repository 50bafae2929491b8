"""What fits need of a training, once on each device."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from training_jobs.recipes.finetune_decoder import Example
from training_jobs.recipes.micro_batches import MicroBatches
from training_jobs.recipes.resident import resident
from vlm_core.clipseg import CLIPSegDecoder


@dataclass(frozen=True)
class Copy:
    """On one device.

    Attributes:
        decoder: where learning starts; no fit changes it.
        examples: all of the training's, their features on the device as far as there is room.
        parts: how batches are computed there.
        blocks: of the image encoder, which no fit changes either.
    """

    decoder: CLIPSegDecoder
    examples: list[Example]
    parts: MicroBatches
    blocks: tuple[nn.Module, ...]

    def of(self, examples: Sequence[Example]) -> list[Example]:
        """These examples, as they are here."""
        here = {example.image: example for example in self.examples}
        return [here[example.image] for example in examples]


class Copies:
    """Made where they are asked for, and kept. Safe to share between threads."""

    def __init__(self, decoder: CLIPSegDecoder, examples: Sequence[Example], blocks: Sequence[nn.Module] = ()) -> None:
        """Nothing is copied yet.

        Args:
            decoder: where learning starts.
            examples: each image once, features on the CPU.
            blocks: on the decoder's device.
        """
        self._decoder, self._examples, self._blocks = decoder, examples, tuple(blocks)
        self._found: dict[torch.device, Copy] = {}
        self._lock = threading.Lock()

    def on(self, device: torch.device) -> Copy:
        """The copy on a device."""
        with self._lock:
            if device not in self._found:
                decoder, blocks = self._decoder, self._blocks
                if next(decoder.parameters()).device != device:
                    decoder = copy.deepcopy(decoder).to(device)
                    blocks = tuple(copy.deepcopy(block).to(device) for block in blocks)
                self._found[device] = Copy(decoder, resident(self._examples, device), MicroBatches(), blocks)
            return self._found[device]

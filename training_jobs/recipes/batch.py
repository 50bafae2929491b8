"""What one step of a fit learns from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_core.types import ImageFeatures


@dataclass(frozen=True)
class Batch:
    """B images as they were drawn, all on one device.

    Attributes:
        taps: of the image encoder, float16, (B, T, width) each.
        rows: int64, (B, K), of the prompt table.
        target: uint8 (B, K, h, w): share of each cell that is covered, 0 to 255.
        grid_hw: rows and columns of the patch grid.
    """

    taps: tuple[Tensor, ...]
    rows: Tensor
    target: Tensor
    grid_hw: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, part: slice) -> tuple[ImageFeatures, Tensor, Tensor]:
        """Some of its images: features, float32, rows, and targets, 0..1."""
        taps = tuple(tap[part].float() for tap in self.taps)
        return ImageFeatures(taps, self.grid_hw), self.rows[part], self.target[part].to(torch.float32) / 255

    def tensors(self) -> list[Tensor]:
        """All that differs between two batches of one fit."""
        return [*self.taps, self.rows, self.target]

    def clone(self) -> Batch:
        """A batch with room of its own."""
        return Batch(tuple(tap.clone() for tap in self.taps), self.rows.clone(), self.target.clone(), self.grid_hw)

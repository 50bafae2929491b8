"""How much is computed at once: images and conditions in batches that keep a device busy and memory bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class BatchSizes(NamedTuple):
    """Images that are encoded at once, and conditions that are decoded at once."""

    images: int
    conditions: int


_SIZES = {"cpu": BatchSizes(4, 8)}
"""By kind of device: enough to keep a CPU's cores busy, and no more memory than that takes. At 352 px a condition takes
some 8 MB on the way, and a labelling config may have a thousand."""
_SIZES_ELSEWHERE = BatchSizes(64, 64)


def batch_sizes(device: torch.device) -> BatchSizes:
    """How much is computed at once there."""
    return _SIZES.get(device.type, _SIZES_ELSEWHERE)


class Piece(NamedTuple):
    """Some conditions of one image: from `first` up to, not with, `last`, padded to `width`."""

    image: int
    first: int
    last: int
    width: int


def group_conditions(counts: Sequence[int], most: int, *, padded: bool) -> list[list[Piece]]:
    """Pieces of equal width, to be decoded together.

    Args:
        counts: how many conditions each image has, each at least 1.
        most: conditions in a group, padding included.
        padded: round widths up to powers of two, so that more are alike: for a GPU, where that is cheaper than another
            call.

    Returns:
        Groups that hold every condition of every image once.
    """
    by_width: dict[int, list[Piece]] = {}
    for index, count in enumerate(counts):
        for first in range(0, count, most):
            last = min(count, first + most)
            width = 1 << (last - first - 1).bit_length() if padded else last - first
            by_width.setdefault(width, []).append(Piece(index, first, last, width))
    groups = []
    for width, pieces in by_width.items():
        size = max(1, most // width)
        groups += [pieces[start : start + size] for start in range(0, len(pieces), size)]
    return groups


def pad_conditions(conditions: Tensor, width: int) -> Tensor:
    """Repeat the last condition up to a width; (P, E) -> (width, E)."""
    missing = width - len(conditions)
    return torch.cat([conditions, conditions[-1:].expand(missing, -1)]) if missing else conditions

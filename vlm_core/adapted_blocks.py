"""Blocks of an image encoder with low-rank changes of their weights, for what a project has learned.

A linear map W becomes W + B A, with A and B of a low rank (LoRA: Hu et al., arXiv:2106.09685). The deepest tap is
computed anew from the one before it, by changed copies of the blocks between the two. Both taps are known for every
image anyway: features that are kept stay valid, and what does not ask for the changed blocks is answered as before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlm_core.errors import CheckpointMismatchError
from vlm_core.image_encoder import ImageEncoder


def blocks_between(encoder: ImageEncoder, taps: Sequence[int]) -> tuple[nn.Module, ...]:
    """The blocks that lead from the last tap but one to the last; none where there is one tap only.

    Args:
        encoder: of the taps.
        taps: 0-based blocks, in any order.
    """
    if len(taps) < 2:
        return ()
    before, last = sorted(taps)[-2:]
    return tuple(list(encoder.vit.blocks)[before + 1 : last + 1])


class AdaptedBlocks(nn.Module):
    """Computes the deepest tap anew.

    Attributes:
        blocks: in order, changed.
        changes: what they were changed by: `<map>.A` (rank, in) and `<map>.B` (out, rank) for each changed map, by its
            name in `blocks`, such as `0.attn.qkv`.
    """

    def __init__(self, taps: Sequence[int], blocks: Sequence[nn.Module], changes: Mapping[str, Tensor]) -> None:
        """Copy the blocks and change the copies.

        Args:
            taps: of the decoder, at least two.
            blocks: see `blocks_between`; left as they are.
            changes: see the attribute; of none, the blocks are copied only.

        Raises:
            CheckpointMismatchError: changes of other maps than the blocks have.
        """
        super().__init__()
        before, last = sorted(taps)[-2:]
        self._before, self._last = taps.index(before), taps.index(last)
        self.blocks = nn.Sequential(*(copy.deepcopy(block) for block in blocks))
        self.changes = dict(changes)
        names = {name.removesuffix(".A").removesuffix(".B") for name in changes}
        with torch.no_grad():
            for name in sorted(names):
                try:
                    weight = self.blocks.get_parameter(f"{name}.weight")
                    change = changes[f"{name}.B"].float() @ changes[f"{name}.A"].float()
                    weight.copy_(weight.float() + change.to(weight.device))
                except (AttributeError, KeyError, RuntimeError) as error:
                    raise CheckpointMismatchError(
                        f"the learned changes of {name!r} do not fit this checkpoint's image encoder: {error}; use "
                        "another version"
                    ) from error

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Taps of B images, (B, T, D) each, with the deepest one computed anew."""
        found = list(taps)
        found[self._last] = self.blocks(found[self._before])
        return found

"""Masks of labels, learned straight from a frozen image encoder: a small convolutional head beside the decoder.

The decoder hears of a label through one vector and can only recombine what it was taught to tell apart. Where a label
means something else, the encoder's tokens still hold more than that: a head reads the same taps that the decoder reads
(layer norm, standardised by channel), through a shared body of a linear map and one 3 x 3 convolution, and gives each
label logits of its own. It answers for those labels instead of the decoder; nothing changes for any other phrase. A
linear probe on dense features (Oquab et al., arXiv:2304.07193, section 7.4), with a little more than a line. The
encoder's last blocks may have learned with it, for the head alone (`vlm_core.adapted_blocks`).

A head is chosen by condition: those of a model with a head are wider by one number for each phrase that the head knows,
1 for the one that is meant. So conditions are mixed, padded and batched like any others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlm_core.adapted_blocks import AdaptedBlocks
from vlm_core.clipseg import DecoderConfig
from vlm_core.errors import CheckpointMismatchError

PREFIX = "mask_head."
_PHRASE = PREFIX + "phrase."
_BODY = PREFIX + "body."
_CHANGES = "changes."
_ADAPTED = "adapted."
_MOST_CELLS = 4
"""Of a patch along one side that a head tells apart: finer than that its answer is interpolated. On the demo's scenes
more gained nothing (docs/decisions/adapting-ladder.md) and took twice the time."""

Kept = tuple[Tensor, Tensor]
"""While training, what dropout keeps of the inputs and of the hidden channels: (B, inputs) and (B, hidden)."""


class MaskHead(nn.Module):
    """Logits of some phrases, or labels, from an image's taps.

    Attributes:
        phrases: of the L outputs, in order.
        cells: answers for a patch along one side.
        adapted: what the deepest tap is computed with; None: it is the encoder's.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, config: DecoderConfig, phrases: Sequence[str], hidden: int, adapted: AdaptedBlocks | None = None
    ) -> None:
        """Build a head with random weights.

        Args:
            config: of the decoder beside which it answers: the same taps, the same grid.
            phrases: at least one.
            hidden: width of its body.
            adapted: see the attribute.
        """
        super().__init__()
        self.adapted = adapted
        self.config, self.phrases = config, tuple(phrases)
        self.cells = cells_of(config)
        inputs = len(config.taps) * config.tap_width
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.reduce = nn.Linear(inputs, hidden)
        self.mix = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1)
        self.out = nn.ConvTranspose2d(hidden, len(self.phrases), kernel_size=self.cells, stride=self.cells)

    def inputs(self, taps: Sequence[Tensor]) -> Tensor:
        """Taps (B, T, width) side by side, without prefix tokens, each token normalised: (B, cells, inputs)."""
        if self.adapted is not None:
            taps = self.adapted(taps)
        normed = [nn.functional.layer_norm(tap, tap.shape[-1:]) for tap in taps]
        return torch.cat(normed, dim=-1)[:, self.config.num_prefix_tokens :]

    def forward(self, taps: Sequence[Tensor], grid_hw: tuple[int, int], kept: Kept | None = None) -> Tensor:
        """Logits of all phrases, (B, L, rows * cells, columns * cells); arguments as `CLIPSegDecoder`'s."""
        tokens = (self.inputs(taps) - self.mean) / self.spread
        if kept is not None:
            tokens = tokens * kept[0].unsqueeze(1)
        hidden = nn.functional.gelu(self.reduce(tokens)).transpose(1, 2)
        hidden = hidden.reshape(*hidden.shape[:2], *grid_hw)
        hidden = hidden + nn.functional.gelu(self.mix(hidden))
        if kept is not None:
            hidden = hidden * kept[1][..., None, None]
        logits: Tensor = self.out(hidden)
        return logits

    def on_grid(self, logits: Tensor) -> Tensor:
        """Logits (B, L, ...) of `forward` on the decoder's grid, interpolated."""
        finer = self.config.upsampling // self.cells
        if finer == 1:
            return logits
        return nn.functional.interpolate(logits, scale_factor=finer, mode="bilinear", align_corners=False)

    def answer(self, taps: Sequence[Tensor], picks: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Logits of P mixes of phrases on the decoder's grid.

        Args:
            taps: of B images, as for `CLIPSegDecoder`.
            picks: (B, P, L), how much of each phrase.
            grid_hw: rows and columns of the patch grid.
        """
        return self.on_grid(torch.einsum("bpl,blhw->bphw", picks, self(taps, grid_hw)))


def cells_of(config: DecoderConfig) -> int:
    """Answers of a head for one patch, along one side: the most that fit into the decoder's grid evenly, up to four."""
    return max(cells for cells in range(1, _MOST_CELLS + 1) if config.upsampling % cells == 0)


def join_mask_head(head: MaskHead, outputs: Mapping[str, int]) -> dict[str, Tensor]:
    """Tensors to be kept beside a decoder's weights.

    Args:
        head: on the CPU.
        outputs: for each phrase that it shall answer, which of its outputs does.
    """
    own = {name: value for name, value in whole_state(head).items() if not name.startswith("out.")}
    state = {(PREFIX if name.startswith(_CHANGES) else _BODY) + name: value for name, value in own.items()}
    kernels, biases = head.out.weight.detach(), head.out.bias
    assert biases is not None  # it is built with one
    for phrase, output in outputs.items():
        row = torch.cat([kernels[:, output].flatten(), biases.detach()[output : output + 1]])
        state[_PHRASE + phrase] = row.clone()
    return state


def whole_state(head: MaskHead) -> dict[str, Tensor]:
    """A head's weights, and of adapted blocks only what changed them; `load_whole_state` reads them."""
    own = {name: value for name, value in head.state_dict().items() if not name.startswith(_ADAPTED)}
    changes = {} if head.adapted is None else head.adapted.changes
    return own | {_CHANGES + name: value for name, value in changes.items()}


def load_whole_state(head: MaskHead, state: Mapping[str, Tensor], blocks: Sequence[nn.Module]) -> None:
    """Give a head without adapted blocks what `whole_state` gave of another one.

    Args:
        head: of the same shape.
        state: its weights.
        blocks: of the image encoder, see `adapted_blocks.blocks_between`; for weights that change them.

    Raises:
        RuntimeError: weights of another shape.
        CheckpointMismatchError: changes of other blocks.
    """
    changes = {name.removeprefix(_CHANGES): value for name, value in state.items() if name.startswith(_CHANGES)}
    head.load_state_dict({name: value for name, value in state.items() if not name.startswith(_CHANGES)})
    head.adapted = AdaptedBlocks(head.config.taps, blocks, changes) if changes else None


def split_mask_head(
    state: Mapping[str, Tensor], config: DecoderConfig | None, blocks: Sequence[nn.Module] = ()
) -> tuple[dict[str, Tensor], MaskHead | None]:
    """All other tensors of a state, and the head that `join_mask_head` has joined; None where there is none.

    Args:
        state: of a version.
        config: of the decoder beside which the head answers; None where there is no decoder.
        blocks: of the image encoder, see `adapted_blocks.blocks_between`; for a head that has changed them.

    Raises:
        CheckpointMismatchError: the head is not whole, or is for another decoder.
    """
    others = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    if len(others) == len(state):
        return others, None
    body = {name.removeprefix(_BODY): value for name, value in state.items() if name.startswith(_BODY)}
    rows = {name.removeprefix(_PHRASE): value for name, value in sorted(state.items()) if name.startswith(_PHRASE)}
    if config is None or not rows or body.get("reduce.weight", torch.empty(0)).ndim != 2:
        raise CheckpointMismatchError(
            "the learned masks are not whole, or not for this checkpoint: use another version"
        )
    hidden = len(body["reduce.weight"])
    changes = {name.removeprefix(PREFIX): v for name, v in state.items() if name.startswith(PREFIX + _CHANGES)}
    head = MaskHead(config, list(rows), hidden)
    try:
        table = torch.stack(list(rows.values()))
        body["out.weight"] = table[:, :-1].view(len(rows), hidden, head.cells, head.cells).transpose(0, 1)
        body["out.bias"] = table[:, -1]
        load_whole_state(head, body | changes, blocks)
    except RuntimeError as error:
        raise CheckpointMismatchError(
            f"the learned masks do not fit this checkpoint's decoder: {error}; use another version"
        ) from error
    return others, head.eval().requires_grad_(False)

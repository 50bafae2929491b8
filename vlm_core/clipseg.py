"""CLIPSeg's decoder: taps of a frozen image encoder and a condition -> mask logits.

Source: Lueddecke & Ecker, CVPR 2022, arXiv:2112.10003. Parameter names are those of the published weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from vlm_core.errors import CheckpointMismatchError, InputError


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of a decoder.

    Attributes:
        taps: 0-based blocks of the image encoder; the last one is read first, so usually shallowest first.
            The published weights use (3, 6, 9).
        tap_width: width of those blocks' tokens.
        condition_dim: width of the condition, the CLIP projection's.
        num_prefix_tokens: class and register tokens at the start of each tap; dropped before the head.
        reduce_dim: the decoder's own width.
        num_heads, mlp_width: of its transformer blocks.
        conditional_layer: the block, counted from the deepest tap, whose input FiLM modulates.
        head_kernels: one number: one transposed convolution with that kernel and stride. Two: the refined
            head, a 3 x 3 convolution and two transposed ones. The mask grid is the patch grid times their product.
        layer_norm_eps: of its blocks.
        dropout: in its blocks while training.
        normalise_inputs: pass taps and conditions through layer norms first. The published weights do not; encoders
            that learn together with the decoder let their outputs grow until its attention saturates.
    """

    taps: tuple[int, ...] = (3, 6, 9)
    tap_width: int = 768
    condition_dim: int = 512
    num_prefix_tokens: int = 1
    reduce_dim: int = 64
    num_heads: int = 4
    mlp_width: int = 2048
    conditional_layer: int = 0
    head_kernels: tuple[int, ...] = (4, 4)
    layer_norm_eps: float = 1e-5
    dropout: float = 0.0
    normalise_inputs: bool = False

    def __post_init__(self) -> None:
        if not self.taps or min(self.taps) < 0:
            raise CheckpointMismatchError(f"taps {self.taps} must be one or more blocks, counted from 0")
        if not 0 <= self.conditional_layer < len(self.taps):
            raise CheckpointMismatchError(
                f"conditional_layer {self.conditional_layer} is none of {len(self.taps)} blocks"
            )
        if self.reduce_dim % self.num_heads:
            raise CheckpointMismatchError(f"reduce_dim {self.reduce_dim} is no multiple of {self.num_heads} heads")
        if len(self.head_kernels) not in (1, 2) or min(self.head_kernels) < 1:
            raise CheckpointMismatchError(f"head_kernels {self.head_kernels} must be one or two positive numbers")

    @property
    def upsampling(self) -> int:
        """Mask cells per patch along one side."""
        return self.head_kernels[0] * (self.head_kernels[1] if len(self.head_kernels) == 2 else 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecoderConfig:
        """Read what `to_dict` wrote. Raises CheckpointMismatchError for unknown keys."""
        try:
            kwargs: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
            return cls(**kwargs)
        except TypeError as error:
            raise CheckpointMismatchError(f"not a decoder configuration: {dict(values)} ({error})") from error


class _SelfAttention(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            proj(x).view(batch, length, self.num_heads, -1).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        attended: Tensor = self.out_proj(out.transpose(1, 2).reshape(batch, length, width))
        return attended


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(nn.functional.relu(self.fc1(x)))
        return out


class _Block(nn.Module):
    """A transformer block that normalises after each sum, as in the original decoder."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(config.reduce_dim, config.num_heads, config.dropout)
        self.layer_norm1 = nn.LayerNorm(config.reduce_dim, eps=config.layer_norm_eps)
        self.mlp = _MLP(config.reduce_dim, config.mlp_width)
        self.layer_norm2 = nn.LayerNorm(config.reduce_dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm1(x + self.dropout(self.self_attn(x)))
        out: Tensor = self.layer_norm2(x + self.dropout(self.mlp(x)))
        return out


class CLIPSegDecoder(nn.Module):
    """FiLM, one transformer block a tap, and an upsampling head. Prompts do not see each other."""

    def __init__(self, config: DecoderConfig) -> None:
        """Build the decoder with random weights."""
        super().__init__()
        self.config = config
        width = config.reduce_dim
        self.film_mul = nn.Linear(config.condition_dim, width)
        self.film_add = nn.Linear(config.condition_dim, width)
        self.reduces = nn.ModuleList(nn.Linear(config.tap_width, width) for _ in config.taps)
        self.layers = nn.ModuleList(_Block(config) for _ in config.taps)
        if config.normalise_inputs:
            self.tap_norms = nn.ModuleList(
                nn.LayerNorm(config.tap_width, eps=config.layer_norm_eps) for _ in config.taps
            )
            self.condition_norm = nn.LayerNorm(config.condition_dim, eps=config.layer_norm_eps)
        kernels = config.head_kernels
        self.transposed_convolution: nn.Module
        if len(kernels) == 1:
            self.transposed_convolution = nn.ConvTranspose2d(width, 1, kernels[0], stride=kernels[0])
        else:
            self.transposed_convolution = nn.Sequential(
                nn.Conv2d(width, width, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(width, width // 2, kernel_size=kernels[0], stride=kernels[0]),
                nn.ReLU(),
                nn.ConvTranspose2d(width // 2, 1, kernel_size=kernels[1], stride=kernels[1]),
            )

    def film(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """(..., condition_dim) -> scale and shift of every reduced token, each (..., reduce_dim)."""
        if self.config.normalise_inputs:
            conditions = self.condition_norm(conditions)
        return self.film_mul(conditions), self.film_add(conditions)

    def forward(self, taps: Sequence[Tensor], conditions: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Decode P conditions for each of B images.

        Args:
            taps: one (B, T, tap_width) for each of `config.taps`, in that order, T = prefix + grid cells.
            conditions: (B, P, condition_dim), projected and not normalised.
            grid_hw: rows and columns of the patch grid.

        Returns:
            Mask logits, (B, P, rows * upsampling, columns * upsampling).

        Raises:
            InputError: the number of taps or their length is not that of `config` and `grid_hw`.
        """
        config = self.config
        batch, prompts, _ = conditions.shape
        rows, columns = grid_hw
        length = config.num_prefix_tokens + rows * columns
        if len(taps) != len(config.taps) or any(t.shape[:2] != (batch, length) for t in taps):
            raise InputError(
                f"a grid of {rows} x {columns} needs {len(config.taps)} taps of ({batch}, {length}, "
                f"{config.tap_width}), got {[tuple(t.shape) for t in taps]}"
            )
        if config.normalise_inputs:
            taps = [norm(tap) for norm, tap in zip(self.tap_norms, taps, strict=True)]
        scale, shift = (part.unsqueeze(2) for part in self.film(conditions))
        x: Tensor | None = None
        # What comes before FiLM is the same for all prompts, so the prompt axis starts there.
        modulated = False
        for index, (tap, reduce, layer) in enumerate(zip(reversed(taps), self.reduces, self.layers, strict=True)):
            reduced = reduce(tap)
            if modulated:
                assert x is not None
                x = (x.view(batch, prompts, length, -1) + reduced.unsqueeze(1)).flatten(0, 1)
            else:
                x = reduced if x is None else x + reduced
            if index == config.conditional_layer:
                x = (scale * x.unsqueeze(1) + shift).flatten(0, 1)
                modulated = True
            x = layer(x)
        assert x is not None
        cells = x[:, config.num_prefix_tokens :].transpose(1, 2).reshape(batch * prompts, -1, rows, columns)
        logits: Tensor = self.transposed_convolution(cells).squeeze(1)
        return logits.view(batch, prompts, *logits.shape[-2:])

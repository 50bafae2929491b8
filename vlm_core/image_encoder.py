"""Image towers: any timm `VisionTransformer`, with taps. The only user of timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vlm_core.errors import CheckpointMismatchError, CheckpointNotFoundError, InputError


@dataclass(frozen=True, slots=True)
class EncodedPixels:
    """What one pass through the tower gives.

    Attributes:
        taps: outputs of the blocks that were asked for, in the order asked, each (B, T, D).
        pooled: (B, D), the tower's own pooling after its final norm; None when it was not asked for.
        grid_hw: rows and columns of the patch grid.
    """

    taps: tuple[Tensor, ...]
    pooled: Tensor | None
    grid_hw: tuple[int, int]


class ImageEncoder(nn.Module):
    """A timm ViT whose intermediate blocks can be tapped, at any input size.

    The positional embedding is resampled bicubically, without antialiasing: so CLIPSeg's weights were
    trained, and so transformers does it. timm's own resampling antialiases and changes the features.
    """

    def __init__(self, architecture: str, model_args: Mapping[str, Any] | None = None) -> None:
        """Build the tower with random weights.

        Args:
            architecture: a timm model name, such as `vit_base_patch16_clip_quickgelu_224`.
            model_args: JSON-able overrides of that model's constructor (`img_size`, `patch_size`,
                `embed_dim`, `depth`, `num_heads`, `mlp_ratio`, `act_layer`, ...), and two of our own:
                `layer_norm_eps`, and `stem_widths`, which cuts patches with a `ConvStem` instead of one linear map.

        Raises:
            CheckpointMismatchError: timm does not know the name, or it is no `VisionTransformer`.
        """
        super().__init__()
        self.architecture = architecture
        self.model_args: dict[str, Any] = dict(model_args or {})
        kwargs = dict(self.model_args)
        stem_widths = kwargs.pop("stem_widths", None)
        eps = kwargs.pop("layer_norm_eps", None)
        if eps is not None:
            kwargs["norm_layer"] = partial(nn.LayerNorm, eps=float(eps))
        try:
            vit = timm.create_model(architecture, pretrained=False, num_classes=0, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointMismatchError(
                f"timm {timm.__version__} cannot build the image encoder {architecture!r} "
                f"with {self.model_args}: {error}"
            ) from error
        self._adopt(vit, architecture)
        if stem_widths is not None:
            self.vit.patch_embed.proj = ConvStem(stem_widths, self.width, self.patch_size)

    def _adopt(self, vit: nn.Module, name: str) -> None:
        if not isinstance(vit, VisionTransformer) or vit.pos_embed is None:
            raise CheckpointMismatchError(
                f"the image encoder {name!r} is a {type(vit).__name__}; taps need a timm VisionTransformer "
                "with absolute positions: choose a `vit_*` model"
            )
        self.vit: VisionTransformer = vit

    @classmethod
    def pretrained(cls, source: str, image_size: int | None = None) -> ImageEncoder:
        """Load pre-trained weights.

        Args:
            source: a timm model name with weights (`vit_small_patch14_dinov2.lvd142m`), `hf-hub:owner/name`,
                or a directory in timm's hub layout (`config.json` beside `model.safetensors`).
            image_size: the size that the position grid is kept for; default the weights' own.

        Raises:
            CheckpointNotFoundError: the weights are not there or cannot be fetched.
            CheckpointMismatchError: they are not those of a `VisionTransformer`.
        """
        name = f"local-dir:{source}" if Path(source).is_dir() else source
        if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
            raise CheckpointNotFoundError(
                f"no config.json in {source}: an image encoder's directory needs timm's hub layout, "
                "config.json (with its `architecture`) beside model.safetensors"
            )
        kwargs: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        try:
            vit = timm.create_model(name, pretrained=True, num_classes=0, **kwargs)
        except Exception as error:  # timm raises whatever the hub client, the file system or torch raises
            raise CheckpointNotFoundError(
                f"the pre-trained image encoder {source!r} cannot be loaded ({type(error).__name__}: {error}). "
                "Check the name with timm.list_models(pretrained=True); without a network, give a directory "
                "with config.json and model.safetensors"
            ) from error
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._adopt(vit, source)
        self.architecture = str(self.pretrained_cfg.get("architecture") or source.split(".")[0])
        size: Any = self.vit.patch_embed.img_size
        # What the weights' own config changes of the model; timm notes it for building the same one again.
        given: Mapping[str, Any] = getattr(vit, "_model_args", {})
        self.model_args = {name: value for name, value in given.items() if name != "num_classes"}
        if size:
            self.model_args["img_size"] = list(size)
        return self

    @property
    def width(self) -> int:
        """D, the width of its tokens."""
        return int(self.vit.embed_dim)

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.vit.blocks)

    @property
    def patch_size(self) -> int:
        """Side of a patch, px."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens before the patch tokens."""
        return int(self.vit.num_prefix_tokens)

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation per channel that the weights were trained with, on a range of 0..1."""
        cfg = self.pretrained_cfg
        return tuple(cfg["mean"]), tuple(cfg["std"])

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm knows of the weights: architecture, mean, std, input size."""
        cfg: Any = self.vit.pretrained_cfg
        return dict(cfg)

    def forward(self, pixel_values: Tensor, taps: Sequence[int] = (), *, pooled: bool = True) -> EncodedPixels:
        """Encode a batch.

        Args:
            pixel_values: (B, 3, H, W), normalised; H and W at least one patch. What the last whole patch leaves over
                at the right and at the bottom is not seen, as in transformers.
            taps: 0-based blocks whose outputs are wanted.
            pooled: whether to run to the end and pool. Otherwise only the blocks up to the deepest tap run.

        Raises:
            InputError: a size below one patch, or a block that is not there.
        """
        height, width = pixel_values.shape[-2:]
        patch = self.patch_size
        grid_hw = (height // patch, width // patch)
        if not all(grid_hw):
            raise InputError(f"an input of {height} x {width} px is smaller than one patch of {patch} px")
        if any(not 0 <= t < self.depth for t in taps):
            raise InputError(f"taps {tuple(taps)} name blocks outside 0..{self.depth - 1}")
        vit = self.vit
        pixel_values = pixel_values[..., : grid_hw[0] * patch, : grid_hw[1] * patch]
        # The patch projection itself: timm's wrapper refuses sizes other than the configured one.
        tokens = vit.patch_embed.norm(vit.patch_embed.proj(pixel_values).flatten(2).transpose(1, 2))
        tokens = vit.norm_pre(vit.pos_drop(self._add_positions(tokens, grid_hw)))
        last = self.depth - 1 if pooled else max(taps, default=-1)
        kept: dict[int, Tensor] = {}
        for index, block in enumerate(vit.blocks):
            if index > last:
                break
            tokens = block(tokens)
            if index in taps:
                kept[index] = tokens
        pooled_features = vit.forward_head(vit.norm(tokens), pre_logits=True) if pooled else None
        return EncodedPixels(tuple(kept[t] for t in taps), pooled_features, grid_hw)

    def _add_positions(self, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Prefix tokens and positions; (B, cells, D) -> (B, prefix + cells, D)."""
        vit = self.vit
        batch = tokens.shape[0]
        prefix = [
            token.expand(batch, -1, -1)
            for token in (vit.cls_token, getattr(vit, "reg_token", None))
            if token is not None
        ]
        assert vit.pos_embed is not None  # checked when the tower was adopted
        n_prefix = 0 if vit.no_embed_class else self.num_prefix_tokens
        positions = resample_positions(vit.pos_embed, vit.patch_embed.grid_size, grid_hw, n_prefix)
        if vit.no_embed_class:
            return torch.cat([*prefix, tokens + positions], dim=1)
        return torch.cat([*prefix, tokens], dim=1) + positions


class ConvStem(nn.Sequential):
    """Patches from strided 3 x 3 convolutions instead of one linear map: small towers learn shapes much sooner.

    Source: Xiao et al., Early convolutions help transformers see better, arXiv:2106.14881.
    """

    def __init__(self, widths: Sequence[int], out_width: int, patch_size: int) -> None:
        """Halve the resolution once for each of `widths`, then map to the tower's width.

        Raises:
            CheckpointMismatchError: the halvings do not make patches of `patch_size`.
        """
        if 2 ** len(widths) != patch_size:
            raise CheckpointMismatchError(
                f"stem_widths {list(widths)} halve {len(widths)} times, which gives patches of {2 ** len(widths)} px, "
                f"not {patch_size}"
            )
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        super().__init__(*layers, nn.Conv2d(before, out_width, 1))


def resample_positions(positions: Tensor, old_hw: tuple[int, int], new_hw: tuple[int, int], n_prefix: int) -> Tensor:
    """Resample a positional embedding to another grid: bicubic, `align_corners=False`, no antialiasing.

    Args:
        positions: (1, n_prefix + old cells, D), row by row.
        old_hw: the grid it was trained on.
        new_hw: the grid that is wanted.
        n_prefix: leading positions that belong to no cell and are kept.

    Returns:
        (1, n_prefix + new cells, D); the same tensor where the grids are equal.
    """
    if tuple(old_hw) == tuple(new_hw):
        return positions
    prefix, cells = positions[:, :n_prefix], positions[:, n_prefix:]
    cells = cells.reshape(1, *old_hw, -1).permute(0, 3, 1, 2)
    # bicubic is computed in float32: half precision has no CPU kernel and would move the grid
    resampled = nn.functional.interpolate(
        cells.float(), size=tuple(new_hw), mode="bicubic", align_corners=False, antialias=False
    ).to(positions.dtype)
    return torch.cat([prefix, resampled.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

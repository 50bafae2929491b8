"""PIL image -> pixel_values; text -> token ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vlm_core.errors import CheckpointIncompleteError, CheckpointMismatchError, InputError
from vlm_core.pictures import to_rgb
from vlm_core.text_encoder import tokenizer_directory_files

SEEN_REVISION = 1
"""Part of the name that image features are kept under. Raise it when an image file comes to other features than before
with the same weights: by what `vlm_core.pictures` makes of it, by how it is scaled here, by how an encoder computes."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_ASPECT = 8
"""Pictures up to so many times as long as wide are scaled whole before their centre is cut out."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """From a picture to the pixel values that a tower expects.

    Attributes:
        size_hw: the output's height and width, px.
        crop: False squashes the whole picture to `size_hw` (CLIPSeg). True scales its shorter edge to
            `shortest_edge` and cuts the centre out (CLIP).
        shortest_edge: px; only used with `crop`, 0 otherwise.
        resample: PIL's number of the filter: 2 bilinear, 3 bicubic.
        mean, std: per channel, on a range of 0..1.
    """

    size_hw: tuple[int, int]
    crop: bool = False
    shortest_edge: int = 0
    resample: int = 2
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if min(self.size_hw) < 1 or (self.crop and self.shortest_edge < max(self.size_hw)):
            raise CheckpointMismatchError(
                f"an image size of {self.size_hw} with shortest edge {self.shortest_edge} cannot be cut out"
            )
        usable = all(math.isfinite(value) for value in (*self.mean, *self.std)) and min(self.std) > 0
        if self.resample not in range(6) or not usable:
            raise CheckpointMismatchError(
                f"resample {self.resample}, mean {self.mean} or std {self.std} cannot be used"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageTransform:
        """Read what `to_dict` wrote. Raises CheckpointMismatchError where a key is missing or wrong."""
        try:
            kwargs: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
            return cls(**kwargs)
        except TypeError as error:
            raise CheckpointMismatchError(f"not an image transform: {dict(values)} ({error})") from error

    @classmethod
    def from_processor(cls, processor: Mapping[str, Any]) -> ImageTransform:
        """Read the image processor's configuration that transformers saves.

        Args:
            processor: `preprocessor_config.json`, or the `image_processor` part of `processor_config.json`.
                `size` may be a number, `{height, width}` or `{shortest_edge}`.

        Raises:
            CheckpointMismatchError: no size in it, one of another form, or a value that is none.
        """
        try:
            return cls._read_processor(processor)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointMismatchError(
                f"the image processor's settings {dict(processor)} cannot be used ({error!r}): "
                "take the file of the original checkpoint"
            ) from error

    @classmethod
    def _read_processor(cls, processor: Mapping[str, Any]) -> ImageTransform:
        size, crop_size = processor.get("size"), processor.get("crop_size")
        crop = bool(processor.get("do_center_crop", False)) and crop_size is not None
        edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
        if isinstance(size, int):
            # Old files: one number meant the shorter edge for CLIP and a square for ViT's processor.
            edge = size if crop else None
            size = {"height": size, "width": size}
        if not isinstance(size, Mapping) or not (edge or {"height", "width"} <= set(size)):
            raise CheckpointMismatchError(
                f"the image processor's size {size!r} is neither a number nor height and width"
            )
        if isinstance(crop_size, int):
            crop_size = {"height": crop_size, "width": crop_size}
        if crop:
            if not isinstance(crop_size, Mapping):
                raise TypeError(f"crop_size {crop_size!r} is neither a number nor height and width")
            size_hw = (int(crop_size["height"]), int(crop_size["width"]))
        else:
            size_hw = (
                (int(size["height"]), int(size["width"])) if "height" in size else (int(edge or 0), int(edge or 0))
            )
        mean, std = processor.get("image_mean", IMAGENET_MEAN), processor.get("image_std", IMAGENET_STD)
        if not processor.get("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        # Values are brought to 0..1 before mean and deviation; a processor with another factor is met by these two.
        factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
        mean, std = ([float(value) / (255 * factor) for value in values] for values in (mean, std))
        return cls(
            size_hw=size_hw,
            crop=crop,
            shortest_edge=max(int(edge or 0), *size_hw) if crop else 0,
            resample=int(processor.get("resample", 2)),
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
        )

    def squashed(self) -> ImageTransform:
        """The same size and normalisation without cutting anything off."""
        return replace(self, crop=False, shortest_edge=0)

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, W) float32, normalised, from a picture of any size.

        Args:
            image: EXIF rotation already applied; converted to RGB, 8 bit, where it is not.

        Raises:
            InputError: not a PIL image, or one without pixels.
        """
        if not isinstance(image, Image.Image):
            raise InputError(f"an image must be a PIL.Image.Image, got {type(image).__name__}: use Image.open(path)")
        width, height = image.size
        if not width or not height:
            raise InputError(f"an image of {width} x {height} px has no pixels")
        rgb = to_rgb(image)
        filter_ = Image.Resampling(self.resample)
        if self.crop:
            rgb = self._cut_out(rgb, filter_)
        elif rgb.size != (self.size_hw[1], self.size_hw[0]):
            rgb = rgb.resize((self.size_hw[1], self.size_hw[0]), filter_)
        values = np.asarray(rgb, dtype=np.float32) / 255.0
        values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(values).permute(2, 0, 1).contiguous()

    def _cut_out(self, rgb: Image.Image, filter_: Image.Resampling) -> Image.Image:
        """Scale the shorter edge to `shortest_edge` and take the centre.

        The longer edge is truncated to whole pixels, as CLIP's own preprocessing does.
        """
        height, width = self.size_hw
        scaled = tuple(self.shortest_edge * side // min(rgb.size) for side in rgb.size)
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        if max(scaled) <= _MAX_ASPECT * self.shortest_edge:
            return rgb.resize((scaled[0], scaled[1]), filter_).crop((left, top, left + width, top + height))
        # All of a very long picture could fill the memory: only what the filter reaches from the centre is scaled.
        lying = rgb.width > rgb.height
        start, length = (left, width) if lying else (top, height)
        step = max(rgb.size) / max(scaled)
        reach = math.ceil(4 * max(1.0, step))
        first = max(0, math.floor(start * step) - reach)
        last = min(max(rgb.size), math.ceil((start + length) * step) + reach)
        ends = (start * step - first, min((start + length) * step - first, last - first))
        if lying:
            part = rgb.crop((first, 0, last, rgb.height))
            part = part.resize((width, rgb.height), filter_, box=(ends[0], 0, ends[1], rgb.height))
            return part.resize((width, scaled[1]), filter_).crop((0, top, width, top + height))
        part = rgb.crop((0, first, rgb.width, last)).resize((scaled[0], last - first), filter_)
        part = part.resize((scaled[0], height), filter_, box=(0, ends[0], scaled[0], ends[1]))
        return part.crop((left, 0, left + width, height))


class TextTokenizer:
    """Texts -> ids and mask, padded to the longest text of the call, or all to full length."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        *,
        padding: Literal["longest", "max_length"] = "longest",
    ) -> None:
        """Wrap a tokenizer; texts longer than `max_tokens` (special tokens included) are cut.

        `padding="max_length"` is for SigLIP, whose text tower sees the padding.
        """
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.padding = padding

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        *,
        vocab_size: int,
        max_tokens: int,
        padding: Literal["longest", "max_length"] = "longest",
        kind: type[PreTrainedTokenizerFast] | type[AutoTokenizer] = AutoTokenizer,
    ) -> TextTokenizer:
        """Load the tokenizer files of a checkpoint.

        Args:
            directory: where they are.
            vocab_size: the text encoder's.
            max_tokens, padding: as for the constructor.
            kind: the class of transformers that reads them.

        Raises:
            CheckpointIncompleteError: there are none (transformers would then invent a vocabulary).
            CheckpointMismatchError: they are of another vocabulary than the weights.
        """
        files = tokenizer_directory_files(directory)
        if not files:
            raise CheckpointIncompleteError(
                f"no tokenizer in {directory}: tokenizer.json, or vocab.json with merges.txt, or vocab.txt is "
                "needed. Save it beside the weights with processor.save_pretrained(directory)"
            )
        if "tokenizer.json" not in files and "vocab.json" in files and not (directory / "merges.txt").is_file():
            raise CheckpointIncompleteError(f"{directory} has vocab.json but no merges.txt: copy it from the original")
        try:
            tokenizer = kind.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:  # the tokenizers library raises plain Exception for a broken file
            raise CheckpointMismatchError(f"the tokenizer files in {directory} cannot be read: {error}") from error
        if len(tokenizer) > vocab_size:
            raise CheckpointMismatchError(
                f"the tokenizer in {directory} has {len(tokenizer)} tokens, the text encoder only {vocab_size}: "
                "they are from different models"
            )
        if tokenizer.pad_token_id is None:
            raise CheckpointMismatchError(f"the tokenizer in {directory} has no padding token: set pad_token in it")
        # Padding must not move a text's tokens: its vector would depend on the others of the call.
        tokenizer.padding_side = "right"
        return cls(tokenizer, max_tokens, padding=padding)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N texts -> `input_ids` and `attention_mask`, both int64, (N, L) with L the longest text's tokens, or all."""
        batch = self.tokenizer(
            list(texts),
            padding=self.padding,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
            return_attention_mask=True,
        )
        return batch["input_ids"], batch["attention_mask"]

"""The layout of `google/siglip-base-patch16-224`, as transformers saves it: a dual encoder for tags.

SigLIP 2 with a fixed image size (`google/siglip2-base-patch16-224`) has the same layout. The image tower goes to timm,
its attention pooling included; the text tower stays transformers'.

Source: Zhai et al., arXiv:2303.15343; Tschannen et al., arXiv:2502.14786.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, normalizers, processors
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast, SiglipConfig, SiglipTextConfig

from vlm_core.clip import CLIP
from vlm_core.errors import CheckpointIncompleteError, CheckpointMismatchError
from vlm_core.files import fill, fingerprint, read_json
from vlm_core.hub_layout import (
    build_image_encoder,
    check_size,
    clip_name_in_file,
    convert_clip,
    read_all_weights,
    read_processor,
)
from vlm_core.model import Model
from vlm_core.preprocess import ImageTransform, TextTokenizer
from vlm_core.text_encoder import TextEncoder

MODEL_TYPE = "siglip"

_TIMM_ARCHITECTURE = "vit_base_patch16_siglip_224"
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_POOL_NAMES = (
    ("head.probe", "attn_pool.latent"),
    ("head.attention.out_proj", "attn_pool.proj"),
    ("head.layernorm", "attn_pool.norm"),
    ("head.mlp", "attn_pool.mlp"),
)
_TOWER = "image_encoder.vit."


def load(directory: Path, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """Read a directory in this layout. See `vlm_core.load` for the errors."""
    config = _read_config(directory)
    transform = ImageTransform.from_processor(read_processor(directory))
    clip = _build(config, directory)
    check_size(transform, clip.image_encoder.patch_size, directory)
    fill({"": clip}, convert_siglip(read_all_weights(directory)), directory, _name_in_file)
    return Model(
        clip=clip,
        decoder=None,
        tokenizer=_read_tokenizer(directory, clip.text_encoder),
        mask_transform=None,
        tag_transform=transform,
        name=name,
        fingerprint=fingerprint(directory),
        device=device,
        dtype=dtype,
    )


def _read_config(directory: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # transformers validates with exceptions of several libraries
        raise CheckpointMismatchError(f"{directory / 'config.json'} cannot be used: {error}") from error
    assert isinstance(config, SiglipConfig)  # the caller looked at `model_type`
    return config


def _build(config: Any, directory: Path) -> CLIP:
    """The model that a configuration describes, with random weights."""
    vision, text = config.vision_config, config.text_config
    where = directory / "config.json"
    if min(vision.num_attention_heads, text.num_attention_heads) < 1:
        raise CheckpointMismatchError(f"{where}: num_attention_heads must be at least 1")
    if not vision.vision_use_head:
        raise CheckpointMismatchError(
            f"{where} describes an image tower without its pooling head, which cannot be compared with texts: "
            "take a checkpoint of both towers"
        )
    values = {k: v for k, v in text.to_dict().items() if k != "model_type"}
    try:
        image_encoder = build_image_encoder(vision, _TIMM_ARCHITECTURE, directory)
        return CLIP(image_encoder, TextEncoder(SiglipTextConfig(**values), "last"), None, logit_bias=True)
    except CheckpointMismatchError:
        raise
    except Exception as error:  # torch, timm and transformers each refuse an impossible size in ways of their own
        raise CheckpointMismatchError(
            f"{where} describes a model that cannot be built ({error!r}): take the file of the original checkpoint"
        ) from error


def convert_siglip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' SigLIP tensors to those of `vlm_core.clip.CLIP`.

    The blocks are renamed as CLIP's are. The pooling head's one matrix of queries, keys and values becomes timm's `q`
    and `kv`. Names that are not known are passed on unchanged, so that loading can name them.
    """
    out: dict[str, Tensor] = {}
    for key, value in convert_clip(weights).items():
        if key in ("logit_scale", "logit_bias"):
            out[key] = value.reshape(()) if value.numel() == 1 else value
            continue
        part = key.removeprefix(_TOWER)
        if part.startswith("head.attention.in_proj_"):
            query, keys_values = value[: len(value) // 3], value[len(value) // 3 :]
            kind = part.removeprefix("head.attention.in_proj_")
            out[f"{_TOWER}attn_pool.q.{kind}"] = query
            out[f"{_TOWER}attn_pool.kv.{kind}"] = keys_values
        elif part.startswith("head."):
            for theirs, ours in _POOL_NAMES:
                part = part.replace(theirs, ours)
            out[_TOWER + part] = value
        else:
            out[key] = value
    return out


def _name_in_file(name: str) -> str:
    """The name in the file for one of our names: `convert_siglip` backwards."""
    if ".attn_pool." not in name:
        return clip_name_in_file(name)
    name = re.sub(r"attn_pool\.(q|kv)\.", "head.attention.in_proj_", name)
    for theirs, ours in _POOL_NAMES:
        name = name.replace(ours, theirs)
    return "vision_model." + name.removeprefix(_TOWER)


def _read_tokenizer(directory: Path, text_encoder: TextEncoder) -> TextTokenizer:
    """The tokenizer, with texts normalised as they were for training and padded to full length.

    Both generations saw lower-case texts only, the first without punctuation too. The published files leave the first
    to a class that needs the sentencepiece package, and of the second they name a class that keeps capitals.
    """
    if not (directory / "tokenizer.json").is_file():
        lone = " (spiece.model alone is not read, it would need the sentencepiece package)"
        raise CheckpointIncompleteError(
            f"no tokenizer.json in {directory}{lone if (directory / 'spiece.model').is_file() else ''}: copy it from "
            "the original checkpoint"
        )
    tokenizer = TextTokenizer.from_directory(
        directory,
        vocab_size=text_encoder.vocabulary_size,
        max_tokens=text_encoder.max_tokens,
        padding="max_length",
        kind=PreTrainedTokenizerFast,
    )
    wrapped: Any = tokenizer.tokenizer
    settings = read_json(directory / "tokenizer_config.json") if (directory / "tokenizer_config.json").is_file() else {}
    backend = wrapped.backend_tokenizer
    steps: list[Any] = [normalizers.Lowercase()]
    if settings.get("tokenizer_class") in ("SiglipTokenizer", "SiglipTokenizerFast"):
        steps += [
            normalizers.Replace(Regex(_PUNCTUATION), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    end = wrapped.eos_token
    if settings.get("add_eos_token") and end is not None and wrapped("a")["input_ids"][-1:] != [wrapped.eos_token_id]:
        # a setting that the class named in the file would follow, and this one does not
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, wrapped.eos_token_id)]
        )
    return tokenizer

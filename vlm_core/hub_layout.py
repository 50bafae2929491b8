"""The layouts of `CIDAS/clipseg-rd64-refined` and `openai/clip-vit-base-patch16`, as transformers saves them.

The image tower goes to timm, the text tower stays transformers', the decoder is ours.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, CLIPConfig, CLIPSegConfig, CLIPTextConfig

from vlm_core.clip import CLIP
from vlm_core.clipseg import CLIPSegDecoder, DecoderConfig
from vlm_core.errors import CheckpointIncompleteError, CheckpointMismatchError
from vlm_core.files import fill, fingerprint, hub_weight_files, read_json
from vlm_core.image_encoder import ImageEncoder
from vlm_core.model import Model
from vlm_core.preprocess import CLIP_MEAN, CLIP_STD, ImageTransform, TextTokenizer
from vlm_core.text_encoder import TextEncoder

log = logging.getLogger(__name__)

_TIMM_ARCHITECTURE = "vit_base_patch16_clip_quickgelu_224"
_TIMM_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def load(directory: Path, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """Read a directory in one of the two layouts. See `vlm_core.load` for the errors."""
    config = _read_config(directory)
    transform = ImageTransform.from_processor(read_processor(directory))
    clip, decoder = _build(config, directory)
    modules: dict[str, torch.nn.Module] = {"clip.": clip}
    tag_transform, mask_transform = transform, None
    prefix = ""
    if decoder is not None:
        prefix = "clip."
        modules["decoder."] = decoder
        if transform.crop:
            log.warning("%s: its image processor cuts the centre out; masks squash the whole image", directory.name)
        mask_transform = transform.squashed()
        # CLIPSeg's processor describes how masks see the image. Tags see it as CLIP itself was trained to.
        vision: Any = config.vision_config
        size = side(vision.image_size)
        tag_transform = ImageTransform((size, size), True, size, 3, CLIP_MEAN, CLIP_STD)
    check_size(mask_transform or tag_transform, clip.image_encoder.patch_size, directory)
    weights = read_all_weights(directory)
    ours = {f"clip.{k}": v for k, v in convert_clip(_without(weights, prefix)).items()}
    ours |= {k: v for k, v in weights.items() if not k.startswith(prefix)}
    fill(modules, ours, directory, lambda name: _name_in_file(name, prefix))
    tokenizer = TextTokenizer.from_directory(
        directory, vocab_size=int(config.text_config.vocab_size), max_tokens=clip.text_encoder.max_tokens
    )
    _agree_on_end_token(clip.text_encoder, tokenizer, directory)
    return Model(
        clip=clip,
        decoder=decoder,
        tokenizer=tokenizer,
        mask_transform=mask_transform,
        tag_transform=tag_transform,
        name=name,
        fingerprint=fingerprint(directory),
        device=device,
        dtype=dtype,
    )


def _read_config(directory: Path) -> Any:
    """The configuration of either kind; its sub-configurations are typed as optional, which they never are here."""
    kind = read_json(directory / "config.json").get("model_type")
    if kind not in ("clip", "clipseg"):
        raise CheckpointMismatchError(
            f"{directory / 'config.json'} describes a model of type {kind!r}; this loads 'clipseg' (masks and tags), "
            "'clip' and 'siglip' (tags; of SigLIP 2 those with a fixed image size, which are 'siglip' too), and our "
            "own layout with its manifest.json"
        )
    try:
        config = AutoConfig.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # transformers validates with exceptions of several libraries
        raise CheckpointMismatchError(f"{directory / 'config.json'} cannot be used: {error}") from error
    assert isinstance(config, CLIPConfig | CLIPSegConfig)
    return config


def read_processor(directory: Path) -> Mapping[str, Any]:
    """The image processor's settings: older files have them alone, newer ones beside the text's."""
    if (directory / "preprocessor_config.json").is_file():
        return read_json(directory / "preprocessor_config.json")
    if (directory / "processor_config.json").is_file():
        part = read_json(directory / "processor_config.json").get("image_processor")
        if isinstance(part, Mapping):
            return part
    raise CheckpointIncompleteError(
        f"{directory} has no preprocessor_config.json (or processor_config.json with an image_processor): "
        "save it beside the weights with processor.save_pretrained(directory)"
    )


def read_all_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors, from one file or from the shards that an index names."""
    weights = hub_weight_files(directory).read()
    # buffers that older transformers versions saved; they are counted, not learned
    return {k: v for k, v in weights.items() if not k.endswith("position_ids")}


def _build(config: Any, directory: Path) -> tuple[CLIP, CLIPSegDecoder | None]:
    """The model that a configuration describes, with random weights."""
    try:
        clip = _build_clip(config, directory)
        return clip, CLIPSegDecoder(decoder_config(config)) if isinstance(config, CLIPSegConfig) else None
    except CheckpointMismatchError:
        raise
    except Exception as error:  # torch, timm and transformers each refuse an impossible size in ways of their own
        raise CheckpointMismatchError(
            f"{directory / 'config.json'} describes a model that cannot be built ({error!r}): "
            "take the file of the original checkpoint"
        ) from error


def _build_clip(config: Any, directory: Path) -> CLIP:
    vision, text = config.vision_config, config.text_config
    if min(vision.num_attention_heads, text.num_attention_heads) < 1:
        raise CheckpointMismatchError(f"{directory / 'config.json'}: num_attention_heads must be at least 1")
    image_encoder = build_image_encoder(vision, _TIMM_ARCHITECTURE, directory)
    text_values = {k: v for k, v in text.to_dict().items() if k != "model_type"}
    return CLIP(image_encoder, TextEncoder(CLIPTextConfig(**text_values), "eos"), int(config.projection_dim))


def build_image_encoder(vision: Any, architecture: str, directory: Path) -> ImageEncoder:
    """timm's tower for a vision configuration of transformers, with random weights.

    Raises:
        CheckpointMismatchError: an activation that timm does not have, or a size that is not square.
    """
    activation = _TIMM_ACTIVATIONS.get(vision.hidden_act)
    if activation is None:
        raise CheckpointMismatchError(
            f"{directory / 'config.json'}: the image tower's activation {vision.hidden_act!r} is none of "
            f"{', '.join(_TIMM_ACTIVATIONS)}"
        )
    ratio = vision.intermediate_size / vision.hidden_size
    if int(vision.hidden_size * ratio) != vision.intermediate_size:
        ratio = math.nextafter(ratio, math.inf)  # timm truncates width x ratio
    return ImageEncoder(
        architecture,
        {
            "img_size": side(vision.image_size),
            "patch_size": side(vision.patch_size),
            "in_chans": vision.num_channels,
            "embed_dim": vision.hidden_size,
            "depth": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "mlp_ratio": ratio,
            "act_layer": activation,
            "layer_norm_eps": vision.layer_norm_eps,
        },
    )


def decoder_config(config: CLIPSegConfig) -> DecoderConfig:
    """Sizes of our decoder for a transformers configuration of CLIPSeg."""
    vision: Any = config.vision_config
    patch = side(vision.patch_size)
    refined = config.use_complex_transposed_convolution
    return DecoderConfig(
        taps=tuple(config.extract_layers),
        tap_width=vision.hidden_size,
        condition_dim=int(config.projection_dim or 0),
        num_prefix_tokens=1,
        reduce_dim=config.reduce_dim,
        num_heads=config.decoder_num_attention_heads,
        mlp_width=config.decoder_intermediate_size,
        conditional_layer=config.conditional_layer,
        head_kernels=(patch // 4, patch // 4) if refined else (patch,),
        layer_norm_eps=vision.layer_norm_eps,
    )


def convert_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' CLIP (or CLIPSeg's `clip.`) tensors to those of `vlm_core.clip.CLIP`.

    Queries, keys and values of an image block become timm's one `qkv` matrix. Names that are not known
    are passed on unchanged, so that loading can name them.
    """
    out: dict[str, Tensor] = {}
    qkv: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        if key.startswith("text_model."):
            out["text_encoder.model." + key.removeprefix("text_model.")] = value
        elif key.startswith("vision_model."):
            new = key.removeprefix("vision_model.")
            for old, timm_name in _VISION_NAMES:
                new = new.replace(old, timm_name)
            if new in ("cls_token", "pos_embed"):
                value = value.reshape(1, -1, *value.shape[-1:])
            block, _, part = new.partition(".attn.")
            if part[:7] in ("q_proj.", "k_proj.", "v_proj."):
                qkv.setdefault(f"{block}.attn.qkv.{part[7:]}", {})[part[0]] = value
            else:
                out["image_encoder.vit." + new] = value
        else:
            out[key] = value
    for name, parts in qkv.items():
        shapes = {tuple(value.shape) for value in parts.values()}
        if len(shapes) > 1:
            raise CheckpointMismatchError(f"queries, keys and values of {name} differ in shape: {sorted(shapes)}")
        if parts.keys() == {"q", "k", "v"}:
            out["image_encoder.vit." + name] = torch.cat([parts[p] for p in "qkv"])
    return out


_VISION_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("pre_layrnorm", "norm_pre"),  # transformers' spelling
    ("post_layernorm", "norm"),
    ("encoder.layers.", "blocks."),
    ("layer_norm1", "norm1"),
    ("layer_norm2", "norm2"),
    ("self_attn.out_proj", "attn.proj"),
    ("self_attn.", "attn."),
)


def side(size: int | list[int] | tuple[int, ...]) -> int:
    """One side of a size that may be given as a number or as two equal ones."""
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise CheckpointMismatchError(f"the size {tuple(size)} in config.json is not square")
    return int(size[0])


def check_size(transform: ImageTransform, patch: int, directory: Path) -> None:
    """Raise CheckpointMismatchError where the transform's pictures are smaller than one patch, px, of the model."""
    if min(transform.size_hw) < patch:
        raise CheckpointMismatchError(
            f"the image processor in {directory} makes {transform.size_hw[0]} x {transform.size_hw[1]} px, "
            f"less than one patch of the model, {patch} px: they are from different models"
        )


def _without(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names have the prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _name_in_file(name: str, prefix: str) -> str:
    return prefix + clip_name_in_file(name.removeprefix("clip.")) if name.startswith("clip.") else name


def clip_name_in_file(name: str) -> str:
    """The name in the file for one of our names: `convert_clip` backwards."""
    if name.startswith("text_encoder.model."):
        return "text_model." + name.removeprefix("text_encoder.model.")
    if not name.startswith("image_encoder.vit."):
        return name
    name = name.removeprefix("image_encoder.vit.").replace("attn.qkv.", "self_attn.{q,k,v}_proj.")
    for theirs, ours in _VISION_NAMES:
        whole_words = rf"(?<!\w){re.escape(ours)}" + ("" if ours.endswith(".") else r"(?!\w)")
        name = re.sub(whole_words, theirs, name)
    return "vision_model." + name


def _agree_on_end_token(text_encoder: TextEncoder, tokenizer: TextTokenizer, directory: Path) -> None:
    """Pool where the tokenizer ends a text.

    `eos_token_id` 2 is the value of old configurations, for which transformers takes the highest id. Any other
    number that is not the tokenizer's would pool the first token, which is the same for every text.
    """
    configured, real = text_encoder.config.eos_token_id, tokenizer.tokenizer.eos_token_id
    if configured == 2 or real is None or configured == real:
        return
    log.warning(
        "%s: config.json names %s as the end token, its tokenizer %s; the tokenizer's is used",
        directory.name,
        configured,
        real,
    )
    text_encoder.config.eos_token_id = real
    text_encoder.model.eos_token_id = real


__all__ = [
    "build_image_encoder",
    "check_size",
    "clip_name_in_file",
    "convert_clip",
    "decoder_config",
    "load",
    "read_all_weights",
    "read_processor",
    "side",
]

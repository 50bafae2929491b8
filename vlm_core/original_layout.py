"""The original CLIPSeg decoder files (`rd64-uni-refined.pth`, `rd64-uni.pth`, `rd16-uni.pth`) beside a CLIP.

The file holds the decoder alone, under its first authors' names. The encoders are read from the directory in which it
lies: OpenAI's ViT-B/16 in the layout of `openai/clip-vit-base-patch16`. Decoder and CLIP belong together although any
tensor of the right shape fits, so what can be told of a wrong CLIP is checked: its patches and its activation.

Source: Lueddecke & Ecker, CVPR 2022, arXiv:2112.10003, and the code published with it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlm_core import hub_layout
from vlm_core.clipseg import CLIPSegDecoder, DecoderConfig
from vlm_core.errors import CheckpointIncompleteError, CheckpointMismatchError
from vlm_core.files import file_hash, fill, fingerprint, read_json, read_pickled_weights
from vlm_core.model import Model
from vlm_core.preprocess import ImageTransform

TAPS = (3, 6, 9)
"""Blocks that the published decoders read. The file does not say; the paper's text has 3, 7, 9."""
NUM_HEADS = 4
"""Attention heads of the published decoders; the file does not say."""
MASK_PX = 352
"""Side of the square that masks see, px; normalised by ImageNet's mean and deviation."""

_SUFFIX = ".pth"
_NAMES = (
    ("blocks.", "layers."),
    (".linear1.", ".mlp.fc1."),
    (".linear2.", ".mlp.fc2."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    ("trans_conv.", "transposed_convolution."),
)
NOT_READ = ("reduce.", "clip_model.", "model.")
"""How the names of tensors begin that are passed over. `reduce` is made and saved but never called. The other two are
the encoders, of files that were saved whole: they are frozen in training, and the directory has them."""
_VARIANTS = {
    "extra_blocks.": "further transformer blocks",
    "reduce_cond.": "a narrower condition",
    "upsample_proj.": "a bilinear head",
    "shift_vector": "a shifted text condition",
    "reduce2.": "no transformer blocks (the paper's baseline)",
}


def decoder_file(checkpoint: str | os.PathLike[str], directory: Path) -> Path | None:
    """The original decoder file that a checkpoint's name means; None where it means none.

    Args:
        checkpoint: as a user gave it: the file itself, or something that led to `directory`.
        directory: where its files are. The only `.pth` file in a directory in CLIP's layout is its decoder.

    Raises:
        CheckpointMismatchError: several `.pth` files lie beside the CLIP and none was named.
    """
    given = Path(checkpoint).expanduser()
    if given.suffix == _SUFFIX and given.is_file():
        return given
    config = directory / "config.json"
    if not config.is_file() or read_json(config).get("model_type") != "clip":
        return None
    found = sorted(directory.glob(f"*{_SUFFIX}"))
    if len(found) > 1:
        raise CheckpointMismatchError(
            f"{directory} holds {len(found)} decoders ({', '.join(path.name for path in found)}): "
            f"name the one to load, {found[0]}"
        )
    return found[0] if found else None


def load(file: Path, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """Read a decoder file and the CLIP in its directory. See `vlm_core.load` for the errors."""
    directory = file.parent
    if not (directory / "config.json").is_file():
        raise CheckpointIncompleteError(
            f"{file.name} is a CLIPSeg decoder without its CLIP, and {directory} has no config.json: put the files of "
            "openai/clip-vit-base-patch16 (config.json, weights, preprocessor_config.json, tokenizer) beside it"
        )
    kind = read_json(directory / "config.json").get("model_type")
    if kind != "clip":
        raise CheckpointMismatchError(
            f"{directory / 'config.json'} describes a model of type {kind!r}; beside the decoder {file.name} it must "
            "be the CLIP that it was trained on, openai/clip-vit-base-patch16"
        )
    config, weights = read_decoder(file)
    base = hub_layout.load(directory, name, torch.device("cpu"), torch.float32)
    _check_clip(base, config, file)
    decoder = CLIPSegDecoder(config)
    fill({"": decoder}, weights, file, _name_in_file)
    both = hashlib.sha256(f"{fingerprint(directory)}\0{file_hash(file)}".encode())
    return Model(
        clip=base.clip,
        decoder=decoder,
        tokenizer=base.tokenizer,
        mask_transform=ImageTransform((MASK_PX, MASK_PX)),
        tag_transform=base.tag_transform,
        name=name,
        fingerprint=both.hexdigest(),
        device=device,
        dtype=dtype,
    )


def read_decoder(file: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Sizes and tensors of a decoder file, the tensors under our names, on the CPU.

    Raises:
        CheckpointMismatchError: damaged, holding more than tensors, no such decoder, or a variant that is not computed.
    """
    tensors = {k: v for k, v in read_pickled_weights(file).items() if not k.startswith(NOT_READ)}
    for prefix, what in _VARIANTS.items():
        if any(key.startswith(prefix) for key in tensors):
            raise CheckpointMismatchError(
                f"{file} is a variant of the decoder with {what} ({prefix.rstrip('.')}), which this does not compute: "
                "take rd64-uni-refined.pth, rd64-uni.pth or rd16-uni.pth"
            )
    return _config(tensors, file), convert_decoder(tensors)


def convert_decoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original decoder's tensors to those of `vlm_core.clipseg.CLIPSegDecoder`.

    The one matrix of queries, keys and values becomes three. Names that are not known are passed on unchanged, so that
    loading can name them.
    """
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        new = key
        for theirs, ours in _NAMES:
            new = new.replace(theirs, ours)
        block, found, part = new.partition("self_attn.in_proj_")
        if found:
            for letter, piece in zip("qkv", value.chunk(3), strict=False):
                out[f"{block}self_attn.{letter}_proj.{part}"] = piece
        else:
            out[new] = value
    return out


def _config(tensors: Mapping[str, Tensor], file: Path) -> DecoderConfig:
    """The sizes that a file's shapes tell; what they do not tell is as in the published decoders."""
    try:
        reduce_dim, condition_dim = tensors["film_mul.weight"].shape
        tap_width = tensors["reduces.0.weight"].shape[1]
        mlp_width = tensors["blocks.0.linear1.weight"].shape[0]
        head = [tensors[k] for k in ("trans_conv.weight", "trans_conv.2.weight", "trans_conv.4.weight") if k in tensors]
        if not head:
            raise KeyError("trans_conv.weight")
        kernels = tuple(weight.shape[2] for weight in head)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointMismatchError(
            f"{file} is no CLIPSeg decoder ({error!r}): its tensors must be film_mul, film_add, reduces, blocks and "
            f"trans_conv, and it has {', '.join(sorted(tensors)[:3]) or 'none'}"
        ) from error
    depth = len({key.split(".")[1] for key in tensors if key.startswith("reduces.")})
    if depth != len(TAPS):
        raise CheckpointMismatchError(
            f"{file} reads {depth} blocks of its CLIP; which ones is known for three only ({TAPS})"
        )
    if reduce_dim % NUM_HEADS:
        raise CheckpointMismatchError(
            f"{file} is {reduce_dim} wide, no multiple of {NUM_HEADS} heads, which all published decoders have"
        )
    return DecoderConfig(
        taps=TAPS,
        tap_width=tap_width,
        condition_dim=condition_dim,
        num_prefix_tokens=1,
        reduce_dim=reduce_dim,
        num_heads=NUM_HEADS,
        mlp_width=mlp_width,
        head_kernels=kernels,
    )


def _check_clip(base: Model, config: DecoderConfig, file: Path) -> None:
    """What shapes do not tell: a CLIP with other patches or another activation would answer, wrongly and in silence."""
    encoder = base.clip.image_encoder
    activation = encoder.model_args["act_layer"]
    if encoder.patch_size != config.upsampling or activation != "quick_gelu":
        raise CheckpointMismatchError(
            f"{file.name} was made for patches of {config.upsampling} px and OpenAI's activation, quick_gelu; the CLIP "
            f"in {file.parent} has {encoder.patch_size} px and {activation}: take openai/clip-vit-base-patch16"
        )


def _name_in_file(name: str) -> str:
    """The name in the file for one of our names: `convert_decoder` backwards."""
    name = re.sub(r"self_attn\.[qkv]_proj\.", "self_attn.in_proj_", name)
    for theirs, ours in _NAMES:
        name = name.replace(ours, theirs)
    return name

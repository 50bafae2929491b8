"""Checkpoints: which files make a model, in which layout. `load` reads all of them, `save` writes our own.

Our own layout is a directory with `manifest.json` (see `write_manifest`), `weights.safetensors` (keys
`clip.*` and `decoder.*`) and the tokenizer's files. The hub's layouts are read by `vlm_core.hub_layout`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlm_core import hub_layout, original_layout, siglip_layout
from vlm_core.clip import CLIP
from vlm_core.clipseg import CLIPSegDecoder, DecoderConfig
from vlm_core.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InputError,
)
from vlm_core.files import fill, fingerprint, read_json, read_weights
from vlm_core.image_encoder import ImageEncoder
from vlm_core.model import Model
from vlm_core.preprocess import ImageTransform, TextTokenizer
from vlm_core.projection import Projection
from vlm_core.text_encoder import TextEncoder
from vlm_core.unfilled import Unfilled

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FORMAT = "vlm-checkpoint"
SCHEMA_VERSION = 1
DEMO_DIRECTORY = Path(__file__).parent / "demo" / "checkpoint"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.txt", "*.safetensors"]


def load(checkpoint: str | os.PathLike[str], device: str = "auto", dtype: str = "auto") -> Model:
    """Load a model.

    Args:
        checkpoint: `demo`; a directory in our own layout, in the layout of `CIDAS/clipseg-rd64-refined`
            (masks and tags), of `openai/clip-vit-base-patch16` or of `google/siglip-base-patch16-224` (tags only); a
            hub id of such a directory; or an original decoder file such as `rd64-uni-refined.pth` that lies beside
            the files of `openai/clip-vit-base-patch16` (masks and tags), or their directory where it holds only one.
        device: `auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`, ...
        dtype: `auto` (bfloat16 where the hardware computes in it, else float32), `float32`, `bfloat16`, `float16`.

    Raises:
        CheckpointNotFoundError: nothing there, or the hub cannot be reached.
        CheckpointIncompleteError: a file or tensor is missing, the tokenizer's included.
        CheckpointMismatchError: the files contradict each other or hold another kind of model.
        InputError: a device or dtype that is unknown or not there.
    """
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    directory = find(checkpoint)
    if str(checkpoint) == "demo":
        log.warning(
            "the demo checkpoint knows coloured shapes only: it is for trying the system out, not for photographs"
        )
    with Unfilled():
        return _load(checkpoint, directory, where, precision)


def _load(checkpoint: str | os.PathLike[str], directory: Path, where: torch.device, precision: torch.dtype) -> Model:
    """By the layout that the directory has."""
    if (directory / MANIFEST).is_file():
        return _load_own(directory, where, precision)
    decoder = original_layout.decoder_file(checkpoint, directory)
    if decoder is not None:
        return original_layout.load(decoder, model_name(checkpoint), where, precision)
    kind = read_json(directory / "config.json").get("model_type")
    if kind == siglip_layout.MODEL_TYPE:
        return siglip_layout.load(directory, model_name(checkpoint), where, precision)
    return hub_layout.load(directory, model_name(checkpoint), where, precision)


def resolve_device(device: str) -> torch.device:
    """The torch device for a setting. Raises InputError for one that is unknown or not on this machine."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown: use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not on this machine, it has {torch.cuda.device_count()} CUDA devices")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype for a setting. Raises InputError for an unknown one."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if dtype not in known:
        raise InputError(f"dtype {dtype!r} is unknown: use auto, {', '.join(known)}")
    return known[dtype]


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is native there: emulated, it is several times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def model_name(checkpoint: str | os.PathLike[str]) -> str:
    """A short name for version names: the last part of a path or hub id, of letters, digits, dots and dashes."""
    last = Path(checkpoint).expanduser().resolve().name if Path(checkpoint).is_dir() else str(checkpoint).split("/")[-1]
    return re.sub(r"[^A-Za-z0-9.]+", "-", last.removesuffix(".pth")).strip("-.") or "model"


def find(checkpoint: str | os.PathLike[str]) -> Path:
    """The local directory of a checkpoint, fetched from the hub where the name is a hub id; of a `.pth` file, its own.

    Raises:
        CheckpointNotFoundError: no such directory, or the hub cannot be reached and nothing is cached.
    """
    text = str(checkpoint)
    if text == "demo":
        if not (DEMO_DIRECTORY / MANIFEST).is_file():
            raise CheckpointNotFoundError(
                "this installation has no demo checkpoint: build it with make demo-checkpoint"
            )
        return DEMO_DIRECTORY
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".pth":
        return path.parent
    if path.exists():
        raise CheckpointNotFoundError(f"the checkpoint {text!r} is a file: give the directory that holds its files")
    if path.suffix == ".pth":
        raise CheckpointNotFoundError(f"there is no decoder file {text!r}: check the path")
    if not _HUB_ID.fullmatch(text) or text.startswith("."):
        raise CheckpointNotFoundError(
            f"there is no checkpoint directory {text!r}, and it is no hub id of the form owner/name: "
            "check the path, or use demo"
        )
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(text, allow_patterns=_HUB_FILES))
        if not any(directory.glob("*.safetensors")):
            directory = Path(snapshot_download(text, allow_patterns=[*_HUB_FILES, "pytorch_model.bin"]))
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors alike
        raise CheckpointNotFoundError(
            f"the checkpoint {text!r} is no local directory and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}). Check the "
            "name and the network, or download it elsewhere and give the directory (VLM_CHECKPOINT=/path/to/it)"
        ) from error
    return directory


def save(
    directory: Path,
    *,
    clip: CLIP,
    tokenizer: TextTokenizer,
    tag_transform: ImageTransform,
    decoder: CLIPSegDecoder | None = None,
    mask_transform: ImageTransform | None = None,
    name: str,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write our own layout; the directory appears whole or not at all, and replaces one that was there.

    Args:
        directory: where to.
        clip, tokenizer, tag_transform, decoder, mask_transform: the model's parts.
        name: base of version names.
        dtype: of the stored floating-point weights; loading converts them back.
        about: free JSON-able notes (recipe, seed, metrics), kept in the manifest.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        state = {f"clip.{k}": v for k, v in clip.state_dict().items()}
        if decoder is not None:
            state |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
        save_file({k: _storable(v, dtype) for k, v in state.items()}, staging / WEIGHTS)
        tokenizer.tokenizer.save_pretrained(str(staging))
        manifest = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "kind": "clip" if decoder is None else "clipseg",
            "name": name,
            "image_encoder": {
                "architecture": clip.image_encoder.architecture,
                "model_args": clip.image_encoder.model_args,
            },
            "text_encoder": {
                "config": clip.text_encoder.config.to_dict(),
                "pooling": clip.text_encoder.pooling,
                "max_tokens": tokenizer.max_tokens,
                "padding": tokenizer.padding,
            },
            "projection_dim": clip.projection_dim if isinstance(clip.visual_projection, Projection) else None,
            "logit_bias": clip.logit_bias is not None,
            "decoder": None if decoder is None else decoder.config.to_dict(),
            "tag_transform": tag_transform.to_dict(),
            "mask_transform": None if mask_transform is None else mask_transform.to_dict(),
            "about": dict(about or {}),
        }
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        # mkdtemp and safetensors make private files; a checkpoint may be read by another user, a server's say
        staging.chmod(0o755)
        (staging / WEIGHTS).chmod(0o644)
        if directory.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
            directory.rename(old / "replaced")
            staging.rename(directory)
            shutil.rmtree(old)
        else:
            staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _storable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
    return tensor.contiguous().clone()  # safetensors refuses tensors that share memory


def _load_own(directory: Path, device: torch.device, dtype: torch.dtype) -> Model:
    manifest = read_json(directory / MANIFEST)
    if manifest.get("format") != FORMAT or manifest.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointMismatchError(
            f"{directory / MANIFEST} has format {manifest.get('format')!r}, schema {manifest.get('schema_version')!r}; "
            f"this version reads {FORMAT!r}, schema {SCHEMA_VERSION}"
        )
    try:
        image_part, text_part = manifest["image_encoder"], manifest["text_encoder"]
        clip = CLIP(
            ImageEncoder(image_part["architecture"], image_part["model_args"]),
            TextEncoder(text_part["config"], text_part["pooling"]),
            None if manifest["projection_dim"] is None else int(manifest["projection_dim"]),
            logit_bias=bool(manifest.get("logit_bias", False)),
        )
        decoder_part, mask_part = manifest["decoder"], manifest["mask_transform"]
        decoder = None if decoder_part is None else CLIPSegDecoder(DecoderConfig.from_dict(decoder_part))
        mask_transform = None if mask_part is None else ImageTransform.from_dict(mask_part)
        tag_transform = ImageTransform.from_dict(manifest["tag_transform"])
        name, max_tokens = str(manifest["name"]), int(text_part["max_tokens"])
        fixed_length = text_part.get("padding") == "max_length"
    except CheckpointMismatchError:
        raise
    except Exception as error:  # torch, timm and transformers each refuse an impossible value in ways of their own
        raise CheckpointMismatchError(f"{directory / MANIFEST} lacks or garbles {error!r}") from error
    modules: dict[str, torch.nn.Module] = {"clip.": clip}
    if decoder is not None:
        modules["decoder."] = decoder
    fill(modules, read_weights(directory / WEIGHTS), directory)
    vocab_size = int(clip.text_encoder.config.vocab_size)
    tokenizer = TextTokenizer.from_directory(
        directory, vocab_size=vocab_size, max_tokens=max_tokens, padding="max_length" if fixed_length else "longest"
    )
    return Model(
        clip=clip,
        decoder=decoder,
        tokenizer=tokenizer,
        mask_transform=mask_transform,
        tag_transform=tag_transform,
        name=model_name(name),
        fingerprint=fingerprint(directory),
        device=device,
        dtype=dtype,
    )

"""What can be loaded, what it is good for, and what a checkpoint on this machine is: told without loading weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_core.errors import CheckpointError, CheckpointMismatchError, CheckpointNotFoundError


@dataclass(frozen=True, slots=True)
class Known:
    """A published checkpoint.

    Attributes:
        name: what `load` takes.
        masks, tags: what it gives.
        megabytes: to fetch.
        good_for: in a few words.
        terms: who says what of its use; the weights are never part of this package.
    """

    name: str
    masks: bool
    tags: bool
    megabytes: int
    good_for: str
    terms: str


_OPENAI = "OpenAI's model card: research, deployment only after testing for the task"
_CLIPSEG = "its authors exclude the weights from their code's licence: ask them before commercial use"
KNOWN = (
    Known("demo", True, True, 4, "coloured shapes, to try things out; nothing of photographs", "Apache-2.0"),
    Known("CIDAS/clipseg-rd64-refined", True, True, 603, "photographs: finer masks; the default", _CLIPSEG),
    Known("CIDAS/clipseg-rd64", True, True, 603, "photographs: coarser masks of 16 x 16 px", _CLIPSEG),
    Known("CIDAS/clipseg-rd16", True, True, 603, "photographs: the smallest decoder", _CLIPSEG),
    Known("openai/clip-vit-base-patch16", False, True, 599, "tags of photographs", _OPENAI),
    Known("openai/clip-vit-base-patch32", False, True, 605, "tags, three times as fast, a little less sure", _OPENAI),
    Known("openai/clip-vit-large-patch14", False, True, 1710, "tags, surer, some four times as slow", _OPENAI),
    Known(
        "google/siglip-base-patch16-224",
        False,
        True,
        813,
        "several tags at once, each with its own yes or no",
        "Apache-2.0",
    ),
    Known("google/siglip2-base-patch16-224", False, True, 1500, "the same, many languages", "Apache-2.0"),
)
"""Sizes are those of the files at their publishers, rounded."""


@dataclass(frozen=True, slots=True)
class Description:
    """A checkpoint on this machine.

    Attributes:
        path: its directory, or the decoder file in it.
        layout: whose files they are.
        masks, tags: what it gives.
        image_tower, text_tower: their sizes, to read.
        mask_px: side of what masks see, px; 0 without masks.
        taps: blocks that the decoder reads; empty without one.
        parameters: numbers that are learned.
        megabytes: of the weights' files.
        missing: what must be added before it loads; empty for one that is whole.
    """

    path: str
    layout: str
    masks: bool
    tags: bool
    image_tower: str
    text_tower: str
    mask_px: int
    taps: tuple[int, ...]
    parameters: int
    megabytes: float
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def describe(checkpoint: Path) -> Description:
    """Say what a local checkpoint is, from its configuration and the headers of its weights.

    Args:
        checkpoint: a directory in any layout that `load` takes, or an original decoder file beside a CLIP.

    Raises:
        CheckpointNotFoundError: nothing there, or nothing that tells what it is.
        CheckpointMismatchError: of a kind that `load` does not take, or a broken file.
    """
    from vlm_core.files import read_json

    directory = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if not checkpoint.exists():
        raise CheckpointNotFoundError(f"there is no {checkpoint}: give a checkpoint's directory, or one of vlm models")
    own = checkpoint.is_dir() and (directory / "manifest.json").is_file()
    settings = directory / ("manifest.json" if own else "config.json")
    if not settings.is_file():
        raise CheckpointNotFoundError(
            f"{directory} has neither manifest.json nor config.json: give the directory that holds a checkpoint's files"
        )
    values = read_json(settings)
    kind = values.get("model_type")
    if not own and kind not in ("clip", "clipseg", "siglip"):
        raise CheckpointMismatchError(
            f"{settings} describes a model of type {kind!r}; clip, clipseg and siglip can be loaded"
        )
    try:
        return _own(directory, values) if own else _published(checkpoint, directory, values, str(kind))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointMismatchError(f"{settings} lacks or garbles {error!r}") from error


def cached() -> dict[str, Path]:
    """Checkpoints of `KNOWN` that the hub's cache holds: the directory of each name's newest files."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    found = {}
    for repository in repositories:
        revisions = sorted(repository.revisions, key=lambda revision: revision.last_modified)
        if revisions and repository.repo_id in {known.name for known in KNOWN}:
            found[repository.repo_id] = Path(revisions[-1].snapshot_path)
    return found


def _own(directory: Path, manifest: Mapping[str, Any]) -> Description:
    image, text, decoder = manifest["image_encoder"], manifest["text_encoder"]["config"], manifest["decoder"]
    size = manifest["mask_transform"]
    arguments = image["model_args"]
    return Description(
        path=str(directory),
        layout="vlm train",
        masks=decoder is not None,
        tags=True,
        image_tower=f"{image['architecture']} {arguments}",
        text_tower=f"{text['model_type']}, {text.get('n_layers') or text.get('num_hidden_layers')} blocks",
        mask_px=0 if decoder is None else int(size["size_hw"][0]),
        taps=() if decoder is None else tuple(decoder["taps"]),
        **_weights(directory),
        missing=_missing(directory, processor=False),
    )


def _published(checkpoint: Path, directory: Path, config: Mapping[str, Any], kind: str) -> Description:
    from vlm_core import original_layout

    decoder_file = original_layout.decoder_file(checkpoint, directory)
    vision, text = _part(config, "vision_config", kind), _part(config, "text_config", kind)
    masks = kind == "clipseg" or decoder_file is not None
    taps: tuple[int, ...] = ()
    mask_px = 0
    layout = {"clip": "CLIP", "clipseg": "CLIPSeg", "siglip": "SigLIP"}[kind]
    if decoder_file is not None:
        taps, mask_px, layout = (
            original_layout.TAPS,
            original_layout.MASK_PX,
            "CLIPSeg's original decoder beside a CLIP",
        )
    elif masks:
        taps = tuple(config.get("extract_layers", original_layout.TAPS))
        mask_px = _processor_size(directory)
    return Description(
        path=str(decoder_file or directory),
        layout=layout,
        masks=masks,
        tags=True,
        image_tower=f"{vision['num_hidden_layers']} blocks, {vision['hidden_size']} wide, patches of "
        f"{vision['patch_size']} px, {vision['image_size']} px",
        text_tower=f"{text['num_hidden_layers']} blocks, {text['hidden_size']} wide",
        mask_px=mask_px,
        taps=taps,
        **_weights(directory, decoder_file),
        missing=_missing(directory, processor=decoder_file is None),
    )


def _part(config: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    """A tower's configuration: what a file leaves out has transformers' default."""
    from transformers import AutoConfig

    defaults = getattr(AutoConfig.for_model(kind), name).to_dict()
    given = config.get(name)
    return {**defaults, **(given if isinstance(given, Mapping) else {})}


def _processor_size(directory: Path) -> int:
    from vlm_core.hub_layout import read_processor
    from vlm_core.preprocess import ImageTransform

    try:
        return ImageTransform.from_processor(read_processor(directory)).size_hw[0]
    except CheckpointError:  # told by `missing`
        return 0


def _weights(directory: Path, decoder_file: Path | None = None) -> dict[str, Any]:
    """`parameters` and `megabytes`, from the headers of the weights' files."""
    files = [*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]
    if decoder_file is not None:
        files.append(decoder_file)
    return {
        "parameters": sum(_tensor_sizes(directory)),
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
    }


def _tensor_sizes(directory: Path) -> Iterator[int]:
    """Numbers in each tensor of the safetensors files; only their headers are read."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                yield from (math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointMismatchError(f"{path} is damaged or no safetensors file: download it again") from error


def _missing(directory: Path, *, processor: bool) -> tuple[str, ...]:
    from vlm_core.text_encoder import tokenizer_directory_files

    missing = []
    if not any(any(directory.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        missing.append("weights: model.safetensors")
    if not tokenizer_directory_files(directory):
        missing.append("a tokenizer: tokenizer.json, or vocab.json with merges.txt, or vocab.txt")
    if processor and not any(
        (directory / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
    ):
        missing.append("preprocessor_config.json")
    return tuple(missing)

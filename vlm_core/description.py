"""What a checkpoint on this machine is and what it lacks: from its configuration and the headers of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_core.errors import CheckpointError, CheckpointMismatchError, CheckpointNotFoundError

if TYPE_CHECKING:
    from vlm_core.files import WeightFiles

MANIFEST, CONFIG = "manifest.json", "config.json"
KINDS = {"clip": "CLIP", "clipseg": "CLIPSeg", "siglip": "SigLIP"}
"""Types of models that `load` takes, as `config.json` has them, and what people call them."""

# Numbers that are saved and not learned: positions, by older versions of transformers, and the means of batch norms.
_BUFFERS = ("position_ids", "running_mean", "running_var", "num_batches_tracked")


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
        parameters: numbers that are learned, of the files that are there.
        megabytes: of those files.
        trained: what `vlm train` noted: the recipe and what was measured last; empty for others.
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
    trained: str
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def describe(checkpoint: Path) -> Description:
    """Say what a local checkpoint is; its weights stay on disk.

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
    own = checkpoint.is_dir() and (directory / MANIFEST).is_file()
    settings = directory / (MANIFEST if own else CONFIG)
    if not settings.is_file():
        raise CheckpointNotFoundError(
            f"{directory} has neither {MANIFEST} nor {CONFIG}: give the directory that holds a checkpoint's files"
        )
    values = read_json(settings)
    kind = values.get("model_type")
    if not own and kind not in KINDS:
        raise CheckpointMismatchError(
            f"{settings} describes a model of type {kind!r}; {', '.join(KINDS)} can be loaded"
        )
    try:
        return _own(directory, values) if own else _published(checkpoint, directory, values, str(kind))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointMismatchError(f"{settings} lacks or garbles {error!r}") from error


def _own(directory: Path, manifest: Mapping[str, Any]) -> Description:
    from vlm_core.files import WeightFiles

    image, text, decoder = manifest["image_encoder"], manifest["text_encoder"]["config"], manifest["decoder"]
    size = manifest["mask_transform"]
    arguments = image["model_args"]
    weights = WeightFiles((directory / "weights.safetensors",))
    return Description(
        path=str(directory),
        layout="vlm train",
        masks=decoder is not None,
        tags=True,
        image_tower=f"{image['architecture']} {arguments}",
        text_tower=f"{text['model_type']}, {text.get('n_layers') or text.get('num_hidden_layers')} blocks",
        mask_px=0 if decoder is None else int(size["size_hw"][0]),
        taps=() if decoder is None else tuple(decoder["taps"]),
        parameters=_parameters(weights.paths),
        megabytes=_megabytes(weights.paths),
        trained=_trained(manifest.get("about") or {}),
        missing=(*_missing_weights(weights), *_missing_words(directory)),
    )


def _published(checkpoint: Path, directory: Path, config: Mapping[str, Any], kind: str) -> Description:
    from vlm_core import original_layout
    from vlm_core.files import hub_weight_files

    decoder_file = original_layout.decoder_file(checkpoint, directory)
    vision, text = _part(config, "vision_config", kind), _part(config, "text_config", kind)
    masks = kind == "clipseg" or decoder_file is not None
    taps: tuple[int, ...] = ()
    mask_px = 0
    layout = KINDS[kind]
    decoder: tuple[Path, ...] = ()
    if decoder_file is not None:
        taps, mask_px, decoder = original_layout.TAPS, original_layout.MASK_PX, (decoder_file,)
        layout = "CLIPSeg's original decoder beside a CLIP"
    elif masks:
        taps = tuple(config.get("extract_layers", original_layout.TAPS))
        mask_px = _processor_size(directory)
    weights = hub_weight_files(directory)
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
        parameters=_parameters(weights.paths) + _parameters(decoder, original_layout.NOT_READ),
        megabytes=_megabytes((*weights.paths, *decoder)),
        trained="",
        missing=(
            *_missing_weights(weights),
            *_missing_words(directory, whole=kind == "siglip"),
            *_missing_processor(directory),
        ),
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


def _trained(about: Mapping[str, Any]) -> str:
    """The recipe and its last measurements, without those of the loss, whose size tells nothing."""
    metrics = about.get("metrics") or {}
    told = [f"{about['recipe']}"] if about.get("recipe") else []
    if "step" in metrics:
        told.append(f"{metrics['step']} updates")
    told += [f"{k.replace('_', ' ')} {v:.2f}" for k, v in metrics.items() if k != "step" and not k.endswith("loss")]
    return ", ".join(told)


def _parameters(paths: Iterable[Path], without: tuple[str, ...] = ()) -> int:
    from vlm_core.files import tensor_sizes

    return sum(
        size
        for path in paths
        if path.is_file()
        for name, size in tensor_sizes(path).items()
        if not name.endswith(_BUFFERS) and not name.startswith(without)
    )


def _megabytes(paths: Iterable[Path]) -> float:
    return round(sum(path.stat().st_size for path in paths if path.is_file()) / 1e6, 1)


def _missing_weights(weights: WeightFiles) -> list[str]:
    named = "" if weights.index is None else f", which {weights.index.name} names"
    return [f"weights: {path.name}{named}" for path in weights.missing]


def _missing_words(directory: Path, *, whole: bool = False) -> list[str]:
    """`whole`: only tokenizer.json will do."""
    from vlm_core.text_encoder import tokenizer_directory_files

    found = tokenizer_directory_files(directory)
    if "tokenizer.json" in found:
        return []
    if whole:
        return ["a tokenizer: tokenizer.json"]
    if not found:
        return ["a tokenizer: tokenizer.json, or vocab.json with merges.txt, or vocab.txt"]
    if "vocab.json" in found and not (directory / "merges.txt").is_file():
        return ["a tokenizer: merges.txt, beside vocab.json"]
    return []


def _missing_processor(directory: Path) -> list[str]:
    there = any((directory / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
    return [] if there else ["preprocessor_config.json"]

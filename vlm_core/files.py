"""Reading a checkpoint's files: JSON, weights, and the hash over all of them. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlm_core.errors import CheckpointIncompleteError, CheckpointMismatchError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointIncompleteError (no such file) or CheckpointMismatchError (broken)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointIncompleteError(
            f"{path.parent} has no {path.name}: copy it from the original checkpoint"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointMismatchError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointMismatchError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file. Raises CheckpointIncompleteError or CheckpointMismatchError (damaged)."""
    if not path.is_file():
        raise CheckpointIncompleteError(f"{path.parent} has no {path.name}: the weights are missing, download it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointMismatchError(
            f"{path} is damaged or no safetensors file ({error}): download it again"
        ) from error


def read_pickled_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of one file that `torch.save` wrote. Raises as `read_weights`.

    Only tensors and plain containers are read: no code from the file is run.
    """
    if not path.is_file():
        raise CheckpointIncompleteError(f"{path.parent} has no {path.name}: the weights are missing, download it again")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive surfaces as errors of zip, pickle and torch
        raise CheckpointMismatchError(
            f"{path} is damaged, or holds more than weights, which is not unpickled because that can run code from the "
            f"file: download it again, or save its state_dict alone ({type(error).__name__})"
        ) from error
    if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
        raise CheckpointMismatchError(f"{path} holds other things than named tensors: take the original file")
    return dict(values)


def fill(
    modules: Mapping[str, nn.Module],
    weights: Mapping[str, Tensor],
    where: Path,
    in_file: Callable[[str], str] = lambda name: name,
) -> None:
    """Load weights into modules: every tensor has its place, and every place its tensor.

    Args:
        modules: by the prefix that their tensors' names have in `weights`.
        weights: all that the checkpoint holds.
        where: the checkpoint's directory, for messages.
        in_file: from a name in `weights` to the name in the file, for messages.

    Raises:
        CheckpointIncompleteError: a parameter has no tensor.
        CheckpointMismatchError: a tensor without parameter, one of another shape, or one that is not finite.
    """
    expected = {prefix + k: v for prefix, module in modules.items() for k, v in module.state_dict().items()}
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise CheckpointIncompleteError(
            f"the weights in {where} lack {_some([in_file(k) for k in missing])}: download them again"
        )
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise CheckpointMismatchError(
            f"the weights in {where} hold {_some([in_file(k) for k in extra])}, which its configuration has no room for"
        )
    wrong = [
        f"{in_file(k)} {tuple(weights[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if weights[k].shape != v.shape
    ]
    if wrong:
        raise CheckpointMismatchError(f"tensors in {where} do not fit its configuration: {_some(wrong)}")
    not_finite = [in_file(k) for k, v in weights.items() if v.is_floating_point() and not _is_finite(v)]
    if not_finite:
        raise CheckpointMismatchError(f"the weights in {where} are not finite numbers in {_some(not_finite)}")
    for prefix, module in modules.items():
        module.load_state_dict({k: weights[prefix + k].to(v.dtype) for k, v in module.state_dict().items()})


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; the extremes tell, and cost a tenth of looking at each."""
    if not tensor.numel():
        return True
    least, most = torch.aminmax(tensor)
    return bool(torch.isfinite(least) & torch.isfinite(most))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fingerprint(directory: Path) -> str:
    """sha256, hex, over the names and contents of all files that decide what the model answers."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix in (".json", ".txt", ".safetensors", ".bin"):
            digest.update(f"{path.name}\0{file_hash(path)}\0".encode())
    return digest.hexdigest()


_HASHES: dict[tuple[str, int, int], str] = {}


def file_hash(path: Path) -> str:
    """sha256, hex; remembered by path, size and modification time, since weights are large."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _HASHES:
        with path.open("rb") as file:
            _HASHES[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _HASHES[key]

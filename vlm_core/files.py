"""Reading a checkpoint's files: JSON, weights, and the hash over all of them. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Load weights into a module, all of them.

    Raises:
        CheckpointIncompleteError: a parameter has no tensor.
        CheckpointMismatchError: a tensor without parameter, one of another shape, or one that is not finite.
    """
    expected = module.state_dict()
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise CheckpointIncompleteError(f"the weights in {where} lack {_some(missing)}: download them again")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise CheckpointMismatchError(
            f"the weights in {where} hold {_some(extra)}, which its configuration has no place for"
        )
    wrong = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if weights[k].shape != v.shape
    ]
    if wrong:
        raise CheckpointMismatchError(f"tensors in {where} do not fit its configuration: {_some(wrong)}")
    not_finite = [k for k, v in weights.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if not_finite:
        raise CheckpointMismatchError(f"the weights in {where} are not finite numbers in {_some(not_finite)}")
    module.load_state_dict({k: weights[k].to(v.dtype) for k, v in expected.items()})


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fingerprint(directory: Path) -> str:
    """sha256, hex, over the names and contents of all files that decide what the model answers."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix in (".json", ".txt", ".safetensors", ".bin"):
            digest.update(f"{path.name}\0{_file_hash(path)}\0".encode())
    return digest.hexdigest()


_HASHES: dict[tuple[str, int, int], str] = {}


def _file_hash(path: Path) -> str:
    """sha256, hex; remembered by path, size and modification time, since weights are large."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _HASHES:
        with path.open("rb") as file:
            _HASHES[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _HASHES[key]

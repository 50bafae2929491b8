"""Reading a checkpoint's files: JSON, weights, and the hash over all of them. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vlm_core.errors import CheckpointIncompleteError, CheckpointMismatchError

_SAFETENSORS = ".safetensors"


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


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold a checkpoint's weights, whether they are there or not.

    Attributes:
        paths: one, or several shards.
        index: the file that names the shards; None where there is but one.
    """

    paths: tuple[Path, ...]
    index: Path | None = None

    @property
    def missing(self) -> tuple[Path, ...]:
        """Those that are not there."""
        return tuple(path for path in self.paths if not path.is_file())

    def read(self) -> dict[str, Tensor]:
        """All tensors. Raises as `read_weights`, for a shard that is missing too."""
        tensors: dict[str, Tensor] = {}
        for path in self.paths:
            tensors |= read_weights(path) if path.suffix == _SAFETENSORS else read_pickled_weights(path)
        return tensors


def hub_weight_files(directory: Path) -> WeightFiles:
    """The weights of a directory as transformers saves it: safetensors if there are any, else what `torch.save` wrote.

    Raises:
        CheckpointMismatchError: an index that names no shards.
    """
    names = ("model.safetensors", "pytorch_model.bin")
    there = (n for n in names if (directory / n).is_file() or (directory / f"{n}.index.json").is_file())
    name = next(there, names[0])
    index = directory / f"{name}.index.json"
    if (directory / name).is_file() or not index.is_file():
        return WeightFiles((directory / name,))
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise CheckpointMismatchError(f"{index} has no weight_map: download it again")
    return WeightFiles(tuple(directory / Path(str(file)).name for file in sorted({*map(str, shards.values())})), index)


def tensor_sizes(path: Path) -> dict[str, int]:
    """Numbers in each tensor of a file of weights, which stay on disk; in torch's format before 1.6 all are read.

    Raises:
        CheckpointMismatchError: damaged, or holding more than weights.
    """
    if path.suffix != _SAFETENSORS:
        return {name: tensor.numel() for name, tensor in read_pickled_weights(path, mapped=True).items()}
    try:
        with safe_open(path, framework="np") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointMismatchError(f"{path} is damaged or no safetensors file: download it again") from error


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


def read_pickled_weights(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Tensors of one file that `torch.save` wrote. Raises as `read_weights`.

    Only tensors and plain containers are read: no code from the file is run.

    Args:
        path: the file.
        mapped: leave the numbers in the file until somebody looks at them, where its format allows it.
    """
    if not path.is_file():
        raise CheckpointIncompleteError(f"{path.parent} has no {path.name}: the weights are missing, download it again")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
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

"""One version's files: read, verified, or refused with an error that names the file.

VersionError (vlm_core.errors.VLMError)
├── VersionNotFoundError   no such version
├── VersionCorruptError    a file is missing, cut short, changed, or of a newer schema
├── PinnedError            a version is pinned: trainings only leave candidates
└── FencedError            another job has taken over
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from backend.manifest import SCHEMA_VERSION, Manifest
from vlm_core.errors import VLMError

if TYPE_CHECKING:
    import torch

WEIGHTS, MANIFEST, METRICS = "weights.safetensors", "manifest.json", "metrics.json"


class VersionError(VLMError):
    """A project version cannot be read, written or published.

    The message may name a path of this machine and is for logs and the operator.

    Attributes:
        public: the same without paths, fit for a client.
    """

    def __init__(self, message: str, *, public: str) -> None:
        super().__init__(message)
        self.public = public


class VersionNotFoundError(VersionError):
    """The project has no version with that number."""


class VersionCorruptError(VersionError):
    """A file of a version is missing, cut short, changed, or written by a newer release."""


class PinnedError(VersionError):
    """A version was pinned by hand, which no training may replace."""


class FencedError(VersionError):
    """The token is older than one given out since: another job has taken over."""


@dataclass(frozen=True)
class StoredVersion:
    """One immutable version, its manifest read and its weights' hash verified.

    Attributes:
        project_id: Label Studio's id.
        number: 1, 2, 3 ...
        path: the version's directory.
        manifest: what `manifest.json` says.
    """

    project_id: int
    number: int
    path: Path
    manifest: Manifest

    @property
    def weights_path(self) -> Path:
        """The safetensors file."""
        return self.path / self.manifest.weights.file

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the weights file, hex; what goes in `version_hash`."""
        return self.manifest.weights.sha256

    def load_weights(self) -> dict[str, torch.Tensor]:
        """The tensors, on the CPU, by their name in the decoder's `state_dict`.

        Raises:
            VersionCorruptError: the file is gone or no longer what the manifest says.
        """
        from safetensors.torch import load

        try:
            data = self.weights_path.read_bytes()
        except OSError as error:
            raise corrupt(self.weights_path, error.strerror or str(error)) from error
        if hashlib.sha256(data).hexdigest() != self.manifest.weights.sha256:
            raise corrupt(self.weights_path, "its SHA-256 is not the manifest's")
        return dict(load(data))

    def metrics(self) -> dict[str, Any]:
        """Everything that was measured when the version was made.

        Raises:
            VersionCorruptError: the file is missing or not JSON.
        """
        value: dict[str, Any] = read_json(self.path / METRICS)
        return value


_hashes: dict[str, tuple[tuple[int, int], str]] = {}
_hashes_lock = threading.Lock()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex; read again only when its size or modification time has changed.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        signature = (status.st_size, status.st_mtime_ns)
        with _hashes_lock:
            known = _hashes.get(str(path))
        if known is not None and known[0] == signature:
            return known[1]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with _hashes_lock:
        _hashes[str(path)] = (signature, digest)
    return digest


def read_version(project_id: int, path: Path) -> StoredVersion:
    """Read the version in directory `path` and verify its weights' hash.

    Raises:
        VersionCorruptError: a file is missing, cut short, changed, moved here, or of a newer schema.
    """
    record = read_json(path / MANIFEST)
    schema = record.get("schema_version")
    if schema != SCHEMA_VERSION:
        raise corrupt(path / MANIFEST, f"schema version {schema!r}, this release reads {SCHEMA_VERSION}: upgrade it")
    try:
        manifest = Manifest.model_validate_json(json.dumps(record))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise corrupt(path / MANIFEST, f"{where}: {first['msg']}") from error
    if (manifest.project_id, manifest.number) != (project_id, int(path.name)):
        raise corrupt(path / MANIFEST, f"it is version {manifest.number} of project {manifest.project_id}, moved here")
    weights = path / manifest.weights.file
    try:
        digest = file_sha256(weights)
    except OSError as error:
        raise corrupt(weights, error.strerror or str(error)) from error
    if digest != manifest.weights.sha256:
        raise corrupt(weights, "its SHA-256 is not the manifest's")
    return StoredVersion(project_id=project_id, number=manifest.number, path=path, manifest=manifest)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        VersionCorruptError: no such file, or something else is in it.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise corrupt(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise corrupt(path, f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise corrupt(path, f"a JSON {type(value).__name__} where an object belongs")
    return value


def corrupt(path: Path, what: str) -> VersionCorruptError:
    """The error for a file that cannot be used, with its remedy."""
    return VersionCorruptError(
        f"{path}: {what}. Restore the data directory from a backup, or let another version serve with "
        "`vlm versions PROJECT --use NUMBER` (0 is the base model)",
        public="a file of this project's model version is damaged; the server's log names it",
    )

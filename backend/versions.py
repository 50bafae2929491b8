"""A project's model versions on disk.

    <data_dir>/projects/<project id>/
        lock                        between writers
        fence.json                  the highest token given out
        current                     which version serves, and whether it is pinned; replaced as a whole
        split.json                  which image is held out (written by the training job)
        versions/001/               immutable: written beside, flushed, renamed into place
            weights.safetensors     only what differs from the base checkpoint
            manifest.json           `backend.manifest.Manifest`
            metrics.json            everything that was measured

A version that is not `current` is a candidate or a former one; nothing is ever changed or removed by this module.

**Fencing.** A job takes a token when it starts and shows it when it publishes. A token that is older than the
newest one given out is refused: so a job that was given up, and whose project another job has taken over, cannot
publish late, however long it slept.

Errors: `VersionError` and its kinds, drawn in `backend.version_files`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend import atomic
from backend.manifest import (
    SCHEMA_VERSION,
    BaseCheckpoint,
    DataRecord,
    Manifest,
    ManifestDraft,
    RecipeRecord,
    TagHead,
    WeightsFile,
)
from backend.version_files import (
    MANIFEST,
    METRICS,
    WEIGHTS,
    FencedError,
    PinnedError,
    StoredVersion,
    VersionCorruptError,
    VersionError,
    VersionNotFoundError,
    corrupt,
    file_sha256,
    read_json,
    read_version,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_THRESHOLD",
    "BaseCheckpoint",
    "DataRecord",
    "FencedError",
    "Manifest",
    "ManifestDraft",
    "PinnedError",
    "RecipeRecord",
    "StoredVersion",
    "TagHead",
    "VersionCorruptError",
    "VersionError",
    "VersionName",
    "VersionNotFoundError",
    "VersionStore",
    "WeightsFile",
    "effective_threshold",
    "file_sha256",
    "read_version_name",
    "version_hash",
    "version_name",
]

DEFAULT_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a label when neither the labelling config nor the version says."""

_DIRECTORY = re.compile(r"[0-9]{3,}")
_PROJECT = re.compile(r"[1-9][0-9]*")
_BASE_NAME = re.compile(r"[A-Za-z0-9.-]+")
_VERSION_NAME = re.compile(
    r"(?P<base>[A-Za-z0-9.-]+)-p(?P<project>[1-9][0-9]*)-v(?P<number>[0-9]{3,})-(?P<hash>[0-9a-f]{8})"
)


class VersionStore:
    """The versions of all projects under one data directory. Safe to share between threads and processes."""

    def __init__(self, data_dir: Path | str) -> None:
        """Nothing is read or created until a method needs it."""
        self._projects = Path(data_dir) / "projects"
        self._current: dict[int, tuple[tuple[int, ...], StoredVersion | None]] = {}

    def project_dir(self, project_id: int) -> Path:
        """Where a project's files lie. Not created here.

        Raises:
            ValueError: `project_id` is not a positive integer.
        """
        if isinstance(project_id, bool) or not isinstance(project_id, int) or project_id < 1:
            raise ValueError(f"project id {project_id!r}: Label Studio's ids are integers from 1 on")
        return self._projects / str(project_id)

    def project_ids(self) -> list[int]:
        """Projects that have a directory here, in order."""
        if not self._projects.is_dir():
            return []
        return sorted(int(entry.name) for entry in self._projects.iterdir() if _PROJECT.fullmatch(entry.name))

    def current(self, project_id: int) -> StoredVersion | None:
        """The version that serves the project; None for the base model.

        Costs one `stat` while nothing has changed.

        Raises:
            VersionCorruptError: `current` or the version it names cannot be used.
        """
        pointer = self.project_dir(project_id) / "current"
        try:
            status = pointer.stat()
        except FileNotFoundError:
            self._current.pop(project_id, None)
            return None
        # Every publication is a new file, so the inode changes even within one tick of the clock.
        signature = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._current.get(project_id)
        if known is not None and known[0] == signature:
            return known[1]
        number = _number(pointer, read_json(pointer))
        version = None if number == 0 else self.get(project_id, number)
        self._current[project_id] = (signature, version)
        return version

    def publication(self, project_id: int) -> tuple[int, int] | None:
        """Token and version number of the latest publication; None where there was none.

        So a job that was killed right after it had published knows, when it is run again, that its work is done.

        Raises:
            VersionCorruptError: `current` cannot be used.
        """
        pointer = self.project_dir(project_id) / "current"
        if not pointer.exists():
            return None
        record = read_json(pointer)
        token = record.get("token")
        if not isinstance(token, int):
            raise corrupt(pointer, f"'token' is {token!r}, not a count")
        return token, _number(pointer, record)

    def is_pinned(self, project_id: int) -> bool:
        """Whether the serving version was pinned: no training replaces it then.

        Raises:
            VersionCorruptError: `current` cannot be used.
        """
        return _is_pinned(self.project_dir(project_id))

    def get(self, project_id: int, number: int) -> StoredVersion:
        """One version by its number.

        Raises:
            VersionNotFoundError: there is none.
            VersionCorruptError: it cannot be used.
        """
        path = self._versions(project_id) / f"{number:03d}"
        if not path.is_dir():
            raise VersionNotFoundError(
                f"project {project_id} has no version {number} ({path} is not there): `vlm versions` lists them",
                public=f"project {project_id} has no version {number}",
            )
        return read_version(project_id, path)

    def list(self, project_id: int) -> list[StoredVersion]:
        """All versions, oldest first.

        Raises:
            VersionCorruptError: one of them cannot be used; the message names it.
        """
        return [read_version(project_id, path) for path in self._directories(project_id)]

    def numbers(self, project_id: int) -> tuple[int, ...]:
        """The numbers of all versions, oldest first, whether they can be used or not."""
        return tuple(int(path.name) for path in self._directories(project_id))

    def next_token(self, project_id: int) -> int:
        """Give out the next fencing token, 1, 2, 3 ...; every older one is refused from now on."""
        with self._locked(project_id) as directory:
            token = _issued(directory) + 1
            atomic.write_json(directory / "fence.json", {"issued": token})
            return token

    def write(
        self,
        project_id: int,
        weights: Mapping[str, torch.Tensor],
        manifest: ManifestDraft,
        metrics: Mapping[str, Any],
    ) -> StoredVersion:
        """Write a new version whole. It does not serve until it is published.

        Args:
            project_id: Label Studio's id.
            weights: tensors by their name in the decoder's `state_dict`; any device, copied.
            manifest: everything but number, date and file hash, which are filled in here.
            metrics: JSON, goes to `metrics.json`.

        Raises:
            ValueError: no weights, or metrics that JSON cannot say (NaN).
            OSError: the disk is full or not writable; nothing is left in the list then.
        """
        from safetensors.torch import save

        if not weights:
            raise ValueError("a version without weights: give the decoder's state_dict")
        data = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
        with self._locked(project_id):
            versions = self._versions(project_id)
            versions.mkdir(exist_ok=True)
            for left_over in versions.glob(".writing-*"):  # we hold the lock: its writer is gone
                shutil.rmtree(left_over, ignore_errors=True)
            number = max((int(path.name) for path in self._directories(project_id)), default=0) + 1
            whole = Manifest(
                **dict(manifest),
                project_id=project_id,
                number=number,
                created_at=datetime.now(UTC),
                weights=WeightsFile(file=WEIGHTS, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)),
            )
            temporary = versions / f".writing-{uuid.uuid4().hex}"
            temporary.mkdir()
            try:
                atomic.write_bytes(temporary / WEIGHTS, data)
                atomic.write_bytes(temporary / METRICS, atomic.json_bytes(dict(metrics)))
                atomic.write_bytes(temporary / MANIFEST, atomic.json_bytes(whole.model_dump(mode="json")))
                path = versions / f"{number:03d}"
                temporary.rename(path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            atomic.sync_directory(versions)
        return StoredVersion(project_id=project_id, number=number, path=path, manifest=whole)

    def publish(
        self,
        project_id: int,
        version: StoredVersion | int,
        token: int,
        *,
        by_hand: bool = False,
        pinned: bool = False,
    ) -> None:
        """Let `version` serve the project from the next request on.

        Args:
            project_id: Label Studio's id.
            version: a stored version or its number; 0 goes back to the base model.
            token: from `next_token`, taken when the work began.
            by_hand: somebody decided so, which replaces a pinned version too.
            pinned: no training may replace it, until somebody publishes by hand again.

        Raises:
            PinnedError: another one is pinned.
            FencedError: a newer token was given out since.
            ValueError: the token was never given out.
            VersionNotFoundError: there is no such version.
            VersionCorruptError: it cannot be used, so it is not published.
        """
        number = version if isinstance(version, int) else version.number
        with self._locked(project_id) as directory:
            newest = _issued(directory)
            if token > newest:
                raise ValueError(f"token {token} was never given out; take one with next_token()")
            if token < newest:
                raise FencedError(
                    f"project {project_id}: token {token} may not publish version {number}, the newest token is "
                    f"{newest}: another job has taken the project over; start the training again",
                    public=f"version {number} was not published: a newer training has taken over",
                )
            if number != 0:
                self.get(project_id, number)
            if not by_hand and _is_pinned(directory):
                raise PinnedError(
                    f"project {project_id}: version {number} may not replace the one that is pinned: "
                    f"`vlm versions {project_id} --unpin` lets trainings publish again",
                    public=f"version {number} was not published: another one is pinned",
                )
            record = {
                "pinned": pinned,
                "published_at": datetime.now(UTC).isoformat(),
                "schema_version": SCHEMA_VERSION,
                "token": token,
                "version": number,
            }
            atomic.write_json(directory / "current", record)

    def _locked(self, project_id: int) -> _ProjectLock:
        return _ProjectLock(self.project_dir(project_id))

    def _versions(self, project_id: int) -> Path:
        return self.project_dir(project_id) / "versions"

    def _directories(self, project_id: int) -> tuple[Path, ...]:
        versions = self._versions(project_id)
        if not versions.is_dir():
            return ()
        found = [path for path in versions.iterdir() if _DIRECTORY.fullmatch(path.name)]
        return tuple(sorted(found, key=lambda path: int(path.name)))


class _ProjectLock:
    """The project's directory, made and locked for one writer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = atomic.locked(self._directory / "lock")
        self._lock.__enter__()
        return self._directory

    def __exit__(self, *exc_info: Any) -> None:
        self._lock.__exit__(*exc_info)


def version_name(base: str, project_id: int, number: int, hash8: str) -> str:
    """The name that Label Studio sees: `<base>-p<project>-v<NNN>-<8 hex>`; number 0 is the base model.

    >>> version_name("demo", 7, 3, "0a1b2c3d")
    'demo-p7-v003-0a1b2c3d'

    Raises:
        ValueError: a part does not have its form.
    """
    if not _BASE_NAME.fullmatch(base):
        raise ValueError(f"base name {base!r}: use letters, digits, dots and hyphens")
    if project_id < 1 or number < 0:
        raise ValueError(f"project {project_id} and version {number}: must be at least 1 and 0")
    if not re.fullmatch(r"[0-9a-f]{8}", hash8):
        raise ValueError(f"hash {hash8!r}: must be 8 lower-case hexadecimal digits")
    return f"{base}-p{project_id}-v{number:03d}-{hash8}"


@dataclass(frozen=True)
class VersionName:
    """The parts of a version's name; see `version_name`."""

    base: str
    project_id: int
    number: int
    hash8: str


def read_version_name(name: str) -> VersionName | None:
    """The parts of a name that `version_name` has made; None for any other.

    >>> read_version_name("demo-p7-v003-0a1b2c3d")
    VersionName(base='demo', project_id=7, number=3, hash8='0a1b2c3d')
    """
    found = _VERSION_NAME.fullmatch(name)
    return (
        None
        if found is None
        else VersionName(found["base"], int(found["project"]), int(found["number"]), found["hash"])
    )


def version_hash(
    *,
    weights: str,
    prompts: Mapping[str, Any],
    thresholds: Mapping[str, float] | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> str:
    """Eight hexadecimal digits over all that changes what is predicted.

    Args:
        weights: the base model's fingerprint, or base and version weights joined; any string.
        prompts: `PredictionPlan.hash_payload()`.
        thresholds: per label, where the version brings its own.
        decoding: further settings of decoding (temperatures, smallest area ...).

    The order of keys does not matter; JSON values only.
    """
    value = {
        "decoding": dict(decoding or {}),
        "prompts": prompts,
        "thresholds": dict(thresholds or {}),
        "weights": weights,
    }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def effective_threshold(label: str, configured: float | None, learned: Mapping[str, float]) -> float:
    """The probability from which a pixel belongs to `label`: the config's, else the version's, else the default.

    Serving and the training job's comparison of old and new both decode with this one.
    """
    if configured is not None:
        return configured
    if label in learned:
        return learned[label]
    return DEFAULT_THRESHOLD


def _is_pinned(directory: Path) -> bool:
    pointer = directory / "current"
    return pointer.exists() and read_json(pointer).get("pinned") is True  # missing before there were pins


def _issued(directory: Path) -> int:
    fence = directory / "fence.json"
    if not fence.exists():
        return 0
    issued = read_json(fence).get("issued")
    if not isinstance(issued, int) or issued < 0:
        raise corrupt(fence, f"'issued' is {issued!r}, not a count")
    return issued


def _number(pointer: Path, record: Mapping[str, Any]) -> int:
    """The version that `current` names; 0 for the base model."""
    number = record.get("version")
    if not isinstance(number, int) or number < 0:
        raise corrupt(pointer, f"'version' is {number!r}, not a version number")
    return number

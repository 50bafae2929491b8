"""A project's model versions on disk.

    <data_dir>/projects/<project id>/
        lock                        between writers
        fence.json                  the highest token given out
        numbers.json                the highest version number given out; none comes twice
        current                     which version serves, whether it is pinned, which served before; replaced as a whole
        split.json                  which image is held out (written by the training job)
        annotated_tasks.sqlite      what was read of Label Studio, to read only what changes (likewise)
        versions/001/               immutable: written beside, flushed, renamed into place
            weights.safetensors     only what differs from the base checkpoint
            manifest.json           `backend.manifest.Manifest`
            metrics.json            everything that was measured
            report/                 what only its report shows: `backend.version_report`

A version that is not `current` is a candidate or a former one. Versions never change; old ones are removed by `prune`
(the rule: `backend.version_pruning`), which renames each away before it deletes anything, so that no half version is
ever in the list.

**Pinning.** What was pinned by hand serves until somebody publishes by hand again: no training replaces it.

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
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend import atomic
from backend.manifest import (
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
    file_sha256,
    read_json,
    read_version,
)
from backend.version_names import VersionName, read_version_name, version_name
from backend.version_pruning import to_remove
from backend.version_publication import (
    Publication,
    give_token,
    issued_token,
    next_number,
    note_number,
    point,
    read_publication,
    refuse_pinned,
    served_number,
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
    "Publication",
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
_FURTHER_FILE = re.compile(r"[a-z]+/[a-z0-9-]+\.[a-z]+")


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
        number = served_number(pointer, read_json(pointer))
        version = None if number == 0 else self.get(project_id, number)
        self._current[project_id] = (signature, version)
        return version

    def publication(self, project_id: int) -> Publication | None:
        """The latest publication; None where there was none.

        So a job that was killed right after it had published knows, when it is run again, that its work is done.

        Raises:
            VersionCorruptError: `current` cannot be used.
        """
        return read_publication(self.project_dir(project_id))

    def is_pinned(self, project_id: int) -> bool:
        """Whether the serving version was pinned: no training replaces it then.

        Raises:
            VersionCorruptError: `current` cannot be used.
        """
        published = self.publication(project_id)
        return published is not None and published.pinned

    def get(self, project_id: int, number: int) -> StoredVersion:
        """One version by its number.

        Raises:
            VersionNotFoundError: there is none.
            VersionCorruptError: it cannot be used.
        """
        path = self._versions(project_id) / f"{number:03d}"
        missing = VersionNotFoundError(
            f"project {project_id} has no version {number} ({path} is not there): `vlm versions` lists them",
            public=f"project {project_id} has no version {number}",
        )
        if not path.is_dir():
            raise missing
        try:
            return read_version(project_id, path)
        except VersionCorruptError:
            if not path.is_dir():  # pruned while it was read
                raise missing from None
            raise

    def list(self, project_id: int) -> list[StoredVersion]:
        """All versions, oldest first.

        Raises:
            VersionCorruptError: one of them cannot be used; the message names it.
        """
        found = []
        for number in self.numbers(project_id):
            with suppress(VersionNotFoundError):  # pruned meanwhile
                found.append(self.get(project_id, number))
        return found

    def numbers(self, project_id: int) -> tuple[int, ...]:
        """The numbers of all versions, oldest first, whether they can be used or not."""
        return tuple(int(path.name) for path in self._directories(project_id))

    def next_token(self, project_id: int) -> int:
        """Give out the next fencing token, 1, 2, 3 ...; every older one is refused from now on."""
        with self._locked(project_id) as directory:
            return give_token(directory)

    def write(
        self,
        project_id: int,
        weights: Mapping[str, torch.Tensor],
        manifest: ManifestDraft,
        metrics: Mapping[str, Any],
        files: Mapping[str, bytes] | None = None,
    ) -> StoredVersion:
        """Write a new version whole. It does not serve until it is published.

        Args:
            project_id: Label Studio's id.
            weights: tensors by their name in the decoder's `state_dict`; any device, copied.
            manifest: everything but number, date and file hash, which are filled in here.
            metrics: JSON, goes to `metrics.json`.
            files: further files by their path in the version's directory, like "report/record.json".

        Raises:
            ValueError: no weights, metrics that JSON cannot say (NaN), or the path of a file that is none there.
            OSError: the disk is full or not writable; nothing is left in the list then.
        """
        from safetensors.torch import save

        if not weights:
            raise ValueError("a version without weights: give the decoder's state_dict")
        if wrong := [name for name in files or {} if not _FURTHER_FILE.fullmatch(name)]:
            raise ValueError(f"file {wrong[0]!r} of a version: write a folder and a name, like 'report/record.json'")
        data = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
        with self._locked(project_id) as directory:
            versions = self._versions(project_id)
            versions.mkdir(exist_ok=True)
            _clear(versions)
            number = next_number(directory, self.numbers(project_id))
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
                for name, content in (files or {}).items():
                    (temporary / name).parent.mkdir(exist_ok=True)
                    atomic.write_bytes(temporary / name, content)
                atomic.write_bytes(temporary / MANIFEST, atomic.json_bytes(whole.model_dump(mode="json")))
                path = versions / f"{number:03d}"
                note_number(directory, number)
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
            newest = issued_token(directory)
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
            if not by_hand:
                refuse_pinned(project_id, number, directory)
            point(directory, number, token, pinned=pinned)

    def prune(self, project_id: int, keep: int, *, dry_run: bool = False) -> tuple[int, ...]:
        """Remove old versions by the rule of `backend.version_pruning`; their numbers, oldest first.

        What was removed is out of the list from one moment to the next, and a crash leaves nothing of it there.

        Args:
            project_id: Label Studio's id.
            keep: so many of the newest stay, at least 1.
            dry_run: remove nothing, only say what would go.

        Raises:
            ValueError: `keep` is below 1.
            VersionCorruptError: `current` cannot be used, so nobody knows what serves.
            OSError: the disk is not writable.
        """
        if keep < 1:
            raise ValueError(f"keep {keep} versions: at least 1 stays")
        versions = self._versions(project_id)
        if not versions.is_dir():
            return ()
        with self._locked(project_id):
            readable = []
            for number in self.numbers(project_id):
                with suppress(VersionCorruptError):  # neither counted nor removed: somebody may want to mend it
                    readable.append(self.get(project_id, number))
            published = self.publication(project_id)
            gone = to_remove(readable, published, keep)
            if dry_run:
                return gone
            for number in gone:
                (versions / f"{number:03d}").rename(versions / f".pruned-{uuid.uuid4().hex}")
            atomic.sync_directory(versions)
            _clear(versions)
            return gone

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


def _clear(versions: Path) -> None:
    """Delete what is out of the list; the lock is held, so whoever wrote or pruned there is gone."""
    for left_over in (*versions.glob(".writing-*"), *versions.glob(".pruned-*")):
        shutil.rmtree(left_over, ignore_errors=True)

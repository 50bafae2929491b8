"""Which version serves a project, and the counters of its directory: `current`, `fence.json`, `numbers.json`.

Functions over a project's directory, for `backend.versions.VersionStore`, which holds the project's lock around all
that write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from backend import atomic
from backend.manifest import SCHEMA_VERSION
from backend.version_files import PinnedError, VersionCorruptError, corrupt, read_json
from backend.version_pruning import FORMER


class Publication(NamedTuple):
    """What serves a project.

    Attributes:
        token: fencing token of who published it.
        number: of the version; 0 is the base model.
        pinned: it serves until it is unpinned.
        former: versions that served before, the latest first, each once, at most `version_pruning.FORMER`.
    """

    token: int
    number: int
    pinned: bool = False
    former: tuple[int, ...] = ()


def read_publication(directory: Path) -> Publication | None:
    """The latest publication; None where there was none.

    Raises:
        VersionCorruptError: `current` cannot be used.
    """
    pointer = directory / "current"
    if not pointer.exists():
        return None
    record = read_json(pointer)
    token = record.get("token")
    if not isinstance(token, int):
        raise corrupt(pointer, f"'token' is {token!r}, not a count")
    former = record.get("former", [])  # not there in those of earlier releases
    if not isinstance(former, list) or not all(isinstance(number, int) for number in former):
        raise corrupt(pointer, f"'former' is {former!r}, not version numbers")
    return Publication(token, served_number(pointer, record), record.get("pinned") is True, tuple(former))


def point(directory: Path, number: int, token: int, *, pinned: bool) -> None:
    """Replace `current` as a whole, a damaged one too."""
    before = _as_far_as_readable(directory)
    served = () if before is None else (before.number, *before.former)
    record = {
        "former": [old for old in dict.fromkeys(served) if old not in (0, number)][:FORMER],
        "pinned": pinned,
        "published_at": datetime.now(UTC).isoformat(),
        "schema_version": SCHEMA_VERSION,
        "token": token,
        "version": number,
    }
    atomic.write_json(directory / "current", record)


def refuse_pinned(project_id: int, number: int, directory: Path) -> None:
    """Let no training publish version `number` where another is pinned; a damaged `current` may be replaced.

    Raises:
        PinnedError: one is.
    """
    published = _as_far_as_readable(directory)
    if published is not None and published.pinned:
        raise PinnedError(
            f"project {project_id}: version {number} may not replace the one that is pinned: "
            f"`vlm versions {project_id} --unpin` lets trainings publish again",
            public=f"version {number} was not published: another one is pinned",
        )


def served_number(pointer: Path, record: Mapping[str, Any]) -> int:
    """The version that `current` names; 0 for the base model."""
    number = record.get("version")
    if not isinstance(number, int) or number < 0:
        raise corrupt(pointer, f"'version' is {number!r}, not a version number")
    return number


def give_token(directory: Path) -> int:
    """The next fencing token; every older one is refused from now on."""
    token = issued_token(directory) + 1
    atomic.write_json(directory / "fence.json", {"issued": token})
    return token


def issued_token(directory: Path) -> int:
    """The newest token; 0 where none was given out."""
    fence = directory / "fence.json"
    if not fence.exists():
        return 0
    issued = read_json(fence).get("issued")
    if not isinstance(issued, int) or issued < 0:
        raise corrupt(fence, f"'issued' is {issued!r}, not a count")
    return issued


def next_number(directory: Path, numbers: Sequence[int]) -> int:
    """The next version number, above those of versions that are gone too; see `note_number`.

    Args:
        directory: the project's.
        numbers: of the versions that are there.
    """
    return max([_highest(directory), *numbers]) + 1


def note_number(directory: Path, number: int) -> None:
    """Note that a number was given, so that it is not given again."""
    atomic.write_json(directory / "numbers.json", {"highest": number, "schema_version": SCHEMA_VERSION})


def _as_far_as_readable(directory: Path) -> Publication | None:
    try:
        return read_publication(directory)
    except VersionCorruptError:
        return None


def _highest(directory: Path) -> int:
    """The highest number that a version was given; 0 where none is noted."""
    path = directory / "numbers.json"
    if not path.exists():
        return 0
    highest = read_json(path).get("highest")
    if not isinstance(highest, int) or highest < 0:
        raise corrupt(path, f"'highest' is {highest!r}, not a count")
    return highest

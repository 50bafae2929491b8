"""The names of versions that Label Studio sees."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BASE_NAME = re.compile(r"[A-Za-z0-9.-]+")
_VERSION_NAME = re.compile(
    r"(?P<base>[A-Za-z0-9.-]+)-p(?P<project>[1-9][0-9]*)-v(?P<number>[0-9]{3,})-(?P<hash>[0-9a-f]{8})"
)


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

"""Which old versions are removed.

What stays:

- the newest `keep` versions, published or not (VLM_KEEP_VERSIONS);
- the version that serves, pinned or not, and the one that it was compared with: its report speaks of it;
- the last three that served before it, so that one can go back, and so that no request that has begun with one of them
  finds it gone;
- what cannot be read: it is not counted, and somebody may want to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from backend.version_files import StoredVersion

FORMER = 3
"""Versions that served before and stay."""


class Published(Protocol):
    """What is needed of `backend.versions.Publication`."""

    @property
    def number(self) -> int:
        """Of the version that serves; 0 is the base model."""

    @property
    def former(self) -> tuple[int, ...]:
        """Versions that served before, the latest first."""


def to_remove(versions: Sequence[StoredVersion], published: Published | None, keep: int) -> tuple[int, ...]:
    """The numbers of the versions that go, oldest first.

    Args:
        versions: those that can be read, oldest first.
        published: what serves; None where nothing was ever published.
        keep: so many of the newest stay, at least 1.
    """
    stay = {version.number for version in versions[-keep:]}
    if published is not None:
        stay |= {published.number, *published.former[:FORMER]}
        stay |= {int(v.manifest.metrics.get("compared_with") or 0) for v in versions if v.number == published.number}
    return tuple(version.number for version in versions if version.number not in stay)

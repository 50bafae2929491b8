"""Since when a project has had each label: what an older annotation does not mark says nothing.

A finished annotation tells of every label whether it is there. But only of those that its annotator could choose:
when a label is added to the labelling config, or one is renamed, the annotations made before do not say that it is
absent. Label Studio keeps no history of the config, so each reading notes, in `labels.json`, the labels and the
time of the newest annotation. A label that the next reading finds new is newer than all annotations of this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from backend import atomic
from backend.version_files import corrupt, read_json

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LabelHistory:
    """What is known of a project's labels.

    Attributes:
        since: per label the time of the newest annotation that is older than it; "" for a label that was there
            from the start. Times are Label Studio's own, ISO 8601 in UTC.
    """

    since: Mapping[str, str]

    def could_choose(self, label: str, changed_at: str) -> bool:
        """Whether the label was there when an annotation was last changed."""
        since = self.since.get(label, "")
        return not since or changed_at > since


def label_history(path: Path, labels: Iterable[str]) -> LabelHistory:
    """The history with the labels that the config has now.

    Args:
        path: the project's `labels.json`; need not be there.
        labels: of the config.

    Raises:
        backend.versions.VersionCorruptError: the file cannot be read.
    """
    if not path.exists():
        return LabelHistory(dict.fromkeys(labels, ""))
    record = read_json(path)
    known, newest = record.get("since"), record.get("newest_annotation")
    if record.get("schema_version") != _SCHEMA_VERSION or not isinstance(known, dict) or not isinstance(newest, str):
        raise corrupt(path, "not a history of labels that this release reads")
    return LabelHistory({**known, **{label: newest for label in labels if label not in known}})


def keep_label_history(path: Path, history: LabelHistory, newest_annotation: str) -> None:
    """Note what a reading of all annotations has found.

    Args:
        path: the project's `labels.json`. Its directory must exist.
        history: with which they were read.
        newest_annotation: when the newest of them was changed; "" where there are none.

    Raises:
        OSError: it cannot be written.
    """
    record = {
        "newest_annotation": newest_annotation,
        "schema_version": _SCHEMA_VERSION,
        "since": dict(history.since),
    }
    if not path.exists() or read_json(path) != record:
        atomic.write_json(path, record)

"""`vlm versions compare`: two versions label by label, by what was measured when each was made.

Nothing is measured anew. Where both were measured on the same images, those are compared, image by image; else their
means, which say less, and the comparison says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backend.page.report_view import LabelFigures, label_figures
from backend.tables import add_row
from backend.version_report import ReportRecord, Scored, read_report
from backend.versions import StoredVersion, VersionStore
from vlm_core.evaluation.bootstrap import PoissonBootstrap

LEAST_IMAGES = 5
"""With a label, that both were measured on: from so many on these images are compared, and there is an interval."""


@dataclass(frozen=True)
class ComparedLabel:
    """One label of both versions, IoU 0..1; None where it was not measured.

    Attributes:
        first, second: mean IoU where the label is.
        images: that both were measured on and these figures rest on; 0: they are means over different images.
        change: second minus first, with its 95 % interval, paired by image; None over different images.
    """

    label: str
    first: float | None
    second: float | None
    images: int = 0
    change: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """Two versions of one project; `note` says what the figures rest on."""

    project_id: int
    first: int
    second: int
    labels: tuple[ComparedLabel, ...]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare_versions(store: VersionStore, project_id: int, first: int, second: int) -> Comparison:
    """Compare by what the trainings noted.

    Raises:
        VersionNotFoundError: one of them is not there.
        VersionCorruptError: one of them cannot be read.
    """
    versions = [store.get(project_id, number) for number in (first, second)]
    figures = [{item.name: item for item in label_figures(version)} for version in versions]
    shared = _shared(*(_present(version) for version in versions))
    labels = tuple(
        _compared(label, shared.get(label, []), *(one.get(label) for one in figures))
        for label in sorted({*figures[0], *figures[1]})
    )
    fair, all_labels = sum(item.images > 0 for item in labels), len(labels)
    if not all_labels:
        note = "nothing was measured when they were made"
    elif fair == all_labels:
        note = "on images that both were measured on and neither had learned from"
    else:
        which = "the labels without a change" if fair else "they"
        note = (
            f"{which} were measured on different images (fewer than {LEAST_IMAGES} are the same), when each version "
            "was made: the figures are not to be compared closely"
        )
    return Comparison(project_id, first, second, labels, note)


Scores = Mapping[str, Mapping[str, Scored]]
"""Per label and image."""


def _present(version: StoredVersion) -> Scores:
    record = read_report(version) or ReportRecord()
    found: dict[str, dict[str, Scored]] = {}
    for image in record.images:
        for label, scored in image.labels.items():
            if scored.present:
                found.setdefault(label, {})[image.image] = scored
    return found


def _shared(first: Scores, second: Scores) -> dict[str, list[tuple[float, float]]]:
    """Per label the IoU of both on each image that both were measured on, in the order of the images' hashes."""
    return {
        label: [(first[label][image].new, second[label][image].new) for image in sorted(first[label].keys() & images)]
        for label, images in ((label, scores.keys()) for label, scores in second.items())
        if label in first
    }


def _compared(
    label: str, pairs: list[tuple[float, float]], first: LabelFigures | None, second: LabelFigures | None
) -> ComparedLabel:
    if len(pairs) < LEAST_IMAGES:
        one, other = (None if item is None else item.new_iou for item in (first, second))
        return ComparedLabel(label, one, other)
    bootstrap = PoissonBootstrap()
    for old, new in pairs:
        bootstrap.add(new - old, 1)
    before, after = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return ComparedLabel(label, before, after, len(pairs), after - before, bootstrap.interval())


def print_comparison(comparison: Comparison) -> None:
    """Draw it as a table, with its note below."""
    table = Table()
    for column in ("label", f"version {comparison.first}", f"version {comparison.second}", "change", "images"):
        table.add_column(column, overflow="fold")
    for item in comparison.labels:
        change = ""
        if item.change is not None and item.interval is not None:
            change = f"{item.change:+.3f} ({item.interval[0]:+.3f} to {item.interval[1]:+.3f})"
        add_row(table, item.label, _iou(item.first), _iou(item.second), change, item.images or "")
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(Text(f"IoU where the label is; {comparison.note}."))


def _iou(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

"""What the records of acceptance add up to: sums per label, per version and over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from backend.acceptance import Acceptance, Outcome, Record


@dataclass
class Tally:
    """How many of what.

    Attributes:
        kept, changed, removed, added: labels of images.
        images: annotations that hold any of these.
    """

    kept: int = 0
    changed: int = 0
    removed: int = 0
    added: int = 0
    images: int = 0
    _ious: list[float] = field(default_factory=list)

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """Add the outcomes of one annotation."""
        outcomes = list(outcomes)
        self.images += bool(outcomes)
        for outcome in outcomes:
            setattr(self, outcome.fate, getattr(self, outcome.fate) + 1)
            if outcome.fate != "added" and outcome.iou is not None:
                self._ious.append(outcome.iou)

    @property
    def predicted(self) -> int:
        """Labels that the predictions had."""
        return self.kept + self.changed + self.removed

    @property
    def total(self) -> int:
        """Labels that the predictions or the annotations had."""
        return self.predicted + self.added

    @property
    def kept_share(self) -> float | None:
        """Of the predicted labels the share that was kept, 0 to 1; None without any."""
        return self.kept / self.predicted if self.predicted else None

    @property
    def missed_share(self) -> float | None:
        """Of the annotated labels the share that the predictions lacked, 0 to 1; None without any."""
        annotated = self.kept + self.changed + self.added
        return self.added / annotated if annotated else None

    @property
    def iou(self) -> float | None:
        """Mean IoU of the predicted masks with what became of them, a removed one counting 0; None without any."""
        return math.fsum(self._ious) / len(self._ious) if self._ious else None


def only(records: Iterable[Record], *, choices: bool) -> list[Record]:
    """The records with their choices alone, or with all but these; those that have nothing left are left out."""
    kept = (
        (record, tuple(outcome for outcome in record.labels if (outcome.iou is None) == choices)) for record in records
    )
    return [record.model_copy(update={"labels": labels}) for record, labels in kept if labels]


def overall(records: Iterable[Record]) -> Tally:
    """All together."""
    tally = Tally()
    for record in records:
        tally.count(record.labels)
    return tally


def by_label(records: Iterable[Record]) -> dict[tuple[str, bool], Tally]:
    """Per label, and whether it is a choice; the most frequent first."""
    found: dict[tuple[str, bool], Tally] = {}
    for record in records:
        parts: dict[tuple[str, bool], list[Outcome]] = {}
        for outcome in record.labels:
            parts.setdefault((outcome.label, outcome.iou is None), []).append(outcome)
        for key, outcomes in parts.items():
            found.setdefault(key, Tally()).count(outcomes)
    return dict(sorted(found.items(), key=lambda item: (item[0][1], -item[1].total, item[0][0])))


def by_version(records: Iterable[Record]) -> dict[int, Tally]:
    """Per version that made the predictions, in order."""
    found: dict[int, Tally] = {}
    for record in records:
        found.setdefault(record.version, Tally()).count(record.labels)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Period:
    """What was annotated from `start` on, for `length`: all of it, and per label as `by_label` gives it."""

    start: datetime
    length: timedelta
    tally: Tally
    labels: dict[tuple[str, bool], Tally]


PERIODS = (
    timedelta(minutes=5),
    timedelta(hours=1),
    timedelta(days=1),
    timedelta(days=7),
    timedelta(days=28),
    timedelta(days=364),
)


def over_time(records: Sequence[Record], *, most: int = 24) -> list[Period]:
    """Acceptance in periods of one length, the shortest with which there are at most `most`.

    Args:
        records: in any order.
        most: periods, empty ones between included.

    Returns:
        In order, from the first annotation to the last; periods in which nothing was annotated are there and empty.
    """
    if not records:
        return []
    first, last = (edge(record.made_at for record in records) for edge in (min, max))
    for length in PERIODS:
        if _slot(last, length) - _slot(first, length) < most:
            break
    begin = _slot(first, length)
    slots: list[list[Record]] = [[] for _ in range(_slot(last, length) - begin + 1)]
    for record in records:
        slots[_slot(record.made_at, length) - begin].append(record)
    return [
        Period(_EPOCH + (begin + index) * length, length, overall(some), by_label(some))
        for index, some in enumerate(slots)
    ]


_EPOCH = datetime(1970, 1, 5, tzinfo=UTC)  # a Monday, so that weeks begin with one


def _slot(time: datetime, length: timedelta) -> int:
    return (time - _EPOCH) // length


@dataclass(frozen=True)
class Figures:
    """Of one kind of labels, masks or choices.

    Attributes:
        overall: all together.
        versions: per version that made the predictions.
        periods: over time.
        first_seen: per version the index of the period in which its predictions were first corrected.
    """

    overall: Tally
    versions: Mapping[int, Tally]
    periods: Sequence[Period]
    first_seen: Mapping[int, int]


@dataclass(frozen=True)
class Summary:
    """All figures of a project.

    Attributes:
        read_at: when its annotations were read last; None: never.
        annotations: that could be compared.
        afresh: of these, drawn beside a prediction.
        left_out: annotations that say nothing, by reason.
        masks: of masks; None where there are none.
        choices: of choices; None where there are none.
        labels: per label, and whether it is a choice.
    """

    read_at: datetime | None = None
    annotations: int = 0
    afresh: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    masks: Figures | None = None
    choices: Figures | None = None
    labels: Mapping[tuple[str, bool], Tally] = field(default_factory=dict)


def summarise(acceptance: Acceptance) -> Summary:
    """All figures; half a second for 10,000 annotations."""
    records = acceptance.records
    return Summary(
        read_at=acceptance.read_at,
        annotations=len(records),
        afresh=sum(record.afresh for record in records),
        left_out=acceptance.left_out,
        masks=_figures(only(records, choices=False)),
        choices=_figures(only(records, choices=True)),
        labels=by_label(records),
    )


def _figures(records: Sequence[Record]) -> Figures | None:
    if not records:
        return None
    versions, periods = by_version(records), over_time(records)
    first = {version: min(record.made_at for record in records if record.version == version) for version in versions}
    seen = {
        version: next(index for index, period in enumerate(periods) if at < period.start + period.length)
        for version, at in first.items()
    }
    return Figures(overall(records), versions, periods, seen)

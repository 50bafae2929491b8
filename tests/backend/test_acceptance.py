"""Acceptance over time: what is kept between readings, and what it adds up to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backend import acceptance
from backend.acceptance import (
    Acceptance,
    AcceptanceReading,
    AcceptanceStore,
    Outcome,
    Record,
)
from backend.acceptance_figures import by_label, by_version, only, over_time, overall, summarise
from backend.label_studio.config import parse_label_config
from tests.backend.label_studio.regions import CONFIG, brush, choice

PLAN = parse_label_config(CONFIG)
V0, V1 = "demo-p7-v000-aaaaaaaa", "demo-p7-v001-bbbbbbbb"
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def record(number: int, *labels: tuple[str, str, float | None], at: datetime = NOON, **fields: Any) -> Record:
    outcomes = tuple(Outcome(label=label, fate=fate, iou=iou) for label, fate, iou in labels)  # type: ignore[arg-type]
    return Record(annotation=number, made_at=at, changed_at="t", labels=outcomes, **{"version": 0, **fields})


def annotation(number: int, result: list[Any], **fields: Any) -> dict[str, Any]:
    at = f"2026-11-25T11:00:{number:02d}Z"
    return {"id": number, "result": result, "created_at": at, "updated_at": at, "parent_prediction": 1, **fields}


def task(*predictions: dict[str, Any]) -> dict[str, Any]:
    return {"id": 1, "predictions": list(predictions)}


PREDICTED = {"id": 1, "model_version": V0, "created_at": "2026-11-25T10:00:00Z", "result": [brush("cat", 0, 40)]}


def reading(known: Acceptance, *seen: tuple[dict[str, Any], list[dict[str, Any]]]) -> Acceptance:
    made = AcceptanceReading(known, 7, PLAN, clock=lambda: NOON)
    for one, its_annotations in seen:
        made.see(one, its_annotations)
    return made.result()


def test_a_reading_of_all_kinds() -> None:
    found = reading(
        Acceptance(),
        (
            task(PREDICTED),
            [
                annotation(3, [brush("cat", 0, 40)]),
                annotation(2, [], parent_prediction=None),
                annotation(4, [brush("cat", 0, 40) | {"image_rotation": 90}]),
                annotation(5, [], last_action="prediction"),
            ],
        ),
        (task(), [annotation(6, [brush("cat", 0, 40)])]),
    )
    assert found.read_at == NOON
    assert [(item.annotation, item.version, item.afresh) for item in found.records] == [(2, 0, True), (3, 0, False)]
    assert [[(o.label, o.fate) for o in item.labels] for item in found.records] == [
        [("cat", "removed")],
        [("cat", "kept")],
    ]
    assert found.left_out == {"unreadable": 1, "bulk": 1, "no prediction": 1}


def test_what_is_known_is_kept_though_its_prediction_is_gone_and_what_changed_is_compared_anew() -> None:
    kept, changed = annotation(1, [brush("cat", 0, 40)]), annotation(2, [brush("cat", 0, 40)])
    first = reading(Acceptance(), (task(PREDICTED), [kept, changed]))
    changed = changed | {"result": [brush("cat", 0, 20)], "updated_at": "2026-11-25T12:00:00Z"}
    second = reading(first, (task(PREDICTED | {"id": 9}), [kept]), (task(PREDICTED), [changed]))
    assert [[(o.fate, o.iou) for o in item.labels] for item in second.records] == [[("kept", 1.0)], [("changed", 0.5)]]
    assert second.records[0] == first.records[0]
    third = reading(second, (task(PREDICTED), [kept]))
    assert [item.annotation for item in third.records] == [1]  # the other was deleted


def test_the_store_gives_back_what_it_was_given_and_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "KEPT_PER_PROJECT", 3)
    store = AcceptanceStore(tmp_path)
    assert store.get(7) == Acceptance()
    made = [record(number, ("cat", "kept", 1.0), at=NOON + timedelta(hours=number)) for number in range(5)]
    store.put(7, Acceptance(read_at=NOON, records=tuple(made), left_out={"bulk": 2}))
    found = AcceptanceStore(tmp_path).get(7)
    assert found == Acceptance(read_at=NOON, records=tuple(made[2:]), left_out={"bulk": 2})
    assert store.get(7) == found
    # What the store would drop again is not even compared.
    old = annotation(9, [brush("cat", 0, 40)])
    assert reading(found, (task(PREDICTED), [old])).records == ()


def test_a_file_that_cannot_be_read_is_empty_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "projects" / "7" / "acceptance.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema_version": 2}')
    assert AcceptanceStore(tmp_path).get(7) == Acceptance()
    assert "acceptance.json" in caplog.text


RECORDS = [
    record(1, ("cat", "kept", 1.0), ("day", "kept", None)),
    record(2, ("cat", "changed", 0.6), ("dog", "removed", 0.0)),
    record(3, ("cat", "added", 0.0), ("dog", "kept", 1.0), ("night", "added", None), version=1),
    record(4, version=1),
]


def test_sums() -> None:
    tally = overall(RECORDS)
    assert (tally.kept, tally.changed, tally.removed, tally.added, tally.images) == (3, 1, 1, 2, 3)
    assert (tally.predicted, tally.total) == (5, 7)
    assert tally.kept_share == 3 / 5
    assert tally.iou == pytest.approx((1.0 + 0.6 + 0.0 + 1.0) / 4)  # a removed one counts 0, an added one not at all
    nothing = overall([])
    assert (nothing.kept_share, nothing.iou, nothing.images) == (None, None, 0)
    only_choices = overall([record(1, ("day", "kept", None))])
    assert (only_choices.kept_share, only_choices.iou) == (1.0, None)


def test_masks_and_choices_apart() -> None:
    assert [record.annotation for record in only(RECORDS, choices=True)] == [1, 3]
    masks = overall(only(RECORDS, choices=False))
    assert (masks.kept, masks.changed, masks.removed, masks.added) == (2, 1, 1, 1)
    assert masks.missed_share == 1 / 4
    assert overall([]).missed_share is None


def test_a_summary_holds_them_all() -> None:
    late = record(5, ("cat", "kept", 1.0), at=NOON + timedelta(minutes=20), version=2, afresh=True)
    found = summarise(Acceptance(read_at=NOON, records=(*RECORDS, late), left_out={"bulk": 1}))
    assert (found.read_at, found.annotations, found.afresh, found.left_out) == (NOON, 5, 1, {"bulk": 1})
    assert found.masks is not None
    assert found.choices is not None
    assert (found.masks.overall.total, found.choices.overall.total) == (6, 2)
    assert dict(found.masks.first_seen) == {0: 0, 1: 0, 2: 4}
    assert list(found.choices.versions) == [0, 1]
    assert found.labels == by_label((*RECORDS, late))
    empty = summarise(Acceptance(records=(record(1),)))
    assert (empty.annotations, empty.masks, empty.choices) == (1, None, None)


def test_sums_per_label_and_per_version() -> None:
    labels = by_label(RECORDS)
    assert list(labels) == [("cat", False), ("dog", False), ("day", True), ("night", True)]
    cat = labels["cat", False]
    assert (cat.kept, cat.changed, cat.removed, cat.added, cat.images, cat.iou) == (1, 1, 0, 1, 3, 0.8)
    versions = by_version(RECORDS)
    assert [(number, tally.images, tally.kept_share) for number, tally in versions.items()] == [
        (0, 2, 2 / 4),
        (1, 1, 1 / 1),
    ]


@pytest.mark.parametrize(
    ("span", "length", "count"),
    [
        (timedelta(0), timedelta(minutes=5), 1),
        (timedelta(minutes=119), timedelta(minutes=5), 24),
        (timedelta(minutes=120), timedelta(hours=1), 3),
        (timedelta(days=3), timedelta(days=1), 4),
        (timedelta(days=30), timedelta(days=7), 5),
        (timedelta(days=700), timedelta(days=364), 3),
    ],
)
def test_periods_cover_the_time_with_few_bars(span: timedelta, length: timedelta, count: int) -> None:
    records = [record(1, ("cat", "kept", 1.0)), record(2, ("cat", "added", 0.0), at=NOON + span)]
    periods = over_time(records)
    assert {period.length for period in periods} == {length}
    assert len(periods) == count
    assert [b.start - a.start for a, b in pairwise(periods)] == [length] * (count - 1)
    assert periods[0].start <= NOON < periods[0].start + length
    assert sum(period.tally.total for period in periods) == 2
    assert periods[-1].tally.added == 1


def test_weeks_begin_on_mondays_and_no_records_make_no_periods() -> None:
    records = [record(1, at=NOON), record(2, at=NOON + timedelta(days=40))]
    assert {period.start.weekday() for period in over_time(records)} == {0}
    assert over_time([]) == []


def test_versions_do_not_mix_projects() -> None:
    foreign = {"id": 1, "model_version": V1.replace("-p7-", "-p8-"), "created_at": "2026-11-25T10:00:00Z", "result": []}
    assert reading(Acceptance(), (task(foreign), [annotation(1, [choice("scene", "day")])])).records == ()

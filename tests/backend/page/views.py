"""What a page may show, small and large, for its tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from backend.acceptance import Acceptance, Outcome, Record
from backend.acceptance_figures import summarise
from backend.page.views import JobView, LabelGain, Note, ProjectView, StatusView, VersionView

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOSTILE = "<script>document.title='taken'</script>\"' onload=alert(1) &amp; \N{RIGHT-TO-LEFT OVERRIDE}" + "w" * 300


def record(number: int, *labels: tuple[str, str, float | None], ago: timedelta = timedelta(0), **fields: Any) -> Record:
    outcomes = tuple(Outcome(label=label, fate=fate, iou=iou) for label, fate, iou in labels)  # type: ignore[arg-type]
    made_at = NOW - ago
    return Record(annotation=number, made_at=made_at, changed_at="t", labels=outcomes, **{"version": 0, **fields})


def status(*projects: ProjectView, **fields: Any) -> StatusView:
    known: dict[str, Any] = {
        "now": NOW,
        "release": "1.2.3",
        "started_at": NOW - timedelta(hours=5),
        "model": "colours",
        "model_state": "ready",
        "workers": 1,
        "projects": projects,
    }
    return StatusView(**known | fields)


def busy(text: str = "Harbour cranes") -> StatusView:
    """All that can be there, with `text` wherever people or Label Studio may write."""
    days = timedelta(days=1)
    records = tuple(
        record(
            number,
            (text, ("kept", "changed", "kept", "removed")[number % 4], (1.0, 0.7, 1.0, 0.0)[number % 4]),
            ("crane", "kept" if number > 20 else "changed", 0.995 if number > 20 else 0.6),
            ("boat", "added", 0.0),
            ("at night", "kept", None),
            ago=(60 - number) * days,
            version=0 if number < 20 else 2,
            afresh=number % 10 == 0,
        )
        for number in range(60)
    )
    versions = (
        VersionView(1, NOW - 45 * days, False, text, gain=-0.01, images=12),
        VersionView(2, NOW - 40 * days, True, "", gain=0.2, images=15, labels={text: LabelGain(0.1, 0.5)}),
    )
    full = ProjectView(
        7,
        title=text,
        serving=2,
        serving_name="colours-p7-v002-0a1b2c3d",
        versions=versions,
        acceptance=summarise(Acceptance(read_at=NOW, records=records)),
        last_training=Note(f"not better: {text}", NOW),
        last_event=Note("ANNOTATION_CREATED, queued", NOW),
        last_error=Note(text, NOW),
        problem=text,
    )
    jobs = (
        JobView("training", 7, "running", phase=text, percent=43.2, since=NOW, left="2 minutes left", problem=text),
        JobView("training", 8, "queued", since=NOW),
    )
    return status(full, ProjectView(8, title=text), jobs=jobs, others=((9, text),), problems=(text,))

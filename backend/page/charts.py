"""Plots as inline SVG. Colours come from the style sheet, by class, so that they follow dark and light."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

import htpy as h

from backend.acceptance_figures import Period, Tally

WIDTH, HEIGHT = 380, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 6, 18, 22
_FATES = ("kept", "changed", "removed")
SPARK_WIDTH, SPARK_HEIGHT = 84, 22


def outcome_bar(tally: Tally) -> h.Element:
    """One label's outcomes as a bar over the whole width: kept, changed, removed of what was predicted."""
    return h.svg(".outcomes", viewBox="0 0 100 6", preserveAspectRatio="none", aria_hidden="true")[
        h.rect(".none", width=100, height=6), _stack(tally, 0, 100, 6, upwards=False)
    ]


def acceptance_chart(periods: Sequence[Period], first_seen: Mapping[int, int]) -> h.Element:
    """Acceptance over time: a bar a period with what became of the predicted labels, and the mean IoU as a line.

    Args:
        periods: at least one.
        first_seen: per version the index of the period in which its predictions were first corrected.
    """
    inner_width, inner_height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    step = inner_width / len(periods)
    bar = min(step * 0.8, 34.0)

    def middle(index: int) -> float:
        return _LEFT + (index + 0.5) * step

    def level(share: float) -> float:
        return _TOP + (1 - share) * inner_height

    grid = [
        (
            h.line(".grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=number(level(share)), y2=number(level(share))),
            h.text(".axis", x=_LEFT - 5, y=number(level(share) + 4), text_anchor="end")[f"{share:.0%}"],
        )
        for share in (0.0, 0.5, 1.0)
    ]
    bars = [
        h.g[
            h.title[f"{_day(period.start, period.length)}: {outcome_words(period.tally)}"],
            h.g(transform=f"translate({number(middle(index) - bar / 2)} {_TOP})")[
                _stack(period.tally, 0, bar, inner_height, upwards=True)
            ],
        ]
        for index, period in enumerate(periods)
        if period.tally.predicted
    ]
    points = [(middle(i), level(p.tally.iou)) for i, p in enumerate(periods) if p.tally.iou is not None]
    marks = [
        (
            h.line(".mark", x1=number(middle(i)), x2=number(middle(i)), y1=_TOP - 5, y2=_TOP),
            h.text(".axis", x=number(middle(i)), y=_TOP - 7, text_anchor="middle")[_version(numbers)],
        )
        for i, numbers in _grouped(first_seen)
    ]
    return h.svg(".chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=_summary(periods))[
        grid, bars, _line(points), [h.circle(".iou", cx=number(x), cy=number(y), r=3) for x, y in points], marks,
        _dates(periods, middle),
    ]  # fmt: skip


def sparkline(periods: Sequence[Period], label: str) -> h.Element | None:
    """The mean IoU of one label's masks over time, small; None with fewer than two periods that have one."""
    nothing = Tally()
    tallies = [period.labels.get((label, False), nothing) for period in periods]
    ious = [(index, tally.iou) for index, tally in enumerate(tallies) if tally.iou is not None]
    if len(ious) < 2:
        return None
    span = max(len(periods) - 1, 1)
    points = [(3 + i / span * (SPARK_WIDTH - 6), 3 + (1 - iou) * (SPARK_HEIGHT - 6)) for i, iou in ious]
    x, y = points[-1]
    spoken = f"IoU over time, from {ious[0][1]:.2f} to {ious[-1][1]:.2f}"
    return h.svg(".spark", viewBox=f"0 0 {SPARK_WIDTH} {SPARK_HEIGHT}", role="img", aria_label=spoken)[
        h.title[spoken], _line(points), h.circle(".iou", cx=number(x), cy=number(y), r=3)
    ]


def outcome_words(tally: Tally) -> str:
    """What became of the labels, in words: "8 kept, 2 changed, 1 added"; IoU where there is one."""
    counts = [(getattr(tally, fate), fate) for fate in (*_FATES, "added")]
    words = [f"{count} {fate}" for count, fate in counts if count]
    return ", ".join(words + ([f"IoU {tally.iou:.2f}"] if tally.iou is not None else [])) or "nothing"


def _stack(tally: Tally, x: float, width: float, height: float, *, upwards: bool) -> list[h.Element]:
    """The shares of what was predicted, beside each other or on top of each other, the kept ones first."""
    rects, done = [], 0.0
    for fate in _FATES:
        share = getattr(tally, fate) / tally.predicted if tally.predicted else 0.0
        if upwards:
            place = {"x": x, "y": (1 - done - share) * height, "width": width, "height": share * height}
        else:
            place = {"x": x + done * width, "y": 0.0, "width": share * width, "height": height}
        if share:
            rects.append(h.rect({name: number(value) for name, value in place.items()}, class_=fate))
        done += share
    return rects


def _line(points: Sequence[tuple[float, float]]) -> h.Element:
    return h.polyline(".iou", points=" ".join(f"{number(x)},{number(y)}" for x, y in points))


def _grouped(first_seen: Mapping[int, int]) -> list[tuple[int, list[int]]]:
    found: dict[int, list[int]] = {}
    for version, index in sorted(first_seen.items()):
        found.setdefault(index, []).append(version)
    return sorted(found.items())


def _version(numbers: Sequence[int]) -> str:
    names = ["base" if number == 0 else f"v{number}" for number in (numbers[0], numbers[-1])]
    return names[0] if len(numbers) == 1 else "-".join(names)


def _dates(periods: Sequence[Period], middle: Callable[[int], float]) -> list[h.Element]:
    last = len(periods) - 1
    shown = [(0, "start" if last else "middle")] + ([(last, "end")] if last else [])
    edges = {"start": _LEFT, "end": WIDTH - _RIGHT}
    return [
        h.text(".axis", x=number(edges.get(anchor, middle(index))), y=HEIGHT - 6, text_anchor=anchor)[
            _day(periods[index].start, periods[index].length)
        ]
        for index, anchor in shown
    ]


def _day(time: datetime, length: timedelta) -> str:
    if length < timedelta(days=1):
        return f"{time:%d %b, %H:%M} UTC"
    return f"{time:%d %b %Y}"


def _summary(periods: Sequence[Period]) -> str:
    rows = [f"{_day(p.start, p.length)}: {outcome_words(p.tally)}" for p in periods if p.tally.total]
    return "What became of predicted labels over time. " + "; ".join(rows)


def number(value: float) -> str:
    """A coordinate as SVG takes it. At most two places: a page of plots stays small."""
    return f"{value:.2f}".rstrip("0").rstrip(".")

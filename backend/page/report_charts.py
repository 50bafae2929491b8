"""The plots of a report as inline SVG; colours come from the style sheet, by class, and so follow dark and light."""

from __future__ import annotations

import re
from collections.abc import Sequence

import htpy as h

from backend.page.charts import number
from backend.version_report import Interval, Losses

WIDTH, HEIGHT = 380, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 24
_ROW = 34
_PART = re.compile(r", \d+ of \d+$")


def loss_charts(losses: Sequence[Losses]) -> list[tuple[str, h.Element]]:
    """What was fitted, and its losses over steps; parts of one thing ("..., 1 of 3") share a plot."""
    groups: dict[str, list[Losses]] = {}
    for one in losses:
        if one.points:
            groups.setdefault(_PART.sub("", one.phase), []).append(one)
    return [(name, _losses(name, found)) for name, found in groups.items()]


def _losses(name: str, losses: Sequence[Losses]) -> h.Element:
    values = [loss for one in losses for _, loss in one.points]
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1.0
    last = max(one.points[-1][0] for one in losses)

    def at(step: int, loss: float) -> str:
        x = _LEFT + step / max(last, 1) * (WIDTH - _LEFT - _RIGHT)
        return f"{number(x)},{number(_level(loss, low, high))}"

    grid = [
        (
            h.line(".grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y),
            h.text(".axis", x=_LEFT - 5, y=number(float(y) + 4), text_anchor="end")[f"{value:.3g}"],
        )
        for value in (low, (low + high) / 2, high)
        for y in [number(_level(value, low, high))]
    ]
    spoken = "; ".join(f"{one.phase}: loss from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g}" for one in losses)
    return h.svg(".chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=spoken or name)[
        grid,
        [h.polyline(".loss", points=" ".join(at(*point) for point in one.points)) for one in losses],
        h.text(".axis", x=_LEFT, y=HEIGHT - 6)["step 0"],
        h.text(".axis", x=WIDTH - _RIGHT, y=HEIGHT - 6, text_anchor="end")[f"{last}"],
    ]


def _level(value: float, low: float, high: float) -> float:
    return _TOP + (1 - (value - low) / (high - low)) * (HEIGHT - _TOP - _BOTTOM)


Bar = tuple[str, float | None, Interval | None, float | None, Interval | None]
"""A label's name, and its old and new figure with their intervals."""


def before_after_chart(bars: Sequence[Bar]) -> h.Element:
    """A row a label: what it was and what it is, 0 to 1, each with its interval as a line."""
    height = _ROW * len(bars) + 20

    def x(share: float) -> str:
        return number(8 + share * (WIDTH - 16))

    rows = []
    for index, (name, old, old_range, new, new_range) in enumerate(bars):
        top = index * _ROW
        rows.append(h.text(".axis", x=8, y=top + 11)[_short(name)])
        for kind, value, interval, y in (("before", old, old_range, top + 19), ("after", new, new_range, top + 27)):
            if value is None:
                continue
            rows.append(h.line(".grid", x1=x(0), x2=x(1), y1=y, y2=y))
            if interval is not None:
                rows.append(h.line(f".{kind}", x1=x(interval[0]), x2=x(interval[1]), y1=y, y2=y))
            rows.append(h.circle(f".{kind}", cx=x(value), cy=y, r=4)[h.title[f"{name}, {kind}: {value:.3f}"]])
    spoken = "; ".join(f"{bar[0]}: {_spoken(bar[1])} before, {_spoken(bar[3])} after" for bar in bars)
    return h.svg(".chart", viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=spoken)[
        rows,
        [
            h.text(".axis", x=x(share), y=height - 6, text_anchor=anchor)[f"{share:g}"]
            for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
        ],
    ]


def _spoken(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.2f}"


def _short(name: str) -> str:
    return name if len(name) <= 48 else f"{name[:47]}\N{HORIZONTAL ELLIPSIS}"

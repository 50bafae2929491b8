"""A small line chart, so that a run can be looked at without another library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT = 360, 220
_MARGIN = (48, 26, 12, 26)
_LINE, _GREY, _INK = (31, 90, 170), (205, 205, 205), (40, 40, 40)


def draw_chart(series: Mapping[str, Sequence[tuple[float, float]]]) -> Image.Image:
    """Draw each series in a panel of its own, two panels a row.

    Args:
        series: name -> (step, value) points in order of steps; at least one series.

    Returns:
        RGB image.
    """
    panels = [_panel(name, points) for name, points in series.items() if points]
    rows = max(1, (len(panels) + 1) // 2)
    sheet = Image.new("RGB", (2 * _WIDTH, rows * _HEIGHT), "white")
    for index, panel in enumerate(panels):
        sheet.paste(panel, ((index % 2) * _WIDTH, (index // 2) * _HEIGHT))
    return sheet


def _panel(name: str, points: Sequence[tuple[float, float]]) -> Image.Image:
    panel = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(panel)
    left, top, right, bottom = _MARGIN
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(0.0, min(y for _, y in points)), max(y for _, y in points)
    y1 = y1 if y1 > y0 else y0 + 1.0
    x1 = x1 if x1 > x0 else x0 + 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x0) / (x1 - x0) * (_WIDTH - left - right),
            _HEIGHT - bottom - (y - y0) / (y1 - y0) * (_HEIGHT - top - bottom),
        )

    for part in (0.0, 0.5, 1.0):
        value = y0 + part * (y1 - y0)
        _, y = at(x0, value)
        draw.line([(left, y), (_WIDTH - right, y)], fill=_GREY)
        draw.text((4, y - 5), f"{value:.3g}", fill=_INK)
    draw.text((left, 6), f"{name}   last {points[-1][1]:.4g}", fill=_INK)
    draw.text((left, _HEIGHT - bottom + 6), f"step {x0:.0f}", fill=_INK)
    draw.text((_WIDTH - right - 40, _HEIGHT - bottom + 6), f"{x1:.0f}", fill=_INK)
    line = [at(x, y) for x, y in points]
    if len(line) > 1:
        draw.line(line, fill=_LINE, width=2)
    else:
        draw.ellipse([line[0][0] - 2, line[0][1] - 2, line[0][0] + 2, line[0][1] + 2], fill=_LINE)
    return panel

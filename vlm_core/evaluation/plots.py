"""The plots of a report, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#e69f00", "#009e73", "#999999"  # of Okabe & Ito's palette


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, *, mark: tuple[float, str] | None = None
) -> bytes:
    """Lines over [0, 1] x [0, 1].

    Args:
        series: name -> (x, y) points; nan leaves a gap. A single one has no legend.
        x, y: names of the axes.
        mark: an x and what it is, drawn as a dashed line.
    """

    def draw(axes: Axes) -> None:
        for (name, points), colour in zip(series.items(), (_BLUE, _ORANGE, _GREEN), strict=False):
            axes.plot([p[0] for p in points], [p[1] for p in points], label=name, color=colour, linewidth=2)
        if mark is not None:
            axes.axvline(mark[0], color=_GREY, linestyle="--", linewidth=1, label=mark[1])
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
        if len(series) > 1 or mark is not None:
            axes.legend(frameon=False, fontsize=9)

    return _png(draw)


def bars(counts: Sequence[int], x: str, y: str, *, high: float = 1.0) -> bytes:
    """A histogram of equal bins from 0 to `high`."""

    def draw(axes: Axes) -> None:
        width = high / len(counts)
        axes.bar([(i + 0.5) * width for i in range(len(counts))], counts, width=width * 0.9, color=_BLUE)
        axes.set(xlim=(0, high), xlabel=x, ylabel=y)

    return _png(draw)


def grouped(groups: dict[str, dict[str, float]], y: str, *, chance: dict[str, dict[str, float]]) -> bytes:
    """Bars side by side: series -> name -> value in [0, 1], with a grey line at what chance would give."""

    def draw(axes: Axes) -> None:
        names = list(dict.fromkeys(name for values in groups.values() for name in values))
        width = 0.8 / len(groups)
        for index, (series, colour) in enumerate(zip(groups, (_BLUE, _ORANGE), strict=False)):
            at = [names.index(name) + (index - (len(groups) - 1) / 2) * width for name in groups[series]]
            axes.bar(at, list(groups[series].values()), width=width * 0.92, color=colour, label=series)
            for x, name in zip(at, groups[series], strict=True):
                label = "chance" if index == 0 and name == names[0] else "_nolegend_"
                axes.hlines(chance[series][name], x - width / 2, x + width / 2, color="black", label=label)
        axes.set(ylim=(0, 1.02), ylabel=y)
        axes.set_xticks(range(len(names)), names)
        axes.legend(frameon=False, fontsize=9)

    return _png(draw)


def _png(draw: Callable[[Axes], None]) -> bytes:
    # Not pyplot: its figures are global, and its choice of a display is not wanted here.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    draw(axes)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()

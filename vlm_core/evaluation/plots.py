"""The plots of a report, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#e69f00", "#009e73", "#999999"  # of Okabe & Ito's palette
_MOST_BARS = 50
_TEXT_PT = 12


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
            _legend(axes)

    return _png(draw)


def bars(counts: Sequence[int], x: str, y: str) -> bytes:
    """A histogram of equal bins from 0 to 1."""

    def draw(axes: Axes) -> None:
        width = 1 / len(counts)
        axes.bar([(i + 0.5) * width for i in range(len(counts))], counts, width=width * 0.9, color=_BLUE)
        axes.set(xlim=(0, 1), xlabel=x, ylabel=y)

    return _png(draw)


def ranks(values: Sequence[int], x: str, y: str) -> bytes:
    """A histogram of places from 1 on: a bar a place where they are few, else a bar for as many places each."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        width = -(-max(values) // _MOST_BARS)
        counts = [0] * -(-max(values) // width)
        for value in values:
            counts[(value - 1) // width] += 1
        # A bar stands over the places that it counts.
        middles = [1 + i * width + (width - 1) / 2 for i in range(len(counts))]
        axes.bar(middles, counts, width=width * 0.9, color=_BLUE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlim=(0.5, len(counts) * width + 0.5), xlabel=x, ylabel=y)

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
        _legend(axes)

    return _png(draw)


def _legend(axes: Axes) -> None:
    """Above the plot, where it covers nothing."""
    axes.legend(
        frameon=False,
        fontsize=_TEXT_PT,
        ncols=2,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.2,
    )


def _png(draw: Callable[[Axes], None]) -> bytes:
    # Not pyplot: its figures are global, and its choice of a display is not wanted here.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    draw(axes)
    # Letters that can still be read where a phone shows the plot at half of its size.
    axes.tick_params(labelsize=_TEXT_PT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(_TEXT_PT + 1)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()

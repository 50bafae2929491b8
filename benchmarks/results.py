"""The table that `make bench` prints and keeps."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.pairing import Samples

LIBRARIES = ("torch", "transformers", "timm", "pillow", "numpy", "numba", "label-studio-sdk")


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        case: what is measured.
        reference, floor, ours: medians, with their unit; "" where there is none.
        figure: what the reach is about.
        reach: the bound of the figure, written as it is read; "" for a figure that is only reported.
        most, least: the bound of the figure's median.
        figure_name: what the figure is.
    """

    case: str
    figure_name: str
    figure: Samples
    reference: str = ""
    floor: str = ""
    ours: str = ""
    most: float | None = None
    least: float | None = None

    @property
    def reach(self) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        return f">= {self.least:g}" if self.least is not None else ""

    @property
    def reached(self) -> bool | None:
        if self.most is not None:
            return self.figure.median <= self.most
        return self.figure.median >= self.least if self.least is not None else None

    @property
    def verdict(self) -> str:
        return {True: "reached", False: "MISSED", None: "reported"}[self.reached]

    def cells(self) -> list[str]:
        return [
            self.case,
            self.reference,
            self.floor,
            self.ours,
            self.figure_name,
            str(self.figure),
            self.reach,
            self.verdict,
        ]


HEAD = ["case", "reference", "floor", "ours", "figure", "median (least-most)", "reach", "verdict"]


def ms(samples: Samples) -> str:
    return f"{1000 * samples.median:.4g} ms"


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown that is aligned for reading as text too."""
    cells = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine() -> str:
    """What the figures belong to, one fact a line."""
    import torch

    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    facts = [
        f"{cpu}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        f"load before the run {os.getloadavg()[0]:.1f}",
        f"{platform.system()} {platform.release()}, Python {sys.version.split()[0]}",
        ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    ]
    if torch.cuda.is_available():
        facts.insert(1, torch.cuda.get_device_name())
    return "\n".join(f"- {fact}" for fact in facts)


def plot(rows: Sequence[Row], path: Path) -> None:
    """How far each figure is within its reach: 1 is the reach itself, less is better."""
    from matplotlib.figure import Figure

    bounded = [row for row in rows if row.reached is not None]
    shares = []
    for row in bounded:
        if row.most is not None:
            shares.append([value / row.most for value in row.figure.values])
        else:
            assert row.least is not None
            shares.append([row.least / value for value in row.figure.values])
    figure = Figure(figsize=(9, 0.32 * len(bounded) + 1), layout="constrained")
    axes = figure.subplots()
    places = range(len(bounded))
    medians = [sorted(values)[len(values) // 2] for values in shares]
    axes.barh(
        list(places), medians, color=["#4c956c" if row.reached else "#c1443c" for row in bounded], height=0.6, zorder=2
    )
    axes.hlines(
        list(places), [min(v) for v in shares], [max(v) for v in shares], color="#222222", linewidth=1, zorder=3
    )
    axes.axvline(1.0, color="#222222", linewidth=1, linestyle="--")
    axes.set_yticks(list(places), [row.case for row in bounded], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.2, min(2.0, max(medians) * 1.1)))
    axes.set_xlabel("share of what is allowed (dashed: the reach); lines from the least to the most", fontsize=8)
    axes.grid(axis="x", color="#dddddd", zorder=0)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def write(rows: Sequence[Row], facts: str, notes: Sequence[str], path: Path) -> None:
    """Keep the table as Markdown with a plot beside it."""
    plot(rows, path.with_suffix(".png"))
    head = """# The engine, measured

Written by `make bench`. Contenders take turns in one run on one machine, with the same weights: a CLIPSeg of the
published size (ViT-B/16 at 352 px), random and rescaled. Ratios survive another machine, times do not. The floor is the
least that any implementation computes: `benchmarks/references.py`."""
    picture = f"![Figures against their reach]({path.stem}.png)"
    path.write_text("\n\n".join([head, facts, table(rows), *notes, picture]) + "\n", encoding="utf-8")

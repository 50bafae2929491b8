"""A report as one HTML file that needs nothing else, and as JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from vlm_core.evaluation.cases import Case

_ABOUT_CASES = {
    "worst": "The lowest of all; at most two a picture.",
    "typical": "Nearest to the median of those that are neither best nor worst.",
    "best": "The highest of all.",
}
_STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;background:#fff;max-width:1040px;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.facts,.note,figcaption{color:#555;font-size:.9rem}.facts{overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:.75rem}
.figure{border:1px solid #ddd;border-radius:8px;padding:.75rem}
.figure b{font-size:1.6rem;display:block;line-height:1.2}.figure .name{font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:1rem}
figure{margin:0;max-width:480px}.plots img{width:100%;height:auto}
.scroll{overflow-x:auto;max-height:32rem}table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
th{white-space:normal;vertical-align:bottom;position:sticky;top:0;background:#fff}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:7rem}
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:.75rem}
.case{border:1px solid #ddd;border-radius:8px;padding:.6rem}
.case h3{font-size:.95rem;margin:0 0 .4rem;overflow-wrap:anywhere}.case h3 .note{display:block;font-weight:400}
.pictures{display:flex;gap:.4rem}.pictures figure{flex:1;min-width:0}.pictures img{width:100%;height:auto;display:block}
.pictures.one img{max-height:200px;width:auto;max-width:100%}
.case ul{list-style:none;margin:.4rem 0 0;padding:0;font-size:.85rem;overflow-wrap:anywhere}
.right{color:#006b4f;font-weight:600}.wrong{color:#8a3b00}
@media(max-width:640px){.figures{grid-template-columns:1fr 1fr}.figure .name{overflow-wrap:anywhere}
th,td{padding:.3rem}th:first-child,td:first-child{min-width:6rem}}
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A headline figure: its name, value, 95 % interval where there is one, and what it is, in a line."""

    name: str
    value: float
    about: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its heading, a note, the names of its columns, and rows of texts and numbers."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True, slots=True)
class Report:
    """What a report shows, and what its JSON holds.

    Attributes:
        title: heading.
        facts: model, data and settings, name -> value.
        figures: the headline.
        plots: caption and PNG bytes.
        tables: below the plots.
        cases: kind ("worst", "typical", "best") -> cases.
        case_value: what the value of a case is called.
        measured: everything in figures, for `report.json`.
    """

    title: str
    facts: dict[str, str]
    figures: tuple[Figure, ...]
    plots: tuple[tuple[str, bytes], ...]
    tables: tuple[Table, ...]
    cases: dict[str, list[Case]]
    case_value: str
    measured: dict[str, Any] = field(default_factory=dict)


def write_report(report: Report, out: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into a directory, which is made; gives both paths."""
    out.mkdir(parents=True, exist_ok=True)
    page, data = out / "report.html", out / "report.json"
    page.write_text(render_html(report), encoding="utf-8")
    data.write_text(json.dumps(report_json(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return page, data


def report_json(report: Report) -> dict[str, Any]:
    """What `report.json` holds: facts, and everything measured; null where nothing could be measured."""
    return {"title": report.title, "facts": report.facts, "measured": _finite(report.measured)}


def render_html(report: Report) -> str:
    """The page, with pictures inside. Every text of the report is escaped."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(report.title)}</h1>",
        '<p class="facts">' + " · ".join(f"{escape(k)}: {escape(v)}" for k, v in report.facts.items()) + "</p>",
        '<div class="figures">' + "".join(_figure(f) for f in report.figures) + "</div>",
        '<p class="note">Ranges are 95 % intervals from a bootstrap over images, where nothing else is said.</p>',
        '<h2>Plots</h2><div class="plots">',
        *(
            f"<figure>{_image(png, 'png', name)}<figcaption>{escape(name)}</figcaption></figure>"
            for name, png in report.plots
        ),
        "</div>",
    ]
    for kind, cases in report.cases.items():
        if cases:
            parts.append(
                f'<h2>{kind.capitalize()} cases</h2><p class="note">{_ABOUT_CASES[kind]}</p><div class="cases">'
            )
            parts += [_case(case, report.case_value) for case in cases]
            parts.append("</div>")
    parts += [_table(table) for table in report.tables]
    return "\n".join([*parts, "</body></html>", ""])


def _figure(figure: Figure) -> str:
    interval = ""
    if figure.interval is not None and not math.isnan(figure.interval[0]):
        interval = f'<span class="note">{_number(figure.interval[0])} to {_number(figure.interval[1])}</span><br>'
    return (
        f'<div class="figure"><span class="name">{escape(figure.name)}</span><b>{_number(figure.value)}</b>{interval}'
        f'<span class="note">{escape(figure.about)}</span></div>'
    )


def _case(case: Case, value: str) -> str:
    one = len(case.pictures) == 1
    pictures = "".join(
        f"<figure>{_image(data, 'jpeg', name)}{'' if one else f'<figcaption>{escape(name)}</figcaption>'}</figure>"
        for name, data in case.pictures
    )
    lines = "".join(_line(text, right) for text, right in case.lines)
    note = f'<span class="note">{escape(value)}: {_number(case.value)}</span>'
    return (
        f'<div class="case"><h3>{escape(case.title)} {note}</h3>'
        f'<div class="pictures{" one" if one else ""}">{pictures}</div>{f"<ul>{lines}</ul>" if lines else ""}</div>'
    )


def _line(text: str, right: bool | None) -> str:
    if right is None:
        return f"<li>{escape(text)}</li>"
    # A sign beside the colour: not everyone tells the colours apart.
    return f'<li class="{"right" if right else "wrong"}">{"✓" if right else "✗"} {escape(text)}</li>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2><p class="note">{escape(table.note)}</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(value: str | int | float) -> str:
    return _number(value) if isinstance(value, float) else escape(str(value))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _image(data: bytes, kind: str, text: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="{escape(text)}">'


def _finite(value: Any) -> Any:
    """The same with None for nan, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value

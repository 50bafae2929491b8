"""The report on one version as one HTML file that needs nothing else; pure functions of `backend.page.report_view`.

It shares the status page's style sheet, and so its look, on a phone and in the dark. htpy escapes every text.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import htpy as h
from markupsafe import Markup

from backend.page import words
from backend.page.html import style_sheet
from backend.page.report_charts import before_after_chart, loss_charts
from backend.page.report_view import LabelFigures, ReportView
from backend.version_report import Interval, Intervals, ReportCase

_COUNTS = {
    "tasks": "tasks with annotations",
    "annotations": "annotations read",
    "images": "images to learn from and to compare on",
    "skipped": "skipped by the annotator: left out",
    "superseded": "annotations beside one that counts: left out",
    "unreadable": "annotations that could not be read: left out",
    "outdated": "images with labels only that the config no longer has: left out",
    "no_image": "tasks without an image: left out",
    "image_failed": "images that could not be fetched: left out",
    "duplicate": "images that are in several tasks: counted once",
}
_KINDS = {"gain": "Largest gains", "loss": "Largest losses"}


def render_report(view: ReportView) -> str:
    """The whole page."""
    name = f"Version {view.number} of {view.title or f'project {view.project_id}'}"
    page = h.html(lang="en")[
        h.head[
            h.meta(charset="utf-8"),
            h.meta(name="viewport", content="width=device-width, initial-scale=1"),
            h.meta(name="robots", content="noindex"),
            h.title[name],
            h.link(rel="icon", href="data:,"),
            h.style[Markup(style_sheet())],  # our own file
        ],
        h.body[
            h.header[h.h1(dir="auto")[name], _chips(view)],
            h.main[_verdict(view), _labels(view), _cases(view), _learning(view), _data(view)],
            _footer(view),
        ],
    ]
    return str(page)


def _chips(view: ReportView) -> h.Node:
    chips = [("good", "better") if view.better else ("bad", "not better")]
    if view.serves:
        chips.append(("good", "serves, pinned" if view.pinned else "serves"))
    return h.ul(".chips")[[h.li(class_=kind)[text] for kind, text in chips]]


_TRUE = "Where the label is: IoU with the correction"
_TRUE_CHOICE = "Where the choice applies: share of images that get it"
_OF_CHOICES = "Of choices, which are named with their control:"


def _verdict(view: ReportView) -> h.Node:
    before = words.version(view.compared_with)
    if view.better:
        said = f"It is better than {before}, which served."
    else:
        said = f"It is not better than {before}, which went on serving."
    folds = view.decided_by.startswith("cross-validation")
    how = (
        f"Too few images were held out, so cross-validation decided ({view.decided_by}): each image was marked by a "
        "model that had not learned from it."
        if folds
        else "Held-out images decided: the version did not learn from them, and neither did the one that served."
    )
    moved = [label.gain for label in view.labels if label.gain is not None]
    up, down = sum(gain > 0.005 for gain in moved), sum(gain < -0.005 for gain in moved)
    return h.section(".card")[
        h.h2[said],
        h.p[view.reason[:1].upper() + view.reason[1:], "."],
        view.gain is not None
        and h.dl(".tiles")[
            _tile(
                "Mean gain in IoU" if view.about_masks else "Mean gain in agreement",
                _signed(view.gain),
                view.gain_low is not None and f"{view.gain_low:+.3f} or more, at 90 % confidence",
            ),
            _tile("Images that decided", str(view.images)),
            _tile("Labels better, worse", f"{up}, {down}", f"of {len(moved)} that could be compared"),
        ],
        view.decided_by and h.p(".soft.small")[how],
    ]


def _tile(name: str, value: str, below: str | bool = "") -> h.Node:
    return h.div[h.dt[name], h.dd(".big")[value], below and h.dd(".sub")[below]]


def _labels(view: ReportView) -> h.Node:
    if not view.labels:
        return None
    ranges = {} if view.record is None else view.record.intervals
    there = [label for label in view.labels if label.gain is not None]
    absent = [label for label in view.labels if label.absent_images]
    nothing = Intervals()
    return h.section(".card")[
        h.h2["Each label"],
        bool(there)
        and [
            h.h3[_TRUE if view.about_masks else _TRUE_CHOICE],
            view.about_masks and view.has_choices and h.p(".soft.small")[f"{_OF_CHOICES} {_TRUE_CHOICE.lower()}."],
            before_after_chart(
                [
                    (label.name, label.old_iou, found.old_iou, label.new_iou, found.new_iou)
                    for label in there
                    for found in [ranges.get(label.name, nothing)]
                ]
            ),
            h.ul(".legend")[h.li(".b")["before"], h.li(".k")["after"]],
            _table(
                ("Label", "Before", "After", "Change"),
                [_row(label, ranges.get(label.name, nothing)) for label in there],
            ),
        ],
        bool(absent)
        and [
            h.h3[
                "Where the label is not: share of images in which it is "
                + ("marked" if view.about_masks else "chosen")
                + " all the same"
            ],
            _table(
                ("Label", "Before", "After"),
                [_absent_row(label, ranges.get(label.name, nothing)) for label in absent],
            ),
        ],
        h.p(".soft.small")[
            "Ranges are 95 % intervals from a bootstrap over images; that of the change is paired: both versions mark "
            "the same images. Labels with fewer than five images have none."
        ],
    ]


def _row(label: LabelFigures, ranges: Intervals) -> Sequence[h.Node]:
    assert label.gain is not None
    kind = "up" if label.gain > 0.005 else "down" if label.gain < -0.005 else ""
    return (
        _named(label.name, label.images),
        [words.iou(label.old_iou), _range(ranges.old_iou, words.iou, wide=True)],
        [words.iou(label.new_iou), _range(ranges.new_iou, words.iou, wide=True)],
        [h.span(class_=kind)[_signed(label.gain)], _range(ranges.gain, _signed)],
    )


def _absent_row(label: LabelFigures, ranges: Intervals) -> Sequence[h.Node]:
    return (
        _named(label.name, label.absent_images),
        [words.percent(label.old_absent_marked), _range(ranges.old_absent_marked, words.percent)],
        [words.percent(label.new_absent_marked), _range(ranges.new_absent_marked, words.percent)],
    )


def _named(name: str, images: int) -> h.Node:
    return [h.strong(dir="auto")[name], h.div(".soft.small")[words.count(images, "image")]]


def _range(interval: Interval | None, said: Callable[[float], str], *, wide: bool = False) -> h.Node:
    """An interval below its figure; `wide`: not on a phone, which has no room for it."""
    if interval is None:
        return None
    return h.div(class_="soft small wide" if wide else "soft small")[f"{said(interval[0])} to {said(interval[1])}"]


def _signed(value: float) -> str:
    return f"{round(value, 2) or 0.0:+.2f}"  # or there were a -0.00


def _table(columns: Sequence[str], rows: Sequence[Sequence[h.Node]]) -> h.Node:
    return h.table(".figures")[
        h.thead[h.tr[[h.th(class_="n" if index else None)[name] for index, name in enumerate(columns)]]],
        h.tbody[[h.tr[[h.td(class_="n" if i else None)[cell] for i, cell in enumerate(row)]] for row in rows]],
    ]


def _cases(view: ReportView) -> h.Node:
    if view.record is None:
        return h.section(".card")[
            h.h2["Pictures and curves"],
            h.p["None were kept: this version was made by a release that noted only its figures."],
        ]
    if not view.record.cases:
        return h.section(".card")[h.h2["Pictures"], h.p["No label of any image changed enough to look at."]]
    found = [(text, [case for case in view.record.cases if case.kind == kind]) for kind, text in _KINDS.items()]
    return h.section(".card")[
        h.h2["Pictures"],
        any(case.answers is None for case in view.record.cases)
        and h.p(".soft.small")[
            "Above: the image, and the annotator's correction. Below: as it was marked before, and by this version."
        ],
        [
            [h.h3[text], h.div(".cases")[[_case(case, view.pictures) for case in cases]]]
            for text, cases in found
            if cases
        ],
    ]


def _case(case: ReportCase, pictures: Mapping[str, bytes]) -> h.Node:
    scored = case.scored
    if case.answers is not None:
        old, new, true = (
            ", ".join(each) or "nothing" for each in (case.answers.old, case.answers.new, case.answers.true)
        )
        said = f"{old} \N{RIGHTWARDS ARROW} {new}" + ("" if new == true else f"; annotators: {true}")
    elif scored.present:
        said = f"IoU {scored.old:.2f} \N{RIGHTWARDS ARROW} {scored.new:.2f}"
    else:
        said = "is not there; marked before, not now" if scored.new > scored.old else "is not there; marked now"
    data = pictures.get(case.picture or "")
    if data is None:
        shown: h.Node = h.p(".soft.small")["The image could not be fetched when this was written."]
    else:
        source = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
        what = "image, correction, before, after" if case.answers is None else "image"
        shown = h.img(src=source, alt=f"{case.label}: {what}", loading="lazy")
    return h.figure(".case")[
        shown,
        h.figcaption[h.strong(dir="auto")[case.label], " ", said, h.div(".soft.small")[f"task {case.task_id}"]],
    ]


def _learning(view: ReportView) -> h.Node:
    charts = [] if view.record is None else loss_charts(view.record.losses)
    labels, tags = view.chosen.get("labels"), view.chosen.get("tags")
    plain = {name: value for name, value in view.chosen.items() if not isinstance(value, dict)}
    if not charts and not view.chosen:
        return None
    return h.section(".card")[
        h.h2["What was learned, and how"],
        bool(charts)
        and [
            h.div(".charts")[[h.div[h.h3[f"Loss, {name}"], chart] for name, chart in charts]],
            h.p(".soft.small")["Each point is the mean over the steps since the one before."],
        ],
        bool(view.chosen)
        and [
            h.h3["Chosen inside the training images"],
            bool(plain) and h.dl(".facts")[[(h.dt[_words(k)], h.dd[_value(v)]) for k, v in plain.items()]],
            isinstance(labels, dict) and _chosen_labels(labels, "Label"),
            isinstance(tags, dict) and [h.h3["Choices for whole images"], _chosen_labels(tags, "Control")],
        ],
    ]


def _chosen_labels(labels: Mapping[str, Any], what: str) -> h.Node:
    rows = {name: item for name, item in labels.items() if isinstance(item, dict)}
    columns = list(dict.fromkeys(key for item in rows.values() for key in item))
    if not columns:
        return None
    return _table(
        (what, *map(_words, columns)),
        [
            (h.strong(dir="auto")[name], *(_value(item.get(column)) for column in columns))
            for name, item in sorted(rows.items())
        ],
    )


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _value(value: object) -> str:
    if value is None:
        return words.NONE
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _data(view: ReportView) -> h.Node:
    rows = [(_COUNTS.get(name, _words(name)), count) for name, count in view.counts.items() if count]
    order = list(_COUNTS.values())
    rows.sort(key=lambda row: order.index(row[0]) if row[0] in order else len(order))
    return h.section(".card")[
        h.h2["The data"],
        h.h3["An image is on one side for ever"],
        h.dl(".facts")[
            h.dt["learned from"],
            h.dd[words.count(view.training_images, "image")],
            h.dt["held out"],
            h.dd[words.count(view.held_out_images, "image")],
        ],
        bool(rows) and [h.h3["Read from Label Studio"], h.ul[[h.li[f"{count} {text}"] for text, count in rows]]],
    ]


def _footer(view: ReportView) -> h.Node:
    return h.footer[
        h.p[
            f"Project {view.project_id}, version {view.number}, made {view.made_at:%Y-%m-%d %H:%M} UTC "
            f"from {view.base}. Drawn by release {view.release}."
        ]
    ]

"""The part of the page about one project: does the model help, what has been learned, what happened last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import htpy as h

from backend.acceptance_figures import Figures, Period, Summary, Tally
from backend.page import words
from backend.page.charts import acceptance_chart, outcome_bar, sparkline
from backend.page.views import LabelGain, Note, ProjectView, VersionView

_MOST_LABELS = 8
"""Of a version, in its row."""

FEW = 10
"""With fewer annotations than this the shares say little, and the page says so."""

SHOWN_VERSIONS = 6


def project_card(project: ProjectView, now: datetime) -> h.Element:
    """All about one project."""
    return h.section(".card", id=f"project-{project.project_id}")[
        h.div(".title")[
            h.h2(dir="auto")[project.title or f"Project {project.project_id}"],
            project.title and h.span(".soft.small")[f"project {project.project_id}"],
        ],
        h.div(".soft.small")[
            words.version(project.serving).capitalize(),
            " serves",
            project.serving_name and [" as ", project.serving_name],
        ],
        project.problem and h.p(".alert.bad")[project.problem],
        _acceptance(project, now),
    ]


def _acceptance(project: ProjectView, now: datetime) -> h.Node:
    known = project.acceptance
    main = known.masks or known.choices  # of one kind: choices are kept far more often than masks
    if main is None:
        return [_nothing_accepted(project), _versions(project, None, now), _happened(project, now)]
    serves = main.versions.get(project.serving)
    shown, whose = (main.overall, "all versions") if serves is None else (serves, words.version(project.serving))
    base = main.versions.get(0) if project.serving and serves is not None else None
    chosen = None
    if known.masks is not None and known.choices is not None:
        chosen = known.choices.overall if serves is None else known.choices.versions.get(project.serving)
    return [
        _tiles(shown, base, chosen, "masks" if known.masks else "choices"),
        h.p(".soft.small")[
            f"What annotators made of the predictions of {whose}, in {words.count(shown.images, 'annotation')}.",
            shown.images < FEW and " So few say little yet.",
            known.afresh > 0
            and f" {known.afresh} of all {known.annotations} annotations were drawn beside a prediction, not begun "
            "from it: these seldom keep anything.",
        ],
        h.div(".columns")[
            h.div(".over-time")[
                h.h3["Over time"],
                acceptance_chart(main.periods, main.first_seen),
                h.ul(".legend")[
                    h.li(".k")["kept"],
                    h.li(".c")["changed"],
                    h.li(".r")["removed"],
                    known.masks is not None and h.li(".i")["mean IoU"],
                ],
            ],
            h.div(".labels")[h.h3["Per label, all versions"], _labels(known)],
            h.div(".rest")[_versions(project, main, now), _happened(project, now)],
        ],
        known.read_at is not None and h.p(".soft.small")["Annotations were read ", words.ago(known.read_at, now), "."],
    ]


def _nothing_accepted(project: ProjectView) -> h.Node:
    known = project.acceptance
    ask = (
        "Retrieve predictions (in Label Studio select tasks, Actions > Retrieve Predictions), open a task, correct "
        "what is wrong and submit."
    )
    if known.read_at is None:
        said = "Nobody has corrected a prediction yet, or no worker has read it since."
    elif known.annotations:
        said = "Annotators and predictions agree that nothing is there: there is nothing to compare yet."
    elif missing := known.left_out.get("no prediction"):
        said = (
            f"{words.count(missing, 'annotation')} so far, but none was made of a task that had a prediction of this "
            "backend."
        )
    elif known.left_out:
        said = (
            f"{words.count(sum(known.left_out.values()), 'annotation')} so far, but none can be compared: made of "
            "predictions in bulk, or not readable."
        )
    else:
        said = "No annotation yet."
    return _empty(h.p[h.strong["Does the model help? "], said], h.p(".small")[ask])


def _tiles(tally: Tally, base: Tally | None, chosen: Tally | None, what: str) -> h.Node:
    """The large figures.

    Args:
        tally: of the version that serves.
        base: of the base model, to compare with; None where it serves, or nothing is known.
        chosen: of choices, where `tally` is of masks.
        what: "masks" or "choices".
    """

    def than(figure: Callable[[Tally], str]) -> h.Node:
        return base is not None and f"base model {figure(base)}"

    return h.dl(".tiles")[
        _tile(
            "Kept as predicted",
            words.percent(tally.kept_share),
            f"{tally.kept} of {tally.predicted} {what}",
            than(lambda one: words.percent(one.kept_share)),
            chosen is not None and f"choices {words.percent(chosen.kept_share)}",
        ),
        _tile(
            "IoU with the annotation",
            words.iou(tally.iou),
            "1 is the same, 0 is none",
            than(lambda one: words.iou(one.iou)),
        ),
        _tile(
            "Missed",
            words.percent(tally.missed_share),
            f"{tally.added} added by hand",
            than(lambda one: words.percent(one.missed_share)),
        ),
    ]


def _tile(name: str, value: str, *below: h.Node) -> h.Node:
    return h.div[h.dt[name], h.dd(".big")[value], [h.dd(".sub")[line] for line in below if line]]


def _labels(known: Summary) -> h.Node:
    """A row a label."""
    periods: Sequence[Period] = known.masks.periods if known.masks else ()
    lines = {label: sparkline(periods, label) for label, is_choice in known.labels if not is_choice}
    some = any(lines.values())
    rows = []
    for (label, is_choice), tally in known.labels.items():
        counts = [f"{n} {what}" for n, what in ((tally.changed, "changed"), (tally.removed, "removed")) if n]
        counts += [f"{tally.added} added"] if tally.added else []
        rows.append(
            h.tr[
                h.td[
                    h.strong(dir="auto")[label],
                    is_choice and [" ", h.span(".tag")["choice"]],
                    outcome_bar(tally),
                    h.span(".soft.small")[", ".join([f"{tally.kept} kept", *counts])],
                ],
                h.td(".n")[words.percent(tally.kept_share)],
                h.td(".n")[words.iou(tally.iou)],
                some and h.td(".wide")[None if is_choice else lines[label]],
            ]
        )
    return h.table[
        h.thead[h.tr[h.th["Label"], h.th(".n")["Kept"], h.th(".n")["IoU"], some and h.th(".wide")["IoU over time"]]],
        h.tbody[rows],
    ]


def _versions(project: ProjectView, figures: Figures | None, now: datetime) -> h.Node:
    """A row a version, with what annotators made of its predictions."""
    if not project.versions:
        return [h.h3["Versions"], h.p["Nothing has been learned yet: the base model serves."]]
    accepted = {} if figures is None else figures.versions
    latest = list(reversed(project.versions[-SHOWN_VERSIONS:]))
    latest += [item for item in project.versions[:-SHOWN_VERSIONS] if item.number == project.serving]
    rows = [_version_row(item, project, accepted.get(item.number), now) for item in latest]
    base = accepted.get(0)
    rows.append(
        h.tr[
            h.td[h.strong["base model"], project.serving == 0 and [" ", h.span(".tag.good")["serves"]]],
            h.td(".n")[words.NONE],
            h.td(".n")[words.percent(base.kept_share if base else None)],
            h.td(".n")[words.iou(base.iou if base else None)],
        ]
    )
    return [
        h.h3["Versions"],
        h.table[
            h.thead[h.tr[h.th["Version"], h.th(".n")["Gain"], h.th(".n")["Kept"], h.th(".n")["IoU"]]],
            h.tbody[rows],
        ],
        len(latest) < len(project.versions)
        and h.p(".soft.small")["All of them: ", h.code[f"vlm versions {project.project_id}"]],
        h.p(".soft.small")[
            "Gain: mean IoU more than the version before, on images that neither had learned from; where only choices "
            "are better, how much more they agree with the annotators'. It alone decides whether a version serves. "
            "Kept and IoU: of each version's own predictions."
        ],
    ]


def _most_changed(labels: Mapping[str, LabelGain]) -> list[tuple[str, LabelGain]]:
    """Those labels of many that have changed most, by name."""
    order = sorted(labels, key=lambda name: -abs((labels[name].after or 0.0) - (labels[name].before or 0.0)))
    return [(name, labels[name]) for name in sorted(order[:_MOST_LABELS])]


def _version_row(version: VersionView, project: ProjectView, tally: Tally | None, now: datetime) -> h.Node:
    tag = h.span(".tag.good")["serves"] if version.number == project.serving else None
    if not version.better:
        tag = h.span(".tag")["not better"] if tag is None else tag
    measured = {name: gain for name, gain in version.labels.items() if (gain.before, gain.after) != (None, None)}
    shown = list(measured.items()) if len(measured) <= _MOST_LABELS else _most_changed(measured)
    labels = [f"{name} {words.iou(gain.before)} → {words.iou(gain.after)}" for name, gain in shown]
    if len(shown) < len(measured):
        labels.append(f"{len(measured) - len(shown)} more in the report")
    return h.tr[
        h.td[
            h.a(href=f"/projects/{project.project_id}/versions/{version.number}/report")[
                h.strong[f"version {version.number}"]
            ],
            " ",
            tag,
            h.div(".soft.small")[
                words.ago(version.made_at, now),
                version.images > 0 and f", compared on {words.count(version.images, 'image')}",
            ],
            h.div(".soft.small")[", ".join(labels) or version.reason],
        ],
        h.td(".n")[_gain(version.gain)],
        h.td(".n")[words.percent(tally.kept_share if tally else None)],
        h.td(".n")[words.iou(tally.iou if tally else None)],
    ]


def _happened(project: ProjectView, now: datetime) -> h.Node:
    rows = [
        ("Last event", project.last_event, "none since the server started"),
        ("Last training", project.last_training, "none yet"),
        *([("Last pre-labelling", project.last_prelabelling, "")] if project.last_prelabelling else []),
        ("Last error", project.last_error, "none"),
    ]
    return [
        h.h3["What happened last"],
        h.dl(".facts")[
            [(h.dt[name], h.dd[_note(note, now) if note else h.span(".soft")[none]]) for name, note, none in rows]
        ],
    ]


def _note(note: Note, now: datetime) -> h.Node:
    return [note.at is not None and [words.ago(note.at, now), ": "], note.text]


def _gain(value: float | None) -> h.Node:
    if value is None:
        return words.NONE
    kind = "up" if value > 0.0005 else "down" if value < -0.0005 else ""
    return h.span(class_=kind)[f"{value:+.3f}"]


def _empty(*lines: h.Node) -> h.Element:
    return h.div(".empty")[lines]

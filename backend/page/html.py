"""The page as HTML: pure functions of `backend.page.views`. htpy escapes every text and attribute."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from functools import cache
from importlib import resources

import htpy as h
from markupsafe import Markup

from backend.label_studio.acceptance import KEPT_IOU
from backend.page import words
from backend.page.project import project_card
from backend.page.views import JobView, StatusView

REFRESH_S, REFRESH_BUSY_S = 30, 10


@cache
def style_sheet() -> str:
    """The one style sheet, of the page and of reports."""
    return resources.files("backend.page").joinpath("style.css").read_text(encoding="utf-8")


@cache
def security_policy() -> str:
    """What a browser may do on the page: apply its one style sheet, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style_sheet().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def render(view: StatusView, *, refresh: bool = True) -> str:
    """The whole page.

    Args:
        view: what is on it.
        refresh: let the browser load it again by itself.
    """
    seconds = REFRESH_BUSY_S if view.jobs else REFRESH_S
    page = h.html(lang="en")[
        h.head[
            h.meta(charset="utf-8"),
            h.meta(name="viewport", content="width=device-width, initial-scale=1"),
            h.meta(name="robots", content="noindex"),
            refresh and h.meta(http_equiv="refresh", content=str(seconds)),
            h.title["Label Studio VLM backend"],
            h.link(rel="icon", href="data:,"),  # or the browser asks for one that is not there
            h.style[Markup(style_sheet())],  # our own file
        ],
        h.body[
            _header(view),
            h.main[
                _problems(view),
                _queue(view),
                [project_card(project, view.now) for project in view.projects] or _no_project(view),
                _others(view),
            ],
            _footer(view, seconds if refresh else None),
        ],
    ]
    return str(page)


def _no_project(view: StatusView) -> h.Node:
    if view.chosen:
        return h.section(".card")[h.h2["No such project"], h.p["No project with that number is known here."]]
    return h.section(".card")[
        h.h2["No project yet"],
        h.div(".empty")[
            h.p["Connect one, by the number in its address in Label Studio:"],
            h.p[h.code["vlm connect --project 7"]],
            h.p["Then open it there, or choose Actions > Retrieve Predictions: it appears here."],
        ],
    ]


def _others(view: StatusView) -> h.Node:
    if view.chosen:
        return h.p[h.a(href="/")["All projects"]]
    if not view.others:
        return None
    return h.section(".card")[
        h.h2["Quieter projects"],
        h.ul[
            [
                h.li[h.a(href=f"/?project={number}", dir="auto")[title or f"project {number}"]]
                for number, title in view.others
            ]
        ],
    ]


def _header(view: StatusView) -> h.Node:
    mood = {"ready": "good", "loading": "wait", "failed": "bad"}[view.model_state]
    chips: list[tuple[str, str]] = [(mood, f"model {view.model_state}{view.model and ': '}{view.model}")]
    if view.jobs is None:
        chips.append(("bad", "queue down"))
    else:
        chips.append(("wait" if view.jobs else "good", f"queue: {words.count(len(view.jobs), 'job')}"))
    if view.workers is not None:
        chips.append(("good" if view.workers else "bad", words.count(view.workers, "worker")))
    chips.append(("good" if view.label_studio.state == "up" else "bad", f"Label Studio {view.label_studio.state}"))
    return h.header[
        h.h1["Label Studio VLM backend"],
        h.ul(".chips")[[h.li(class_=kind)[text] for kind, text in chips]],
    ]


def _problems(view: StatusView) -> h.Node:
    found: list[tuple[bool, h.Node]] = []
    if view.model_state == "failed":
        found.append((True, ["The model cannot be loaded: ", view.model_reason]))
    if view.model_state == "loading":
        found.append((False, "The model is being loaded. Label Studio gets predictions as soon as it is there."))
    if view.model == "demo":
        found.append((False, "This is the demo checkpoint: it knows coloured shapes only, nothing of photographs."))
    if view.jobs is None:
        found.append(
            (
                True,
                [
                    view.queue_reason[:1].upper(),
                    view.queue_reason[1:],
                    ". Predictions go on; nothing is learned until it is back.",
                ],
            )
        )
    if view.label_studio.state != "up":
        found.append((True, ["Label Studio: ", view.label_studio.reason]))
    if view.workers == 0:
        found.append((True, ["No worker runs: corrections wait in the queue. Start ", h.code["vlm worker"], "."]))
    found += [(True, problem) for problem in view.problems]
    return [h.p(class_=["alert", {"bad": bad}])[text] for bad, text in found]


def _queue(view: StatusView) -> h.Node:
    if not view.jobs:
        return None
    titles = {project.project_id: project.title for project in view.projects}
    return h.section(".card")[h.h2["Queue"], [_job(job, titles.get(job.project_id, ""), view.now) for job in view.jobs]]


def _job(job: JobView, title: str, now: datetime) -> h.Node:
    done = [] if job.percent is None else [f"{job.percent:.0f} %"]
    facts = [job.state, *([job.phase] if job.phase else []), *done, *([job.left] if job.left else [])]
    return h.div(".job")[
        h.div[h.strong[job.kind], ", ", _name(job.project_id, title)],
        job.percent is not None
        and h.progress(max="100", value=f"{job.percent:.0f}", aria_label=f"{job.kind}: {job.percent:.0f} %"),
        h.div(".soft.small")[", ".join(facts), job.since is not None and [", since ", words.ago(job.since, now)]],
        job.problem and h.div(".small")[job.problem],
    ]


DEFINITIONS = (
    ("Kept", f"the annotation has the label as predicted: with an IoU of at least {KEPT_IOU:g}, or the same choice."),
    ("Changed", "both have the label, but the mask was corrected."),
    ("Removed", "the prediction had the label, the annotation has it no more."),
    ("Added, missed", "only the annotation has the label. Missed is the share of these among all annotated labels."),
    (
        "IoU",
        "of the predicted with the annotated mask: the area that both share, divided by the area that either covers. "
        "The mean of all predicted masks; a removed one counts 0. Choices have none.",
    ),
    (
        "Compared with",
        "the prediction that the annotation began from; where Label Studio does not say which, the newest one of this "
        "backend that was there. Counted once for a label and an image. Skipped tasks do not count, and neither do "
        "annotations that Label Studio made of predictions in bulk.",
    ),
)


def _footer(view: StatusView, refresh_s: int | None) -> h.Node:
    return h.footer[
        h.details[h.summary["What the words mean"], h.dl(".definitions")[[(h.dt[t], h.dd[d]) for t, d in DEFINITIONS]]],
        h.p[
            f"Release {view.release}, up for {words.span(view.now - view.started_at)}. ",
            [f"Loads itself anew every {refresh_s} s, ", h.a(href="/?refresh=off")["stop that"]]
            if refresh_s
            else [f"As of {view.now:%H:%M:%S} UTC, ", h.a(href="/")["keep it up to date"]],
            ". The same as JSON: ",
            h.a(href="/status")["/status"],
            ".",
        ],
    ]


def _name(project_id: int, title: str) -> h.Element:
    return h.a(href=f"#project-{project_id}", dir="auto")[title or f"project {project_id}"]

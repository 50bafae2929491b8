"""The page as HTML: what is said, what is not, and that nothing of it is markup."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest

from backend.acceptance import Acceptance
from backend.acceptance_figures import over_time, overall, summarise
from backend.page.charts import acceptance_chart, outcome_bar, outcome_words, sparkline
from backend.page.html import render, security_policy
from backend.page.project import FEW
from backend.page.views import JobView, ProjectView, VersionView
from tests.backend.page.views import HOSTILE, NOW, busy, record, status


class Reader(HTMLParser):
    """Collects tags, attributes and text as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self._open):
            self.text += f" {data}"


def words(page: str) -> str:
    return " ".join(Reader(page).text.split())


def test_hostile_titles_and_labels_stay_text() -> None:
    page = render(busy(HOSTILE))
    seen = Reader(page)
    assert "script" not in seen.tags
    assert {name for name, _ in seen.attributes if name.startswith("on") or name == "style"} == set()
    assert "<script" not in page
    # Wherever it stands, a reader sees it as it was written: title, labels, jobs, reasons, errors, links.
    assert seen.text.count("<script>document.title='taken'</script>") >= 10


def test_nothing_is_fetched_and_only_our_style_applies() -> None:
    page = render(busy())
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = security_policy()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    seen = Reader(page)
    targets = {value for name, value in seen.attributes if name in ("src", "href")}
    assert {target for target in targets if target and not target.startswith(("#", "/", "data:,"))} == set()
    assert "url(" not in style
    assert "@import" not in style


def test_no_project_says_how_to_connect_one() -> None:
    said = words(render(status()))
    assert "No project yet" in said
    assert "vlm connect --project 7" in said


@pytest.mark.parametrize(
    ("acceptance", "said"),
    [
        (Acceptance(), "Nobody has corrected a prediction yet"),
        (Acceptance(read_at=NOW), "No annotation yet."),
        (Acceptance(read_at=NOW, left_out={"no prediction": 3}), "3 annotations so far, but none was made of a task"),
        (Acceptance(read_at=NOW, left_out={"bulk": 1}), "1 annotation so far, but none can be compared"),
        (Acceptance(read_at=NOW, records=(record(1),)), "agree that nothing is there"),
    ],
)
def test_without_corrections_it_says_so_and_what_to_do_next(acceptance: Acceptance, said: str) -> None:
    page = words(render(status(ProjectView(7, acceptance=summarise(acceptance)))))
    assert said in page
    assert "Actions > Retrieve Predictions" in page
    assert "Nothing has been learned yet" in page
    assert "%" not in page.split("What the words mean")[0]  # no figure where nothing was counted


def test_the_version_that_serves_is_shown_beside_the_base_model() -> None:
    records = (
        record(1, ("cat", "changed", 0.5), ("dog", "added", 0.0), version=0),
        record(2, ("cat", "kept", 1.0), ("dog", "changed", 0.6), version=1),
        record(3, ("cat", "kept", 1.0), ("dog", "kept", 1.0), version=1),
    )
    version = VersionView(1, NOW - timedelta(days=2), True, "", gain=0.1, images=11)
    project = ProjectView(
        7, title="Zoo", serving=1, versions=(version,), acceptance=summarise(Acceptance(records=records))
    )
    page = words(render(status(project)))
    assert "Kept as predicted 75 % 3 of 4 masks base model 0 %" in page
    assert "IoU with the annotation 0.90 1 is the same, 0 is none base model 0.50" in page
    assert "Missed 0 % 0 added by hand base model 50 %" in page
    assert "predictions of version 1, in 2 annotations. So few say little yet. Over time" in page
    assert "cat 2 kept, 1 changed 67 % 0.83" in page
    assert "dog 1 kept, 1 changed, 1 added 50 % 0.80" in page
    assert "version 1 serves 2 days ago , compared on 11 images +0.100 75 % 0.90" in page
    assert "base model \N{EN DASH} 0 % 0.50" in page


def test_choices_do_not_swell_the_figures_of_masks() -> None:
    both = tuple(record(n, ("cat", "changed", 0.5), ("day", "kept", None)) for n in range(FEW))
    page = words(render(status(ProjectView(7, acceptance=summarise(Acceptance(records=both))))))
    assert f"Kept as predicted 0 % 0 of {FEW} masks choices 100 %" in page
    assert "IoU with the annotation 0.50" in page
    assert "kept changed removed mean IoU" in page
    alone = tuple(record(n, ("day", "kept" if n else "removed", None)) for n in range(FEW))
    page = words(render(status(ProjectView(7, acceptance=summarise(Acceptance(records=alone))))))
    assert f"Kept as predicted 90 % 9 of {FEW} choices" in page
    assert "IoU with the annotation \N{EN DASH}" in page
    assert "mean IoU" not in page.split("What the words mean")[0]


def test_annotations_drawn_afresh_are_owned_up_to() -> None:
    records = (record(1, ("cat", "kept", 1.0)), record(2, ("cat", "changed", 0.5), afresh=True))
    page = words(render(status(ProjectView(7, acceptance=summarise(Acceptance(records=records))))))
    assert "1 of all 2 annotations were drawn beside a prediction" in page


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_state": "failed", "model_reason": "no such checkpoint"}, "cannot be loaded: no such checkpoint"),
        ({"model_state": "loading", "model": ""}, "The model is being loaded"),
        ({"model": "demo"}, "coloured shapes only, nothing of photographs"),
        ({"jobs": None, "queue_reason": "redis is away"}, "Redis is away. Predictions go on"),
        ({"workers": 0}, "No worker runs: corrections wait in the queue. Start vlm worker"),
        ({"problems": ("the disk is full",)}, "the disk is full"),
        ({"chosen": True}, "No such project"),
        ({"others": ((9, "Old"), (10, ""))}, "Quieter projects Old project 10"),
    ],
)
def test_what_is_wrong_stands_on_top(fields: dict[str, object], said: str) -> None:
    page = render(status(**fields))
    assert said in words(page)
    assert ('<p class="alert' in page) == ("chosen" not in fields and "others" not in fields)


def test_jobs_have_their_progress() -> None:
    jobs = (JobView("training", 7, "running", "choosing", 43.4, NOW - timedelta(minutes=3), "1 minute left"),)
    page = render(status(ProjectView(7, title="Zoo"), jobs=jobs))
    assert '<progress max="100" value="43"' in page
    assert "training , Zoo running, choosing, 43 %, 1 minute left, since 3 minutes ago" in words(page)


def test_it_loads_itself_anew_until_asked_not_to() -> None:
    jobs = (JobView("training", 7, "queued"),)
    assert '<meta http-equiv="refresh" content="30">' in render(status())
    assert '<meta http-equiv="refresh" content="10">' in render(status(jobs=jobs))
    still = render(status(jobs=jobs), refresh=False)
    assert "http-equiv" not in still
    assert "As of 12:00:00 UTC" in words(still)


# Charts -------------------------------------------------------------------------------------------------------


def test_a_bar_shows_the_shares_of_what_was_predicted() -> None:
    tally = overall([record(1, ("a", "kept", 1.0)), record(2, ("a", "kept", 1.0)), record(3, ("a", "removed", 0.0))])
    tally.count(record(4, ("a", "changed", 0.5), ("b", "added", 0.0)).labels)
    found = re.findall(r'<rect x="([\d.]+)" y="0" width="([\d.]+)" height="6" class="(\w+)"', str(outcome_bar(tally)))
    assert found == [("0", "50", "kept"), ("50", "25", "changed"), ("75", "25", "removed")]
    assert outcome_words(tally) == "2 kept, 1 changed, 1 removed, 1 added, IoU 0.62"
    assert "<rect x" not in str(outcome_bar(overall([])))


def test_the_chart_stacks_kept_at_the_bottom_and_draws_the_iou_over_it() -> None:
    records = [
        record(1, ("a", "kept", 1.0), ("b", "changed", 0.5), ago=timedelta(days=2)),
        record(2, ("a", "removed", 0.0), version=3),
    ]
    periods = over_time(records)
    assert len(periods) == 3
    chart = str(acceptance_chart(periods, {0: 0, 3: 2}))
    # 380 x 176 with margins 34, 6, 18 and 22: 340 x 136, three steps of 113.33.
    assert re.findall(r'<rect x="0" y="([\d.]+)" width="34" height="([\d.]+)" class="(\w+)"', chart) == [
        ("68", "68", "kept"),
        ("0", "68", "changed"),
        ("0", "136", "removed"),
    ]
    assert 'points="90.67,52 317.33,154"' in chart  # IoU 0.75 and 0; the empty day between has none
    assert re.findall(r">(base|v\d)<", chart) == ["base", "v3"]
    assert "23 Nov 2026: 1 kept, 1 changed, IoU 0.75" in chart


def test_a_sparkline_needs_two_periods() -> None:
    early, late = record(1, ("a", "kept", 1.0), ago=timedelta(days=1)), record(2, ("a", "changed", 0.5))
    assert sparkline(over_time([late]), "a") is None
    assert sparkline(over_time([early, late]), "b") is None
    assert "from 1.00 to 0.50" in str(sparkline(over_time([early, late]), "a"))

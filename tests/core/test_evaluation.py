"""Evaluation runs and reports: hand-computed cases, laws, and parity with scikit-learn."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from backend.cli import app
from vlm_core.data import PhraseSample
from vlm_core.data_tags import read_tags
from vlm_core.errors import DataError
from vlm_core.evaluate import (
    average_precision,
    best_rank,
    binary_iou,
    evaluate_segmentation,
    expected_one_of_k,
    one_of_k_accuracy,
    recall_at_k,
)
from vlm_core.evaluation.bootstrap import PoissonBootstrap
from vlm_core.evaluation.cases import Case, CaseKeeper
from vlm_core.evaluation.histogram import THRESHOLDS, ScoreHistogram
from vlm_core.evaluation.matching import measure_matching
from vlm_core.evaluation.pages import segmentation_report
from vlm_core.evaluation.report import Figure, Report, Table, render_html, write_report
from vlm_core.evaluation.segmentation import measure_segmentation
from vlm_core.evaluation.tagging import mean_average_precision, measure_tagging
from vlm_core.model import Model
from vlm_core.types import ImageFeatures, MaskLogits


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores, often equal or in one bin, and a truth with something in it."""
    size = draw(st.integers(1, 60))
    near = st.sampled_from([0.0, 1e-6, 0.05, 0.5, 0.500001, 0.95, 1.0])
    elements = st.one_of(st.floats(0, 1, width=32), near.map(lambda v: float(np.float32(v))))
    scores = np.array(draw(st.lists(elements, min_size=size, max_size=size)), dtype=np.float32)
    true = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    true[draw(st.integers(0, size - 1))] = True
    return scores, true


# --- definitions -----------------------------------------------------------------------------------------------


def test_binary_iou_by_hand() -> None:
    predicted, true = np.array([True, True, False, False]), np.array([True, False, False, False])
    assert binary_iou([predicted], [true]) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_binary_iou_sums_over_phrases_before_it_divides() -> None:
    predicted = [np.array([True, True, False]), np.array([True])]
    true = [np.array([True, False, False]), np.array([True])]
    assert binary_iou(predicted, true) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_best_rank_by_hand() -> None:
    scores = [[0.9, 0.5, 0.4, 0.3], [0.5, 0.5, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]]
    right = np.array(
        [
            [False, True, True, False],  # one before its best
            [True, False, False, False],  # a wrong one of the same score stands before it
            [False, True, True, True],  # other right ones take no place
        ]
    )
    assert best_rank(scores, right).tolist() == [2, 2, 1]


def test_recall_at_k_by_hand() -> None:
    assert recall_at_k([1, 2, 5, 6], 1) == 0.25
    assert recall_at_k([1, 2, 5, 6], 5) == 0.75


@pytest.mark.parametrize(("ranks", "k"), [([], 1), ([0, 1], 1), ([1], 0)])
def test_recall_at_k_refuses_what_is_no_rank(ranks: list[int], k: int) -> None:
    with pytest.raises(ValueError, match="recall at k"):
        recall_at_k(ranks, k)


def test_expected_one_of_k_by_hand() -> None:
    # two of three wrong ones lie below: a draw of one wins in 2/3, a draw of two in 1/3
    assert expected_one_of_k([2], 3, 2) == pytest.approx(2 / 3)
    assert expected_one_of_k([2], 3, 3) == pytest.approx(1 / 3)
    assert expected_one_of_k([0], 3, 2) == 0


def test_expected_one_of_k_is_the_mean_of_all_draws() -> None:
    scores = np.random.default_rng(0).random(7)
    draws = [[scores[0], scores[i], scores[j]] for i in range(1, 7) for j in range(i + 1, 7)]
    below = int((scores[1:] < scores[0]).sum())
    assert expected_one_of_k([below], 6, 3) == pytest.approx(one_of_k_accuracy(draws))


@given(scored())
def test_average_precision_is_scikit_learns(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, true = case
    assert average_precision(scores, true) == pytest.approx(average_precision_score(true, scores), abs=1e-12)


def test_mean_average_precision_is_scikit_learns_macro_mean() -> None:
    rng = np.random.default_rng(1)
    scores, true = rng.normal(size=(40, 9)), rng.random((40, 9)) < 0.2
    assert true.any(axis=0).all()
    assert mean_average_precision(scores, true) == pytest.approx(average_precision_score(true, scores, average="macro"))


# --- the histogram ---------------------------------------------------------------------------------------------


@given(scored())
def test_the_exact_ap_and_the_histograms_lie_within_its_bounds(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, true = case
    histogram = ScoreHistogram()
    histogram.add(scores, true)
    low, high = histogram.bounds()
    for value in (average_precision(scores, true), histogram.average_precision()):
        assert low - 1e-9 <= value <= high + 1e-9


def test_bounds_are_narrow_for_scores_of_a_sure_model() -> None:
    rng = np.random.default_rng(2)
    true = rng.random(20_000) < 0.1
    scores = 1 / (1 + np.exp(-rng.normal(np.where(true, 2.0, -8.0), 3.0)))
    histogram = ScoreHistogram()
    for part in range(4):  # in pieces, as images come
        piece = ScoreHistogram()
        piece.add(scores[part::4], true[part::4])
        histogram.merge(piece)
    low, high = histogram.bounds()
    assert high - low < 0.01
    assert histogram.average_precision() == pytest.approx(average_precision(scores, true), abs=1e-3)


def test_bounds_by_hand_for_one_bin() -> None:
    histogram = ScoreHistogram()
    histogram.add(np.full(4, 0.3), np.array([True, False, True, False]))
    # all others first: 1/3 and 2/4; at most 1 since nothing false need stand before
    assert histogram.bounds() == (pytest.approx((1 / 3 + 1 / 2) / 2), pytest.approx(1.0))
    assert histogram.average_precision() == pytest.approx(0.5)


@given(scored())
def test_counts_from_a_threshold_on_are_exact(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, true = case
    histogram = ScoreHistogram()
    histogram.add(scores, true)
    positives, negatives = histogram.above()
    for threshold, found, wrong in zip(THRESHOLDS, positives, negatives, strict=True):
        marked = scores >= np.float32(threshold)
        assert (found, wrong) == (int((marked & true).sum()), int((marked & ~true).sum()))


@pytest.mark.parametrize("scores", [np.array([1.1]), np.array([-0.1]), np.array([np.nan]), np.zeros(2)])
def test_the_histogram_refuses_what_is_no_probability(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="needed"):
        ScoreHistogram().add(scores, np.ones(1, dtype=bool))


# --- the interval and the cases --------------------------------------------------------------------------------


def test_the_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(3).random(400)
    bootstrap = PoissonBootstrap()
    for value in values:
        bootstrap.add(value, 1)
    low, high = bootstrap.interval()
    error = values.std() / 20
    assert low < values.mean() < high
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


def test_images_with_many_phrases_weigh_more_in_the_interval() -> None:
    bootstrap = PoissonBootstrap()
    for _ in range(50):
        bootstrap.add(0, 1)
        bootstrap.add(9, 9)
    low, high = bootstrap.interval()
    assert low < 0.9 < high
    assert low > 0.8


def test_the_interval_of_nothing_is_nan() -> None:
    assert math.isnan(PoissonBootstrap().interval()[0])


def test_the_keeper_keeps_best_worst_and_middle_and_makes_few_pictures() -> None:
    keeper = CaseKeeper(3)
    made = []

    def make(value: float) -> Case:
        made.append(value)
        return Case(value, "", ())

    for value in np.random.default_rng(4).permutation(1000) / 1000:
        keeper.offer(float(value), lambda v=float(value): make(v))  # type: ignore[misc]
    assert [case.value for case in keeper.best()] == [0.999, 0.998, 0.997]
    assert [case.value for case in keeper.worst()] == [0.0, 0.001, 0.002]
    assert all(abs(case.value - 0.5) < 0.05 for case in keeper.typical(0.5))
    assert len(made) < 150


def test_where_all_cases_are_equally_bad_none_is_called_best() -> None:
    keeper = CaseKeeper(2)
    for name in "abc":
        keeper.offer(0.0, lambda n=name: Case(0.0, n, ()))  # type: ignore[misc]
    assert [case.title for case in keeper.worst()] == ["a", "b"]
    assert keeper.best() == []


# --- runs ------------------------------------------------------------------------------------------------------


class FakeModel:
    """Marks the left part that a phrase names with the probability that it names: "0.5@0.9"; embeds by a table."""

    encode_batch = 2

    def __init__(self, images: Sequence[Sequence[float]] = (), texts: dict[str, Sequence[float]] | None = None) -> None:
        self.images, self.texts = images, texts or {}

    def segment(self, image: Image.Image, prompts: Sequence[str]) -> MaskLogits:
        logits = torch.full((len(prompts), image.height, image.width), -5.0)
        for slot, prompt in enumerate(prompts):
            part, probability = map(float, prompt.split("@"))
            logits[slot, :, : round(part * image.width)] = math.log(probability / (1 - probability))
        return MaskLogits(logits, tuple(prompts))

    def encode_image(self, images: Sequence[Image.Image], **_: object) -> ImageFeatures:
        rows = [self.images[image.width - 1] for image in images]  # an image's width is its number
        return ImageFeatures((), (0, 0), torch.tensor(rows))

    def text_embeds(self, tags: Sequence[str]) -> torch.Tensor:
        return torch.tensor([self.texts[tag] for tag in tags])


def sample(*phrases: tuple[str, int]) -> PhraseSample:
    """A 10 x 4 image; each phrase with how many of its left columns are true."""
    masks = np.zeros((len(phrases), 4, 10), dtype=np.float32)
    for slot, (_, columns) in enumerate(phrases):
        masks[slot, :, :columns] = 1
    return PhraseSample(Image.new("RGB", (10, 4)), tuple(phrase for phrase, _ in phrases), masks)


SAMPLES = [
    sample(("1.0@0.9", 5), ("0.4@0.62", 4)),  # IoU 1/2 up to 0.9; IoU 1 up to 0.6, then 0
    sample(("1.0@0.9", 0), ("0.4@0.62", 8)),  # nothing there, all marked; IoU 1/2 up to 0.6, then 0
]


def test_segmentation_by_hand() -> None:
    result = measure_segmentation(cast(Model, FakeModel()), SAMPLES)
    assert (result.images, result.present, result.absent) == (2, 3, 1)
    assert result.mean_iou == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert result.foreground_iou == pytest.approx((20 + 16 + 16) / (40 + 16 + 32))
    assert result.binary_iou == pytest.approx((52 / 88 + (0 + 24 + 8) / (20 + 24 + 24)) / 2)
    assert result.absent_marked == 1
    late = {round(row.threshold, 2): row for row in result.sweep}[0.65]
    assert late.mean_iou == pytest.approx(0.5 / 3)
    assert late.foreground_iou == pytest.approx(20 / (40 + 16 + 32))
    assert result.best is not None
    assert result.best.mean_iou == pytest.approx(2 / 3)
    rows = {row.phrase: row for row in result.phrases}
    assert (rows["1.0@0.9"].present, rows["1.0@0.9"].absent, rows["1.0@0.9"].absent_marked) == (1, 1, 1)
    assert rows["0.4@0.62"].mean_iou == pytest.approx(0.75)
    # AP of an image: all right, and half of the true pixels first and the rest among all
    assert rows["0.4@0.62"].average_precision == pytest.approx((1 + (0.5 + 0.5 * 32 / 40)) / 2)
    assert sum(result.iou_histogram) == 3
    assert {case.title for case in result.cases["best"]} <= set(rows)


def test_average_precision_is_of_all_pixels_of_present_phrases() -> None:
    result = measure_segmentation(cast(Model, FakeModel()), SAMPLES)
    scores, truths = [], []
    for one in SAMPLES:
        probabilities = FakeModel().segment(one.image, one.phrases).probabilities().numpy()
        for probability, mask in zip(probabilities, one.masks, strict=True):
            if mask.any():
                scores.append(probability.ravel())
                truths.append(mask.ravel() > 0)
    exact = average_precision(np.concatenate(scores), np.concatenate(truths))
    assert result.average_precision == pytest.approx(exact)
    assert result.average_precision_bounds[0] <= exact <= result.average_precision_bounds[1]


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.6, 0.65, 0.95])
def test_the_sweep_says_what_a_run_at_its_threshold_says(threshold: float) -> None:
    result = measure_segmentation(cast(Model, FakeModel()), SAMPLES, threshold=threshold)
    row = result.sweep[round(threshold * 20) - 1]
    assert row.mean_iou == pytest.approx(result.mean_iou)
    assert row.foreground_iou == pytest.approx(result.foreground_iou)
    assert row.binary_iou == pytest.approx(result.binary_iou)
    assert row.absent_marked == result.absent_marked
    short = evaluate_segmentation(cast(Model, FakeModel()), SAMPLES, threshold=threshold)
    assert short.mean_iou == pytest.approx(result.mean_iou)
    assert short.absent_marked == result.absent_marked


def test_segmentation_of_nothing_and_of_absent_phrases_alone() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        measure_segmentation(cast(Model, FakeModel()), [])
    result = measure_segmentation(cast(Model, FakeModel()), [sample(("0.4@0.1", 0))])
    assert math.isnan(result.mean_iou)
    assert result.absent_marked == 0
    assert "mIoU" in render_html(segmentation_report(result, {}))


def test_matching_by_hand() -> None:
    # images along two axes; "x" is everybody's neighbour
    model = FakeModel(
        [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)], {"a": (1.0, 0.0), "b": (0.8, 0.6), "c": (0.0, 1.0), "d": (0.6, 0.8)}
    )
    advanced: list[int] = []
    result = measure_matching(
        cast(Model, model),
        lambda index: Image.new("RGB", (index + 1, 2)),
        [["a", "b"], ["c"], ["d"]],
        advance=lambda: advanced.append(1),
    )
    assert len(advanced) == 3
    assert (result.images, result.texts) == (3, 4)
    assert result.text_of_image.ranks == (1, 1, 1)
    # b: images score 0.8, 0.6, 0.96: its own is the second
    assert result.image_of_text.ranks == (1, 2, 1, 1)
    assert result.image_of_text.recall[1] == 0.75
    assert result.text_of_image.chance[1] == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert set(result.text_of_image.recall) == {1}  # of four texts, five cannot be the first
    assert result.one_of_k == {2: 1.0}  # image 0 has but two wrong texts


def test_one_of_k_counts_every_text_of_an_image() -> None:
    model = FakeModel([(1.0, 0.0), (0.0, 1.0)], {"a": (1.0, 0.0), "b": (0.1, 0.9), "c": (0.5, 0.5)})
    result = measure_matching(cast(Model, model), lambda index: Image.new("RGB", (index + 1, 2)), [["a", "b"], ["c"]])
    # a beats c and b does not; c of the second image (0.5) beats a (0) but not b (0.9): 1/2 over the draws
    assert result.one_of_k[2] == pytest.approx((1 + 0 + 0.5) / 3)


def test_a_text_of_two_images_is_right_for_both() -> None:
    model = FakeModel([(1.0, 0.0), (0.0, 1.0)], {"a": (0.9, 0.1), "b": (0.1, 0.2)})
    result = measure_matching(cast(Model, model), lambda index: Image.new("RGB", (index + 1, 2)), [["a"], ["a", "b"]])
    assert result.image_of_text.ranks == (1, 1)
    assert result.texts == 2


def test_matching_needs_two_texts() -> None:
    with pytest.raises(DataError, match="two images"):
        measure_matching(cast(Model, FakeModel()), lambda _: Image.new("RGB", (1, 1)), [["a"], ["a"]])


def test_tagging_by_hand() -> None:
    model = FakeModel([(0.9, 0.1), (0.5, 0.8), (0.1, 0.3)], {"p": (1.0, 0.0), "q": (0.0, 1.0)})
    result = measure_tagging(
        cast(Model, model), lambda index: Image.new("RGB", (index + 1, 2)), [["p"], ["q"], ["p", "q"]]
    )
    rows = {row.tag: row for row in result.tags}
    assert rows["p"].average_precision == pytest.approx((1 + 2 / 3) / 2)  # hit, miss, hit
    assert rows["q"].average_precision == pytest.approx(1.0)
    assert result.mean_average_precision == pytest.approx((1 + 5 / 6) / 2)
    assert (rows["p"].images, rows["p"].chance) == (2, pytest.approx(2 / 3))
    assert result.image_average_precision == 1
    assert result.interval[0] <= result.mean_average_precision <= result.interval[1]


# --- the tag file ----------------------------------------------------------------------------------------------


def test_a_tag_file_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    file = tmp_path / "tags.jsonl"
    file.write_text('{"image": "a.png", "tags": ["dog ", "dog", "cat"]}\n')
    assert [(row.image.name, row.tags) for row in read_tags(file)] == [("a.png", ("dog", "cat"))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"image": "a.png", "tags": "dog"}', "give a list"),  # one text instead of a list
        ('{"image": "a.png", "tags": [" "]}', "not blank"),
        ('{"image": "b.png", "tags": []}', "not a file"),
        ('{"image": "a.png", "tags": []}\n{"image": "a.png", "tags": ["dog"]}', "line 2: 'a.png' has a line already"),
    ],
)
def test_a_wrong_tag_file_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "tags.jsonl").write_text(lines)
    with pytest.raises(DataError, match=message):
        read_tags(tmp_path / "tags.jsonl")


# --- the report ------------------------------------------------------------------------------------------------

EVIL = '<script>alert("&")</script>'


def test_every_text_of_a_report_is_escaped() -> None:
    case = Case(0.5, EVIL, ((EVIL, b"x"), (EVIL, b"y")), ((EVIL, True), (EVIL, None)))
    report = Report(
        EVIL,
        {EVIL: EVIL},
        (Figure(EVIL, 0.5, EVIL),),
        ((EVIL, b"png"),),
        (Table(EVIL, EVIL, (EVIL,), [(EVIL,)]),),
        {"best": [case]},
        EVIL,
    )
    page = render_html(report)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;") >= 15


def test_the_json_is_complete_and_has_no_nan(tmp_path: Path) -> None:
    result = measure_segmentation(cast(Model, FakeModel()), SAMPLES[:1])
    page, data = write_report(segmentation_report(result, {"model": "fake"}), tmp_path / "new")
    values = json.loads(data.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    measured = values["measured"]
    assert set(measured) == set(type(result).__slots__)
    assert measured["mean_iou"] == result.mean_iou
    assert measured["absent_marked"] is None
    assert len(measured["sweep"]) == 19
    assert {row["phrase"] for row in measured["phrases"]} == {"1.0@0.9", "0.4@0.62"}
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "data:image/jpeg;base64," in text
    assert "http" not in text  # it needs nothing but itself


@pytest.mark.parametrize("task", ["segmentation", "matching", "tagging"])
def test_the_command_reports_on_scenes(task: str, tmp_path: Path) -> None:
    arguments = ["evaluate", "--task", task, "--scenes", "5", "--device", "cpu", "--quiet", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    measured = json.loads((tmp_path / "report.json").read_text())["measured"]
    good = {
        "segmentation": lambda: measured["mean_iou"],
        "matching": lambda: measured["text_of_image"]["recall"]["1"],
        "tagging": lambda: measured["mean_average_precision"],
    }[task]()
    assert 0.6 < good <= 1
    assert (tmp_path / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task", "tagging"],  # no --out
        ["--out", "x", "--scenes", "5"],  # no --task
        ["--task", "tagging", "--out", "x", "--phrases", "x.jsonl"],  # a file of another task
        ["--task", "matching", "--out", "x", "--pairs", "x.jsonl", "--scenes", "5"],  # both
    ],
)
def test_the_command_refuses_what_does_not_go_together(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["evaluate", *arguments]).exit_code == 2


# --- photographs -----------------------------------------------------------------------------------------------


def photo_files(folder: Path, out: Path) -> dict[str, Path]:
    """The JSONL file of each task from the photographs' own label file; every third phrase also asked elsewhere."""
    photos = json.loads((folder / "labels.json").read_text())["images"]
    everywhere = {phrase for photo in photos for part in photo["segments"] for phrase in part["phrases"]}
    lines: dict[str, list[dict[str, object]]] = {"segmentation": [], "matching": [], "tagging": []}
    for number, photo in enumerate(photos):
        image = str(folder / photo["image"])
        lines["tagging"].append({"image": image, "tags": photo["tags"]})
        own: dict[str, str] = {}
        for part in photo["segments"]:
            for phrase in part["phrases"]:
                own[phrase] = str(folder / part["mask"])
        lines["segmentation"] += [{"image": image, "phrase": phrase, "mask": mask} for phrase, mask in own.items()]
        foreign = sorted(everywhere - set(own))[number % 100]
        lines["segmentation"].append({"image": image, "phrase": foreign, "mask": None})
        lines["matching"] += [{"image": image, "text": phrase} for phrase in own]
    files = {}
    for task, rows in lines.items():
        files[task] = out / f"{task}.jsonl"
        files[task].write_text("\n".join(map(json.dumps, rows)))
    return files


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "option"), [("segmentation", "--phrases"), ("matching", "--pairs"), ("tagging", "--tags")]
)
def test_the_command_reports_on_photographs(task: str, option: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("VLM_REALDATA", "")) / "coco_photos"
    if not (folder / "labels.json").is_file():
        pytest.skip(f"VLM_REALDATA is {os.environ.get('VLM_REALDATA')!r}: no coco_photos in it")
    file = photo_files(folder, tmp_path)[task]
    arguments = ["evaluate", "--task", task, option, str(file), "--device", "cpu", "--json", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "report.json").read_text())
    measured = printed["measured"]
    assert measured["images"] == 53
    if task == "segmentation":
        assert measured["absent"] == 53
        low, high = measured["average_precision_bounds"]
        assert low <= measured["average_precision"] <= high
        assert high - low < 0.02
    elif task == "matching":
        for way in ("text_of_image", "image_of_text"):
            recall = measured[way]["recall"]
            assert 0 <= recall["1"] <= recall["5"] <= recall["10"] <= 1
    else:
        low, high = measured["interval"]
        assert 0 < low < measured["mean_average_precision"] < high < 1
        named = [json.loads(line)["tags"] for line in file.read_text().splitlines()]
        assert len(measured["tags"]) == len({tag for tags in named for tag in tags})

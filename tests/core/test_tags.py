"""Tags: softmax, sigmoid, neutral words, calibration, templates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import SiglipModel

import vlm_core
from tests.core.factories import make_clip_directory, make_siglip_directory
from vlm_core import errors
from vlm_core.model import Model
from vlm_core.tags import (
    NEUTRAL_TAGS,
    TagCalibration,
    against_neutral,
    fit_tag_calibration,
    single_choice,
)
from vlm_core.templates import check_templates

PICTURE = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
TAGS = ("a dog on the grass", "left player", "x")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("clip")
    make_clip_directory(directory)
    return vlm_core.load(directory, device="cpu")


@pytest.fixture(scope="module")
def siglip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("siglip")
    make_siglip_directory(directory)
    return directory


@pytest.fixture(scope="module")
def siglip(siglip_directory: Path) -> Model:
    return vlm_core.load(siglip_directory, device="cpu")


def by_tag(model: Model, *tags: str, **options: object) -> dict[str, float]:
    return {s.tag: s.probability for s in model.rank(PICTURE, tags, **options)}  # type: ignore[arg-type]


# -- pure functions --


def test_single_choice_by_hand() -> None:
    similarities = torch.tensor([0.3, 0.2])
    expected = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))]
    assert single_choice(similarities, 10.0).tolist() == pytest.approx(expected)


def test_a_tag_is_as_probable_as_not_where_it_says_no_more_than_the_best_neutral_word() -> None:
    found = against_neutral(torch.tensor([0.22, 0.25, 0.19]), torch.tensor([0.2, 0.22, 0.1]), 100.0)
    assert found.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))], rel=1e-4)


def test_the_best_neutral_word_gives_the_least_of_the_softmaxes_over_two() -> None:
    tags, neutral = torch.randn(5) / 10, torch.randn(4) / 10
    pairs = torch.stack([torch.stack([torch.stack([t, n]).mul(20.0).softmax(0)[0] for n in neutral]) for t in tags])
    torch.testing.assert_close(against_neutral(tags, neutral, 20.0), pairs.min(1).values)


def test_a_calibration_of_two_similarities_is_exact() -> None:
    """With two distinct similarities the regression has as many unknowns as values: its optimum meets both means."""
    truths = [True] * 3 + [False] * 7 + [True] * 8 + [False] * 2
    found = fit_tag_calibration([0.2] * 10 + [0.3] * 10, truths)
    high, low = (11 + 1) / (11 + 2), 1 / (9 + 2)  # Platt's targets
    for similarity, fitting in ((0.2, 3), (0.3, 8)):
        mean = (fitting * high + (10 - fitting) * low) / 10
        assert float(found.probabilities(torch.tensor(similarity))) == pytest.approx(mean, abs=1e-4)


def test_a_calibration_finds_the_truth_again() -> None:
    rng = np.random.default_rng(0)
    similarities = rng.normal(0.24, 0.03, 20_000)
    truth = TagCalibration(80.0, -20.0)
    truths = rng.random(20_000) < truth.probabilities(torch.from_numpy(similarities)).numpy()
    found = fit_tag_calibration(similarities.tolist(), truths.tolist())
    # the standard error of a fit to 20,000 pairs is near 1 % of the scale
    assert found.scale == pytest.approx(80.0, rel=0.05)
    assert -found.bias / found.scale == pytest.approx(0.25, abs=0.002)


def test_few_labels_do_not_give_certainty() -> None:
    found = fit_tag_calibration([0.1, 0.3], [False, True])
    probabilities = found.probabilities(torch.tensor([0.1, 0.3]))
    assert probabilities.tolist() == pytest.approx([1 / 3, 2 / 3], abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.booleans()), min_size=2, max_size=40).filter(
        lambda pairs: len({truth for _, truth in pairs}) == 2
    )
)
def test_no_calibration_turns_the_ranking_round(pairs: list[tuple[float, bool]]) -> None:
    found = fit_tag_calibration([s for s, _ in pairs], [t for _, t in pairs])
    probabilities = found.probabilities(torch.linspace(-1, 1, 50, dtype=torch.float64))
    # A double's last bit may turn: torch's sigmoid is not monotone to the bit.
    assert bool((probabilities.diff() >= -torch.finfo(torch.float64).eps).all())
    # the mean probability is the mean of Platt's targets: what the regression's bias is for
    positive = sum(truth for _, truth in pairs)
    negative = len(pairs) - positive
    mean = (positive * (positive + 1) / (positive + 2) + negative / (negative + 2)) / len(pairs)
    given_pairs = torch.tensor([s for s, _ in pairs], dtype=torch.float64)
    assert float(found.probabilities(given_pairs).mean()) == pytest.approx(mean, abs=2e-3)


@pytest.mark.parametrize(
    ("similarities", "truths", "message"),
    [
        ([0.1, 0.2], [True], "each similarity needs its truth"),
        ([], [], "got 0 and 0"),
        ([0.1, 0.2], [True, True], "got 2 and 0"),
        ([0.1, 0.2], [False, False], "got 0 and 2"),
        ([0.1, float("nan")], [True, False], "not a finite number"),
    ],
)
def test_a_calibration_names_what_it_lacks(similarities: list[float], truths: list[bool], message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        fit_tag_calibration(similarities, truths)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_calibration_that_cannot_be_is_refused(scale: float) -> None:
    with pytest.raises(errors.InputError, match="finite scale >= 0"):
        TagCalibration(scale, 0.0)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "", [], ["{}", "a photo"]])
def test_a_template_without_a_place_is_refused(template: str | list[str]) -> None:
    with pytest.raises(errors.InputError, match="template"):
        check_templates(template)


# -- a model --


def test_one_choice_competes_and_several_do_not(clip: Model) -> None:
    assert sum(by_tag(clip, *TAGS).values()) == pytest.approx(1)
    assert by_tag(clip, *TAGS)["x"] != pytest.approx(by_tag(clip, "x", "left player")["x"])
    together = by_tag(clip, *TAGS, multiple=True)
    for tag in TAGS:
        assert by_tag(clip, tag, multiple=True)[tag] == pytest.approx(together[tag], abs=1e-6)


def test_several_choices_of_a_clip_are_set_against_neutral_words(clip: Model) -> None:
    found = {s.tag: s for s in clip.rank(PICTURE, [*TAGS, *NEUTRAL_TAGS], multiple=True)}
    most = max(found[tag].similarity for tag in NEUTRAL_TAGS)
    scale = float(clip.clip.temperature_scale)
    for tag in TAGS:
        expected = 1 / (1 + math.exp(-scale * (found[tag].similarity - most)))
        assert found[tag].probability == pytest.approx(expected, abs=1e-5)
    assert max(found[tag].probability for tag in NEUTRAL_TAGS) == pytest.approx(0.5, abs=1e-5)
    assert clip.tag_calibration is None


def test_a_given_calibration_is_used(clip: Model) -> None:
    calibration = TagCalibration(3.0, -0.5)
    for score in clip.rank(PICTURE, TAGS, multiple=True, calibration=calibration):
        assert score.probability == pytest.approx(1 / (1 + math.exp(-3 * score.similarity + 0.5)), abs=1e-5)
    with pytest.raises(errors.InputError, match="multiple=True"):
        clip.rank(PICTURE, TAGS, calibration=calibration)


def test_siglip_answers_with_its_own_sigmoid(siglip: Model, siglip_directory: Path) -> None:
    reference = SiglipModel.from_pretrained(siglip_directory).eval()
    ids, _ = siglip.tokenizer(TAGS)
    with torch.no_grad():
        logits = reference(input_ids=ids, pixel_values=siglip.tag_transform(PICTURE)[None]).logits_per_image[0]
    several, one = by_tag(siglip, *TAGS, multiple=True), by_tag(siglip, *TAGS)
    assert [several[tag] for tag in TAGS] == pytest.approx(torch.sigmoid(logits).tolist(), abs=1e-4)
    assert [one[tag] for tag in TAGS] == pytest.approx(logits.softmax(0).tolist(), abs=1e-4)
    assert siglip.tag_calibration is not None
    assert siglip.tag_calibration.scale == pytest.approx(math.exp(2.0))
    assert siglip.tag_calibration.bias == -0.5


def test_scale_and_bias_are_not_rounded_with_the_weights(siglip_directory: Path) -> None:
    half = vlm_core.load(siglip_directory, device="cpu", dtype="bfloat16")
    assert half.tag_calibration is not None
    assert half.tag_calibration.scale == pytest.approx(math.exp(2.0), rel=1e-6)


@pytest.mark.parametrize("multiple", [False, True])
def test_ranking_is_by_similarity_whatever_the_probability_means(clip: Model, siglip: Model, multiple: bool) -> None:
    for model in (clip, siglip):
        scores = model.rank(PICTURE, TAGS, multiple=multiple)
        assert [s.similarity for s in scores] == sorted((s.similarity for s in scores), reverse=True)
        assert [s.probability for s in scores] == sorted((s.probability for s in scores), reverse=True)


def test_a_template_is_what_the_text_would_be(clip: Model) -> None:
    framed = {s.tag: s.similarity for s in clip.rank(PICTURE, ["dog"], template="a photo of a {}.")}
    assert framed["dog"] == pytest.approx(clip.rank(PICTURE, ["a photo of a dog."])[0].similarity, abs=1e-6)
    braces = clip.rank(PICTURE, ["{0}"], template="a {}.")  # a user's braces are text
    assert braces[0].similarity == pytest.approx(clip.rank(PICTURE, ["a {0}."])[0].similarity, abs=1e-6)


def test_several_templates_are_the_mean_of_their_directions(clip: Model) -> None:
    each = torch.stack([clip.text_embeds(["a dog"])[0], clip.text_embeds(["one dog here"])[0]])
    mean = each.mean(0)
    found = clip.text_embeds(["dog", "cat"], template=["a {}", "one {} here"])
    assert found.shape == (2, 24)
    torch.testing.assert_close(found[0], mean / mean.norm(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2), atol=1e-5, rtol=0)

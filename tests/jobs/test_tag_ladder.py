"""What is chosen for one question, and that nobody is judged by what learned from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlm_core
from backend.label_studio.config import ControlPlan, parse_label_config
from tests.jobs.test_train_tags import tinted
from training_jobs.recipes.config import RecipeConfig, TagsConfig
from training_jobs.recipes.fit_tags import TagExample, fit
from training_jobs.tag_ladder import TagClimb, answered, start_head
from vlm_core.model import Model
from vlm_core.tag_head import join_heads

CONFIG = RecipeConfig(folds=3)
NAMES = ("red", "blue", "both")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return vlm_core.load(checkpoint, "cpu", "float32")


def control(attributes: str = "") -> ControlPlan:
    choices = "".join(f'<Choice value="{name}"/>' for name in NAMES)
    config = f'<View><Image name="i" value="$i"/><Choices name="q" toName="i" {attributes}>{choices}</Choices></View>'
    return parse_label_config(config).controls[0]


def examples(model: Model, count: int, *, learnable: bool = True) -> list[TagExample]:
    embeds = model.encode_image([Image.fromarray(tinted(n)) for n in range(count)], masks=False, tags=True).image_embeds
    assert embeds is not None
    says = [number % 3 if learnable else int(np.random.default_rng(number).integers(3)) for number in range(count)]
    return [
        TagExample(f"{number:064x}", row.numpy(), frozenset({NAMES[what]}), frozenset(NAMES))
        for number, (row, what) in enumerate(zip(embeds, says, strict=True))
    ]


def test_the_start_answers_as_the_phrases_do(model: Model) -> None:
    """One answer, a phrase each: exactly the ranking of tags."""
    given = examples(model, 12)
    head = start_head(control(), model, given)
    started = model.with_learned(join_heads({"q": head}))
    for one in given:
        assert answered(control(), started, one.embedding) == answered(control(), model, one.embedding)


def test_what_can_be_learned_is(model: Model) -> None:
    head, chosen = TagClimb(control(), examples(model, 24), model, CONFIG).learn()
    assert head is not None
    assert chosen["head"]
    assert chosen["agreement_of_head"] >= 0.9 > chosen["agreement_of_phrases"]
    learned = model.with_learned(join_heads({"q": head}))
    right = [answered(control(), learned, one.embedding) == one.chosen for one in examples(model, 60)[24:]]
    assert np.mean(right) >= 0.9


def test_where_phrases_answer_as_well_they_stay(model: Model) -> None:
    """The annotators say what the model says anyway."""
    given = [
        TagExample(one.image, one.embedding, answered(control(), model, one.embedding), one.about)
        for one in examples(model, 24)
    ]
    head, chosen = TagClimb(control(), given, model, CONFIG).learn()
    assert (head, chosen["head"], chosen["agreement_of_phrases"]) == (None, False, 1.0)


def test_a_fold_is_answered_by_what_has_not_learned_from_it(model: Model) -> None:
    given = examples(model, 24)
    found = TagClimb(control(), given, model, RecipeConfig(folds=3, tags=TagsConfig(pulls=(0.3,)))).by_folds()
    assert sorted(image for images, _ in found for image in images) == sorted(one.image for one in given)
    for images, head in found:
        others = [one for one in given if one.image not in images]
        expected = fit(others, start_head(control(), model, others), 0.3)
        assert head is not None
        torch.testing.assert_close(head.weight, expected.weight, atol=1e-3, rtol=1e-3)


def test_the_order_of_arrival_changes_nothing(model: Model) -> None:
    given = examples(model, 20)
    one, other = (TagClimb(control(), found, model, CONFIG).learn() for found in (given, given[::-1]))
    assert one[1] == other[1]
    assert one[0] is not None
    assert other[0] is not None
    assert torch.equal(one[0].weight, other[0].weight)


def test_with_few_images_nothing_is_chosen(model: Model) -> None:
    climb = TagClimb(control(), examples(model, 7), model, CONFIG)
    assert climb.learn() == (None, {"head": False, "images": 7})
    assert climb.by_folds() == []


def test_several_answers_have_probabilities_that_are_right_on_the_average(model: Model) -> None:
    """As Platt's scale and offset make them: the start itself, before anything else is learned."""
    plan = control('choice="multiple"')
    given = examples(model, 30)
    head = start_head(plan, model, given)
    assert head.multiple
    logits = torch.stack([head.logits(torch.from_numpy(one.embedding)) for one in given])
    assert float(head.probabilities(logits).mean()) == pytest.approx(1 / 3, abs=0.03)


def test_the_work_can_be_given_up_between_fits(model: Model) -> None:
    def gone() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        TagClimb(control(), examples(model, 12), model, CONFIG, gone)

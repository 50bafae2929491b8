"""How a control is asked of a model that has learned it, and of one that has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from backend.label_studio.config import ControlPlan, parse_label_config
from backend.tag_question import question_of
from vlm_core.tag_head import TagHead
from vlm_core.tags import TagCalibration
from vlm_core.types import ImageFeatures, TagScore

FEATURES = ImageFeatures((), (0, 0), torch.ones(1, 2))


@dataclass
class Scripted:
    """Says what it is told to; `asked` notes how."""

    says: Mapping[str, float]
    tag_heads: Mapping[str, TagHead] = field(default_factory=dict)
    tag_calibration: TagCalibration | None = None
    asked: list[object] = field(default_factory=list)

    def rank_features(self, features: ImageFeatures, tags: Sequence[str], *, multiple: bool = False) -> list[TagScore]:
        self.asked.append(("rank", tuple(tags), multiple))
        return [TagScore(tag, self.says[tag], self.says[tag]) for tag in tags]

    def classify_features(
        self, features: ImageFeatures, question: str, labels: Mapping[str, Sequence[str]]
    ) -> list[TagScore]:
        self.asked.append(("classify", question, {label: tuple(phrases) for label, phrases in labels.items()}))
        return [TagScore(label, self.says[label], self.says[label]) for label in labels]


def head(*, multiple: bool) -> TagHead:
    return TagHead(("a", "b"), torch.zeros(2, 2), torch.zeros(2), 1.0, 0.0, multiple)


def control(attributes: str = "", tag: str = "Choices") -> ControlPlan:
    choices = '<Choice value="a" prompt="an a | one a"/><Choice value="b"/><Choice value="c"/>'
    config = f'<View><Image name="i" value="$i"/><{tag} name="q" toName="i" {attributes}>{choices}</{tag}></View>'
    return parse_label_config(config).controls[0]


def chosen(model: Scripted, plan: ControlPlan) -> tuple[str, ...]:
    question = question_of(plan, model)
    return question.choose(question.ask(model, FEATURES)).labels


def test_what_was_not_learned_is_ranked_by_its_phrases() -> None:
    model = Scripted({"an a": 0.1, "one a": 0.6, "b": 0.2, "c": 0.1}, {"other": head(multiple=False)})
    assert chosen(model, control()) == ("a",)
    assert model.asked == [("rank", ("an a", "one a", "b", "c"), False)]


def test_what_was_learned_is_classified_by_label() -> None:
    model = Scripted({"a": 0.2, "b": 0.7, "c": 0.1}, {"q": head(multiple=False)})
    assert chosen(model, control()) == ("b",)
    assert model.asked == [("classify", "q", {"a": ("an a", "one a"), "b": ("b",), "c": ("c",)})]


@pytest.mark.parametrize(
    ("attributes", "labels"),
    [
        ("", ("b", "c")),
        ('model_score_threshold="0.7"', ("b",)),
        ('model_score_threshold="0.95"', ()),
        ('model_score_threshold="0.1"', ("b", "c", "a")),
        ('model_top_k="1"', ("b",)),
    ],
)
def test_of_several_learned_answers_each_has_its_own_probability(attributes: str, labels: tuple[str, ...]) -> None:
    model = Scripted({"a": 0.4, "b": 0.9, "c": 0.6}, {"q": head(multiple=True)})
    assert chosen(model, control(f'choice="multiple" {attributes}')) == labels


def test_a_head_for_one_answer_is_not_asked_for_several_nor_the_other_way_round() -> None:
    says = {"an a": 0.5, "one a": 0.1, "b": 0.4, "c": 0.1, "a": 0.0}
    for multiple in (True, False):
        model = Scripted(says, {"q": head(multiple=multiple)})
        chosen(model, control("" if multiple else 'choice="multiple"'))
        assert [kind for kind, *_ in model.asked] == ["rank"]  # type: ignore[misc]  # tuples of several kinds


def test_a_control_for_each_region_is_never_learned() -> None:
    boxes = '<RectangleLabels name="box" toName="i"><Label value="x"/></RectangleLabels>'
    choices = '<Choices name="q" toName="i" perRegion="true"><Choice value="a"/><Choice value="b"/></Choices>'
    plan = parse_label_config(f'<View><Image name="i" value="$i"/>{boxes}{choices}</View>').control("q")
    assert plan is not None
    model = Scripted({"a": 0.9, "b": 0.1}, {"q": head(multiple=False)})
    assert chosen(model, plan) == ("a",)
    assert model.asked == [("rank", ("a", "b"), False)]

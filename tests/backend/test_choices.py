from __future__ import annotations

from typing import Any

import pytest

from backend.choices import choose, choose_each, label_scores
from backend.label_studio.config import ControlPlan, LabelPrompt


def _control(*labels: str, **changes: Any) -> ControlPlan:
    prompts = tuple(LabelPrompt(text.split("|")[0], tuple(text.split("|"))) for text in labels)
    return ControlPlan("choices", "c", "i", "image", prompts, **changes)


def test_alternatives_take_the_best_and_labels_sum_to_one() -> None:
    control = _control("cat|kitten", "dog")
    scores = label_scores(control, {"cat": 0.1, "kitten": 0.5, "dog": 0.4})
    assert [(label.label, score) for label, score in scores] == [
        ("cat", pytest.approx(5 / 9)),
        ("dog", pytest.approx(4 / 9)),
    ]


def test_one_answer_is_the_best() -> None:
    choice = choose(_control("cat", "dog"), {"cat": 0.2, "dog": 0.8})
    assert choice.labels == ("dog",)
    assert choice.score == pytest.approx(0.8)


def test_one_answer_below_the_threshold_is_none() -> None:
    choice = choose(_control("cat", "dog", threshold=0.9), {"cat": 0.2, "dog": 0.8})
    assert choice.labels == ()
    assert choice.score == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("a", "b")),  # b has 0.6 of a's score, c 0.4
        ({"threshold": 0.3}, ("a", "b", "c")),
        ({"threshold": 0.7}, ("a",)),
        ({"threshold": 1.0}, ("a",)),  # the best always is
        ({"threshold": 0.0, "top_k": 2}, ("a", "b")),
    ],
)
def test_several_answers_are_those_near_the_best(changes: dict[str, Any], expected: tuple[str, ...]) -> None:
    choice = choose(_control("a", "b", "c", multiple=True, **changes), {"a": 0.5, "b": 0.3, "c": 0.2})
    assert choice.labels == expected
    assert choice.score == pytest.approx(sum({"a": 0.5, "b": 0.3, "c": 0.2}[label] for label in expected))


@pytest.mark.parametrize(
    ("changes", "expected", "score"),
    [
        ({}, ("a", "b"), 0.35),  # both reach 0.1 by themselves; they need not sum to one
        ({"threshold": 0.05}, ("a", "b", "c"), 0.78 / 3),
        ({"threshold": 0.3}, ("a",), 0.5),
        ({"threshold": 0.6}, (), 0.5),  # none, although one is the best
        ({"threshold": 0.0, "top_k": 1}, ("a",), 0.5),
    ],
)
def test_several_answers_may_each_stand_alone(changes: dict[str, Any], expected: tuple[str, ...], score: float) -> None:
    control = _control("a|aa", "b", "c", multiple=True, **changes)
    choice = choose_each(control, {"a": 0.01, "aa": 0.5, "b": 0.2, "c": 0.08})
    assert choice.labels == expected
    assert choice.score == pytest.approx(score)


def test_probabilities_that_are_no_numbers_still_give_an_answer() -> None:
    choice = choose(_control("a", "b"), {"a": float("nan"), "b": float("nan")})
    assert 0.0 <= choice.score <= 1.0
    assert choose_each(_control("a", multiple=True), {"a": float("nan")}).labels == ()

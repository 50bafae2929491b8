"""The gate for choices, on constructed tables of answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from training_jobs.promote_tags import TagAnswer, agreement, judge_tags

ABOUT = frozenset({"a", "b", "c"})


def table(true: str, old: str, new: str, *, question: str = "kind", about: frozenset[str] = ABOUT) -> list[TagAnswer]:
    """One image a letter; "-" is no label."""

    def sets(text: str) -> list[frozenset[str]]:
        return [frozenset(letter.replace("-", "")) for letter in text]

    rows: Sequence[tuple[frozenset[str], ...]] = list(zip(sets(true), sets(old), sets(new), strict=True))
    return [TagAnswer(f"{number:03d}", question, row[0], about, row[1], row[2]) for number, row in enumerate(rows)]


def test_agreement_is_the_iou_of_sets() -> None:
    assert agreement(frozenset("ab"), frozenset("bc")) == pytest.approx(1 / 3)
    assert agreement(frozenset("a"), frozenset("a")) == 1
    assert agreement(frozenset(), frozenset()) == 1
    assert agreement(frozenset("a"), frozenset()) == agreement(frozenset(), frozenset("a")) == 0


def test_a_clear_gain_is_published_and_told() -> None:
    verdict = judge_tags(table("aaaaabbbbbcc", "aaaaaaaaaaaa", "aaaaabbbbbaa"))
    assert verdict.better
    assert verdict.images == 12
    assert verdict.gain == pytest.approx(5 / 12)
    assert "0.42 to 0.83 on 12 images" in verdict.reason
    b = next(item for item in verdict.labels if item.label == "kind: b")
    assert (b.images, b.old_iou, b.new_iou) == (5, 0.0, 1.0)
    a = next(item for item in verdict.labels if item.label == "kind: a")
    assert (a.absent_images, a.old_absent_marked, a.new_absent_marked) == (7, 1.0, pytest.approx(2 / 7))


@pytest.mark.parametrize("new", ["aaaaaaaaaabb", "aaaaaaaaaaaa", "bbaaaaaaaabb"])
def test_equal_or_worse_is_not(new: str) -> None:
    verdict = judge_tags(table("aaaaaaaaaabb", "aaaaaaaaaabb", new))
    assert not verdict.better
    assert "no gain" in verdict.reason


def test_a_gain_of_one_image_is_not_sure() -> None:
    verdict = judge_tags(table("aaaaaaaaaabb", "aaaaaaaaaaab", "aaaaaaaaaabb"))
    assert not verdict.better
    assert "not sure" in verdict.reason


def test_a_label_that_surely_pays_blocks() -> None:
    """Many gain with "a", and "b" is lost altogether."""
    true = "a" * 20 + "b" * 8
    verdict = judge_tags(table(true, "c" * 20 + "b" * 8, "a" * 28))
    assert not verdict.better
    assert verdict.reason.startswith("kind: label 'b' loses")
    assert "from 1.00 to 0.00 on 28 images" in verdict.reason


def test_one_image_of_a_label_is_no_sure_loss() -> None:
    true = "a" * 20 + "b" * 8
    assert judge_tags(table(true, "c" * 20 + "b" * 8, "a" * 20 + "a" + "b" * 7)).better


def test_a_label_that_is_given_everywhere_loses_where_it_is_right_most() -> None:
    """All images that have it keep it; that others get it too is counted against it."""
    true = "b" * 8 + "a" * 20
    answers = [
        TagAnswer(f"{n:03d}", "kind", frozenset(letter), ABOUT, frozenset({letter} - {"a"}), frozenset({letter, "b"}))
        for n, letter in enumerate(true)
    ]
    verdict = judge_tags(answers)
    assert not verdict.better
    assert verdict.reason.startswith("kind: label 'b' loses")


def test_too_few_images_decide_nothing() -> None:
    verdict = judge_tags(table("aaaaaaa", "bbbbbbb", "aaaaaaa"))
    assert (verdict.better, verdict.gain) == (False, None)
    assert "7 of the 8 images" in verdict.reason


def test_questions_of_one_image_count_as_one_image() -> None:
    first = table("aaaaaaaa", "bbbbbbbb", "aaaaaaaa")
    second = table("aaaaaaaa", "aaaaaaaa", "bbbbbbbb", question="other")
    verdict = judge_tags([*first, *second])
    assert (verdict.images, verdict.gain) == (8, 0.0)

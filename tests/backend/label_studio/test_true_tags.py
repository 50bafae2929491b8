"""What annotations choose, as Label Studio stores it, and what several annotators agree on."""

from __future__ import annotations

from typing import Any

import pytest

from backend.label_studio.config import ControlPlan, parse_label_config
from backend.label_studio.true_tags import TrueTags, agreed_tags, read_choices, tag_controls

CONFIG = """<View><Image name="image" value="$image"/><Image name="other" value="$other"/>
<Choices name="kind" toName="image"><Choice value="Cat" alias="cat"/><Choice value="dog"/></Choices>
<Choices name="seen" toName="image" choice="multiple"><Choice value="rain"/><Choice value="snow"/></Choices>
<Choices name="must" toName="image" choice="multiple" required="true"><Choice value="x"/></Choices>
<View visibleWhen="choice-selected" whenTagName="kind"><Choices name="maybe" toName="image" choice="multiple">
<Choice value="x"/></Choices></View>
<Taxonomy name="tree" toName="image"><Choice value="animal"><Choice value="cat"/><Choice value="dog"/></Choice>
<Choice value="plant"/></Taxonomy>
<Choices name="else" toName="other"><Choice value="x"/><Choice value="y"/></Choices>
<Choices name="own" toName="image"><Choice value="z" model_prompt_from="$asked"/><Choice value="y"/></Choices>
<RectangleLabels name="box" toName="image"><Label value="cat"/></RectangleLabels>
<Choices name="each" toName="image" perRegion="true"><Choice value="x"/><Choice value="y"/></Choices>
<TextArea name="text" toName="image" prompt="a | b"/></View>"""
PLAN = parse_label_config(CONFIG)


def control(name: str) -> ControlPlan:
    found = PLAN.control(name)
    assert found is not None
    return found


def said(name: str, value: Any, *, kind: str = "choices", **changes: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "image", "type": kind, "value": {kind: value}, **changes}


def test_the_controls_that_can_be_learned() -> None:
    assert [item.from_name for item in tag_controls(PLAN)] == ["kind", "seen", "must", "maybe", "tree", "else"]
    assert [item.from_name for item in tag_controls(PLAN, "other")] == ["else"]


def test_choices_are_read_by_alias_and_by_value() -> None:
    assert read_choices([said("kind", ["cat"])], control("kind")) == {"cat"}
    assert read_choices([said("kind", ["Cat"])], control("kind")) == {"cat"}
    assert read_choices([said("seen", ["rain", "snow"])], control("seen")) == {"rain", "snow"}


def test_a_taxonomy_is_read_by_path_and_branches_say_nothing() -> None:
    tree = control("tree")
    assert read_choices([said("tree", [["animal", "cat"], ["plant"]], kind="taxonomy")], tree) == {
        "animal / cat",
        "plant",
    }
    assert read_choices([said("tree", [["animal"]], kind="taxonomy")], tree) is None
    assert read_choices([said("tree", [["cat"]], kind="taxonomy")], tree) is None


@pytest.mark.parametrize(
    "result",
    [
        [],
        [said("other", ["cat"])],
        [said("kind", ["cat"], to_name="other")],
        [said("kind", ["no more there"])],
        [said("kind", None), said("kind", 3), said("kind", [["cat"]]), said("kind", [None]), said("kind", {"cat": 1})],
        [said("kind", ["cat"]) | {"value": None}, said("kind", ["cat"]) | {"value": ["cat"]}, None, "cat", 7],
    ],
)
def test_what_is_no_answer_says_nothing(result: list[Any]) -> None:
    assert read_choices(result, control("kind")) is None


def test_no_answer_says_that_none_applies_only_where_annotators_were_asked() -> None:
    assert read_choices([], control("seen")) == frozenset()
    assert read_choices([], control("tree")) == frozenset()
    for name in ("kind", "must", "maybe"):
        assert read_choices([], control(name)) is None
    assert read_choices([said("seen", ["no more there"])], control("seen")) is None


def vote(chosen: str, about: str = "abc") -> TrueTags:
    return TrueTags(frozenset(chosen), frozenset(about))


def test_the_label_of_most_annotators_counts_and_a_tie_is_nobodys() -> None:
    assert agreed_tags([vote("a"), vote("b"), vote("a")], multiple=False) == vote("a")
    assert agreed_tags([vote("a"), vote("b")], multiple=False) is None
    assert agreed_tags([vote("a", "ab"), vote("a", "abc")], multiple=False) == vote("a", "abc")


def test_of_several_labels_those_that_half_chose_who_could() -> None:
    assert agreed_tags([vote("ab"), vote("b"), vote("c"), vote("b")], multiple=True) == vote("b")
    assert agreed_tags([vote("a"), vote("")], multiple=True) == vote("a")
    assert agreed_tags([vote(""), vote("")], multiple=True) == vote("")
    # "c" came later: one of the one who could choose it did.
    assert agreed_tags([vote("a", "ab"), vote("a", "ab"), vote("c", "abc")], multiple=True) == vote("ac")


def test_what_silence_means_changes_no_version() -> None:
    seen = '<Choices name="seen"'
    required = parse_label_config(CONFIG.replace(seen, f'{seen} required="true"'))
    assert required != PLAN
    assert required.hash_payload() == PLAN.hash_payload()

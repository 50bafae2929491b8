from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface

from backend.label_studio.config import LabelConfigError, LabelPrompt, PredictionPlan, parse_label_config

IMAGE = '<Image name="image" value="$image"/>'


def one_control(body: str, **extra: object) -> PredictionPlan:
    return parse_label_config(f"<View>{IMAGE}{body}</View>", extra or None)


def view(*bodies: str, image: str = IMAGE) -> str:
    return f"<View>{image}{''.join(bodies)}</View>"


A = '<Label value="a"/>'


def brush(labels: str, attributes: str = "") -> str:
    return f'<BrushLabels name="mask" toName="image" {attributes}>{labels}</BrushLabels>'


def choices(labels: str, attributes: str = "") -> str:
    return f'<Choices name="tag" toName="image" {attributes}>{labels}</Choices>'


def test_an_ordinary_config_works_unchanged() -> None:
    plan = parse_label_config(
        """<View>
          <Header value="Mark the vehicles"/>
          <Image name="photo" value="$url" zoom="true"/>
          <View style="display: flex">
            <BrushLabels name="mask" toName="photo">
              <View><Label value="Car" background="#f00"/></View>
              <Label value="Traffic light" hotkey="2"/>
            </BrushLabels>
          </View>
          <RectangleLabels name="box" toName="photo"><Label value="Sign"/></RectangleLabels>
          <Choices name="weather" toName="photo"><Choice value="sunny"/><Choice value="rain"/></Choices>
        </View>"""
    )
    mask, box, weather = plan.controls
    assert (mask.kind, mask.from_name, mask.to_name, mask.image_key) == ("brushlabels", "mask", "photo", "url")
    assert [(label.label, label.prompts) for label in mask.labels] == [
        ("Car", ("Car",)),
        ("Traffic light", ("Traffic light",)),
    ]
    assert (mask.threshold, mask.min_area, mask.top_k, mask.multiple) == (None, None, None, False)
    assert (box.kind, box.labels[0].label) == ("rectanglelabels", "Sign")
    assert (weather.kind, weather.multiple) == ("choices", False)
    assert plan.ignored == ()
    assert plan.prompts == ("Car", "Traffic light", "Sign")
    assert plan.tags == ("sunny", "rain")


@pytest.mark.parametrize(
    ("attributes", "label", "prompts"),
    [
        ('value="Car"', "Car", ("Car",)),
        ('value="Car" prompt="red car"', "Car", ("red car",)),
        # alternatives: trimmed, inner white space joined, blanks and repeats dropped
        ('value="Car" prompt=" red  car | | blue car|red car"', "Car", ("red car", "blue car")),
        # a comma belongs to a phrase in prompt, and separates in predicted_values
        ('value="Car" prompt="car, parked"', "Car", ("car, parked",)),
        ('value="Car" predicted_values="car, truck,,car"', "Car", ("car", "truck")),
        ('value="Car" prompt="lorry" predicted_values="car"', "Car", ("lorry",)),
        # the alias goes into results, the value is the phrase
        ('value="Passenger car" alias="C1"', "C1", ("Passenger car",)),
        ('alias="C1"', "C1", ("C1",)),
        ('value="Car" alias=""', "Car", ("Car",)),
        ('value="  spaced  "', "  spaced  ", ("spaced",)),
    ],
)
def test_prompts_and_names_of_a_label(attributes: str, label: str, prompts: tuple[str, ...]) -> None:
    for body in (brush(f"<Label {attributes}/>"), choices(f"<Choice {attributes}/>")):
        (found,) = one_control(body).controls[0].labels
        assert (found.label, found.prompts) == (label, prompts)


def test_result_names_are_the_sdk_s_names() -> None:
    body = brush('<Label value="Car" alias="C1"/><Label value="Tree"/>') + choices(
        '<Choice value="yes" alias="y"/><Choice value="no"/>'
    )
    interface = LabelInterface(f"<View>{IMAGE}{body}</View>")
    for control in one_control(body).controls:
        assert [label.label for label in control.labels] == interface.get_control(control.from_name).labels


def test_label_named_finds_alias_before_value() -> None:
    (control,) = one_control(brush('<Label value="B" alias="A"/><Label value="A" alias="C"/>')).controls
    assert control.label_named("A") == LabelPrompt("A", ("B",), "B")
    assert control.label_named("B") == LabelPrompt("A", ("B",), "B")
    assert control.label_named("nothing") is None


def test_control_attributes_and_extra_params() -> None:
    attributes = 'model_score_threshold="0.25" model_min_area="64" model_top_k="3"'
    (control,) = one_control(brush('<Label value="Car"/>', attributes)).controls
    assert (control.threshold, control.min_area, control.top_k) == (0.25, 64, 3)

    params = {"model_score_threshold": 0.75, "model_top_k": 2, "other": [1]}
    for given_params in (params, json.dumps(params)):
        plan = parse_label_config(view(brush('<Label value="Car"/>', 'model_top_k="5"')), given_params)
        assert (plan.controls[0].threshold, plan.controls[0].min_area, plan.controls[0].top_k) == (0.75, None, 5)
    for nothing in (None, "", "  ", "null", {}):
        plan = parse_label_config(view(brush(A)), nothing)
        assert plan.controls[0].threshold is None


def test_every_control_attribute_from_the_config_and_from_the_connection() -> None:
    attributes = (
        'model_max_regions="5" model_tile="300" model_rotate="true" model_prompt_from="$caption" model_top_k=" 2 "'
    )
    tag = '<RectangleLabels name="box" toName="image" {}><Label value="a"/></RectangleLabels>'
    (own,) = one_control(tag.format(attributes)).controls
    params = {
        "model_max_regions": 5,
        "model_tile": 300,
        "model_rotate": True,
        "model_prompt_from": "$caption",
        "model_top_k": 2,
    }
    (from_connection,) = one_control(tag.format(""), **params).controls
    assert own == from_connection
    assert (own.max_regions, own.tile, own.rotated, own.top_k) == (5, 300, True, 2)
    assert own.labels[0].prompt_from == "caption"
    (plain,) = one_control(tag.format("")).controls
    assert (plain.max_regions, plain.tile, plain.rotated, plain.labels[0].prompt_from) == (None, None, False, None)


@pytest.mark.parametrize(
    ("own", "of_connection", "tile"),
    [
        ("auto", None, "auto"),
        ("AUTO", None, "auto"),
        ("none", "auto", None),
        ("400", "auto", 400),
        (None, "auto", "auto"),
        (None, None, None),
    ],
)
def test_windows(own: str | None, of_connection: str | None, tile: object) -> None:
    attribute = "" if own is None else f'model_tile="{own}"'
    params = {} if of_connection is None else {"model_tile": of_connection}
    assert one_control(brush(A, attribute), **params).controls[0].tile == tile


def test_what_is_not_meant() -> None:
    (label,) = one_control(brush('<Label value="a" not_prompt=" b  c |d| b c"/>')).controls[0].labels
    assert label.not_prompts == ("b c", "d")


def test_phrases_of_the_task_s_data() -> None:
    labels = (
        '<Label value="plain"/><Label value="own" prompt="words"/><Label value="other" model_prompt_from="$other"/>'
        '<Label value="both" prompt="words" model_prompt_from="$other"/><Label value="listed" predicted_values="w"/>'
    )
    plan = one_control(brush(labels, 'model_prompt_from="$caption"'))
    assert {label.label: label.prompt_from for label in plan.controls[0].labels} == {
        "plain": "caption",
        "own": None,
        "other": "other",
        "both": "other",
        "listed": None,
    }
    assert plan.controls[0].labels[0].prompts == ("plain",)
    one = one_control(choices('<Choice value="a" model_prompt_from="$caption"/>'), model_prompt_from="$every")
    assert one.controls[0].labels[0].prompt_from == "caption"
    # One phrase for all choices would not tell them apart.
    assert one_control(choices('<Choice value="a"/>'), model_prompt_from="$e").controls[0].labels[0].prompt_from is None


@pytest.mark.parametrize(("mode", "multiple"), [("single", False), ("single-radio", False), ("multiple", True)])
def test_choice_modes(mode: str, multiple: bool) -> None:
    plan = one_control(choices('<Choice value="a"/>', f'choice="{mode}"'))
    assert plan.controls[0].multiple is multiple


def test_several_images_and_controls() -> None:
    plan = parse_label_config(
        """<View><Image name="before" value="$first"/><Image name="after" value="$second.url"/>
        <BrushLabels name="m1" toName="before"><Label value="hole"/></BrushLabels>
        <BrushLabels name="m2" toName="after"><Label value="hole"/></BrushLabels></View>"""
    )
    assert [(c.from_name, c.to_name, c.image_key) for c in plan.controls] == [
        ("m1", "before", "first"),
        ("m2", "after", "second.url"),
    ]
    data = {"first": "a.png", "second": {"url": "b.png"}}
    assert [c.image_uri(data) for c in plan.controls] == ["a.png", "b.png"]
    assert [c.image_uri({"first": 3, "second": "x"}) for c in plan.controls] == [None, None]
    assert plan.controls[1].image_uri({"second.url": "c.png"}) == "c.png"


def test_image_uri_reads_list_positions() -> None:
    plan = parse_label_config(view(brush(A), image='<Image name="image" value="$views[1]"/>'))
    assert plan.controls[0].image_uri({"views": ["a.png", "b.png"]}) == "b.png"
    assert plan.controls[0].image_uri({"views": ["a.png"]}) is None


@pytest.mark.parametrize(
    ("body", "name", "words"),
    [
        ('<MagicWand name="w" toName="image"/>', "w", "not predicted"),
        ('<VectorLabels name="v" toName="image"><Label value="a"/></VectorLabels>', "v", "not predicted"),
        ('<Rating name="r" toName="image"/>', "r", "not predicted"),
        ('<TextArea name="c" toName="image"/>', "c", "what annotators type"),
        (brush('<Label value="a"/>', 'model_skip="true"'), "mask", "model_skip"),
        (brush(""), "mask", "no <Label>"),
        (brush("", 'value="$labels"'), "mask", "the task's data"),
        (brush('<Label background="red"/>'), "mask", "has no value"),
        (brush('<Label value="a" model_skip="true"/>'), "mask", "model_skip"),
        (choices('<Choice value="a"/>', 'perItem="true"'), "tag", "perItem"),
        (choices('<Choice value="a"><Choice value="b"/></Choice>', 'allowNested="true"'), "tag", "allowNested"),
        (brush('<Label value="a"/>', 'model_confidence="1"') + choices("<Choice value='b'/>"), "mask", "not read"),
        (brush('<Label value="a" model_tile="auto"/>'), "mask", "on the control tag"),
        (brush('<Label value="a" model_path="x"/>'), "mask", "not read"),
        (brush('<Label value="a"/>', 'prompt="b"'), "mask", "on the tags inside"),
        (brush('<Label value="a"/>', 'model_rotate="true"'), "mask", "says nothing"),
        (choices('<Choice value="a" not_prompt="b"/>'), "tag", "says nothing"),
        (choices('<Choice value="a"/>', 'model_tile="auto"'), "tag", "says nothing"),
        (choices('<Choice value="a"/>', 'model_prompt_from="$caption"'), "tag", "on the tags inside"),
    ],
)
def test_what_is_left_alone_is_listed_with_its_reason(body: str, name: str, words: str) -> None:
    ignored = one_control(body).ignored
    assert ignored
    assert ignored[0].name == name
    assert words in ignored[0].reason


def test_objects_that_cannot_be_read_are_left_alone() -> None:
    for image, words in (
        ('<Image name="image" valueList="$images"/>', "valueList"),
        ('<Image name="image" value="http://host/one.jpg"/>', "names no field"),
    ):
        plan = parse_label_config(view(brush(A), image=image))
        assert plan.controls == ()
        assert words in plan.ignored[0].reason
    plan = parse_label_config(
        '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="a"/></Choices></View>'
    )
    assert plan.controls == ()
    assert "only images" in plan.ignored[0].reason


@pytest.mark.parametrize(
    ("value", "data", "expected"),
    [
        ("http://host/$name", {"name": "a.png"}, "http://host/a.png"),
        (
            "$host/$folder.year/$name",
            {"host": "s3://b", "folder": {"year": 2026}, "name": "a.png"},
            "s3://b/2026/a.png",
        ),
        ("http://host/?id=$ids[1]&x=1", {"ids": [3, 4]}, "http://host/?id=4&x=1"),
        # as in the editor, a dot after a field is part of its path
        ("http://host/$name.jpg", {"name": "a"}, None),
        ("http://host/$name.jpg", {"name": {"jpg": "a.jpg"}}, "http://host/a.jpg"),
        ("$host/$name", {"host": "http://host"}, None),
        ("$host/$name", {"host": "http://host", "name": ""}, None),
        ("$host/$name", {"host": "http://host", "name": ["a"]}, None),
        ("$host/$name", {"host": "$name", "name": "a"}, "$name/a"),
    ],
)
def test_an_address_may_be_put_together_from_fields(value: str, data: dict[str, Any], expected: str | None) -> None:
    image = f'<Image name="image" value="{value.replace("&", "&amp;")}"/>'
    (control,) = parse_label_config(view(brush(A), image=image)).controls
    assert control.image_uri(data) == expected


def test_what_is_repeated_by_the_task_s_data_is_left_alone_and_the_rest_is_not() -> None:
    plan = parse_label_config(
        """<View><Image name="image" value="$image"/>
        <BrushLabels name="mask" toName="image"><Label value="a"/></BrushLabels>
        <Repeater on="$pages" indexFlag="{{n}}"><Image name="p_{{n}}" value="$pages[{{n}}].url"/>
        <BrushLabels name="m_{{n}}" toName="p_{{n}}"><Label value="a"/></BrushLabels></Repeater>
        <Choices name="tag" toName="p_{{n}}"><Choice value="b"/></Choices></View>"""
    )
    assert [control.from_name for control in plan.controls] == ["mask"]
    assert [(item.name, "<Repeater>" in item.reason) for item in plan.ignored] == [("m_{{n}}", True), ("tag", True)]


def test_a_label_that_is_there_twice_alike_counts_once() -> None:
    plan = one_control(brush('<Label value="a" prompt="x"/><Label value="b"/><Label value="a" prompt="x "/>'))
    assert [(label.label, label.prompts) for label in plan.controls[0].labels] == [("a", ("x",)), ("b", ("b",))]
    assert 'its label "a" in line' in plan.ignored[0].reason


def test_labels_belong_to_the_nearest_control() -> None:
    inner = '<RectangleLabels name="box" toName="image"><Label value="b"/></RectangleLabels>'
    plan = one_control(brush(A + inner))
    assert [[label.label for label in control.labels] for control in plan.controls] == [["a"], ["b"]]


def test_filters_and_nested_choices_do_not_count() -> None:
    plan = one_control(
        '<Filter name="filter" toName="mask"/>'
        + brush('<Label value="a"/>')
        + choices('<Choice value="b"><Choice value="hidden"/></Choice>')
    )
    assert [control.from_name for control in plan.controls] == ["mask", "tag"]
    assert [label.label for label in plan.controls[1].labels] == ["b"]
    assert plan.ignored == ()


# config, line, and words that the message must hold: the value and the remedy
MISTAKES = [
    ("", None, ["empty"]),
    ("<View>", 1, ["not well-formed", "Close every tag"]),
    ("\n\n<View>\n<Image>\n</View>", 5, ["not well-formed"]),
    ("not xml", 1, ["not well-formed"]),
    ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', 1, ["document type", "Remove"]),
    ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><View/>', 1, ["document type"]),
    ("<View>" * 200 + "</View>" * 200, 1, ["nested"]),
    (f'<View>{IMAGE}\n<BrushLabels name="m"><Label value="a"/></BrushLabels></View>', 2, ['name="m"', "no toName"]),
    (f'<View>{IMAGE}\n<BrushLabels toName="image"><Label value="a"/></BrushLabels></View>', 2, ["no name"]),
    (view("\n", brush("").replace("image", "img")), 2, ['toName="img"', "image"]),
    ('<View><BrushLabels name="m" toName="x"/></View>', 1, ['toName="x"', 'Add <Image name="image"']),
    (
        view("\n", brush(A), image='<Text name="image" value="$t"/>'),
        2,
        ["<Text>", "Point toName at an <Image>"],
    ),
    (view(brush(A), image='<Image name="image"/>'), 1, ["no value", '"$image"']),
    (view("\n", brush(A, 'model_score_threshold="abc"')), 2, ['"abc"', "0 to 1"]),
    (view(brush(A, 'model_score_threshold="1.5"')), 1, ['"1.5"']),
    (view(brush(A, 'model_score_threshold="nan"')), 1, ['"nan"']),
    (view(brush(A, 'model_min_area="-1"')), 1, ['"-1"', "0 or more"]),
    (view(brush(A, 'model_top_k="0"')), 1, ['"0"', "1 or more"]),
    (view(brush(A, 'model_skip="perhaps"')), 1, ['"perhaps"', '"true"']),
    (view("\n", brush('\n<Label value="a" prompt=" | "/>')), 3, ['prompt=" | "', 'prompt="a"']),
    (view(brush('<Label value="a" predicted_values=""/>')), 1, ["predicted_values"]),
    (view("\n", IMAGE, brush(A)), 2, ['"image"', "line 1", "own name"]),
    (view(brush(A + '\n<Label value="b" alias="a"/>')), 2, ['"a"', "line 1"]),
    (view(choices('<Choice value="a"/>', 'choice="many"')), 1, ['"many"', "multiple"]),
    (view(brush(A, 'model_max_regions="0"')), 1, ['"0"', "1 or more"]),
    (view(brush(A, 'model_top_k="1_0"')), 1, ['"1_0"', "1 or more"]),
    (view(brush(A, 'model_tile="big"')), 1, ['"big"', '"auto"', '"none"']),
    (view(brush(A, 'model_tile="0"')), 1, ['"0"', '"auto"']),
    (view("\n", brush(A, 'model_prompt_from="caption"')), 2, ['"caption"', '"$caption"']),
    (view("\n", brush('\n<Label value="a" model_prompt_from="$a $b"/>')), 3, ['"$a $b"', "one field"]),
    (view(brush('<Label value="a" not_prompt="|"/>')), 1, ['not_prompt="|"', "no phrase"]),
    (view(brush('<Label value="a" prompt="b | c" not_prompt="c"/>')), 1, ['not_prompt="c"', 'but "c" is what']),
    # what is written almost like an attribute of ours would say nothing
    (view("\n", brush(A, 'model_treshold="0.5"')), 2, ['model_treshold="0.5"', "Did you mean model_score_threshold"]),
    (view(brush(A, 'model_threshold="0.5"')), 1, ["Did you mean model_score_threshold"]),
    (view(brush(A, 'model_min_areas="5"')), 1, ["Did you mean model_min_area"]),
    (view(brush(A, 'modelSkip="true"')), 1, ["Did you mean model_skip"]),
    (view(brush(A, 'model_prompt_form="$c"')), 1, ["Did you mean model_prompt_from"]),
    (view(brush('\n<Label value="a" not_prompts="b"/>')), 2, ['not_prompts="b"', "Did you mean not_prompt"]),
    (view(brush('<Label value="a" prompts="b"/>')), 1, ["Did you mean prompt?"]),
    (view(brush('<Label value="a" Prompt="b"/>')), 1, ["Did you mean prompt?"]),
    (view(choices('<Choice value="a" predicted_value="b"/>')), 1, ["Did you mean predicted_values?"]),
]


@pytest.mark.parametrize(("xml", "line", "words"), MISTAKES)
def test_a_mistake_is_named_with_line_value_and_remedy(xml: str, line: int | None, words: list[str]) -> None:
    with pytest.raises(LabelConfigError) as caught:
        parse_label_config(xml)
    assert caught.value.line == line
    message = str(caught.value)
    assert message.startswith("labelling config" + ("" if line is None else f", line {line}"))
    for word in words:
        assert word in message


def test_label_studio_s_own_attributes_are_no_mistakes() -> None:
    own = 'hint="h" hotkey="1" background="red" selected="true" maxUsages="1" showAlias="true" size="big" html="x"'
    every = 'strokeWidth="1" opacity="0.5" canRotate="false" showInline="true" granularity="word" smart="true"'
    plan = one_control(
        brush(f'<Label value="a" {own}/>', every) + choices(f'<Choice value="b" {own} style="x" color="y"/>', every)
    )
    assert len(plan.controls) == 2
    assert plan.ignored == ()


@pytest.mark.parametrize(
    "extra_params",
    ["{", "[1]", [1], "3", "[" * 100_000, {"model_score_threshold": "high"}, {"model_treshold": 0.5}, {"modelSkip": 1}],
)
def test_wrong_extra_params_are_named(extra_params: object) -> None:
    with pytest.raises(LabelConfigError, match="extra parameters"):
        parse_label_config(view(brush(A)), extra_params)  # type: ignore[arg-type]


def test_a_bomb_of_entities_is_refused_at_once() -> None:
    entities = "".join(f'<!ENTITY a{i} "' + f"&a{i - 1};" * 10 + '">' for i in range(1, 10))
    with pytest.raises(LabelConfigError, match="document type"):
        parse_label_config(f'<!DOCTYPE x [<!ENTITY a0 "x">{entities}]><View>&a9;</View>')


def test_too_long_a_config_is_refused() -> None:
    with pytest.raises(LabelConfigError, match="characters"):
        parse_label_config("<View>" + " " * 2_000_000 + "</View>")


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_named_as_a_mistake(text: str) -> None:
    try:
        plan = parse_label_config(text)
    except LabelConfigError:
        return
    assert plan.controls == ()


def test_hash_payload_holds_all_that_changes_predictions_and_nothing_else() -> None:
    base = brush('<Label value="a" prompt="x | y"/><Label value="b"/>')
    payload = one_control(base).hash_payload()
    assert json.loads(json.dumps(payload)) == payload
    same = [
        base.replace('value="b"', 'value="b" background="#123456" hotkey="b"'),
        base + '<TextArea name="note" toName="image"/>',
    ]
    for body in same:
        assert one_control(body).hash_payload() == payload
    different = [
        base.replace("x | y", "x | z"),
        base.replace("x | y", "y | x").replace('value="b"', 'value="c"'),
        base.replace('value="b"', 'value="b" alias="c"'),
        base.replace('toName="image"', 'toName="image" model_score_threshold="0.5"'),
        base.replace('toName="image"', 'toName="image" model_min_area="5"'),
        base.replace('toName="image"', 'toName="image" model_top_k="5"'),
        base.replace('toName="image"', 'toName="image" model_skip="true"'),
        base.replace('toName="image"', 'toName="image" model_tile="auto"'),
        base.replace('toName="image"', 'toName="image" model_max_regions="5"'),
        base.replace('value="b"', 'value="b" not_prompt="c"'),
        base.replace('value="b"', 'value="b" model_prompt_from="$c"'),
        base.replace("BrushLabels", "RectangleLabels"),
        base.replace('name="mask"', 'name="other"'),
    ]
    for body in different:
        assert one_control(body).hash_payload() != payload
    assert one_control(base, model_score_threshold=0.5).hash_payload() != payload

"""Every control tag of a labelling config: what is planned for it, and when it is left alone."""

from __future__ import annotations

import contextlib
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface

from backend.label_studio.config import ControlPlan, LabelConfigError, PredictionPlan, parse_label_config

IMAGE = '<Image name="image" value="$image"/>'
LABELS = '<Labels name="labels" toName="image" {}><Label value="a"/><Label value="b" alias="B"/></Labels>'
SHAPES = ("Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse", "KeyPoint")


def read(*body: str) -> PredictionPlan:
    return parse_label_config(f"<View>{''.join(body)}</View>")


def only(plan: PredictionPlan) -> ControlPlan:
    (control,) = plan.controls
    return control


def reasons(plan: PredictionPlan) -> dict[str, str]:
    return {item.name: item.reason for item in plan.ignored}


# Shapes ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tag", SHAPES)
def test_each_shape_with_labels_of_its_own(tag: str) -> None:
    control = only(
        read(IMAGE, f'<{tag}Labels name="x" toName="image" model_min_area="9"><Label value="a"/></{tag}Labels>')
    )
    assert (control.kind, control.shape, control.labels_name) == (f"{tag.lower()}labels", tag.lower(), None)
    assert (control.from_name, control.min_area, control.rotated) == ("x", 9, False)
    assert control.covers_pixels == (tag != "KeyPoint")


@pytest.mark.parametrize("tag", SHAPES)
@pytest.mark.parametrize("shape_first", [True, False])
def test_each_bare_shape_beside_labels(tag: str, shape_first: bool) -> None:
    shape = f'<{tag} name="x" toName="image" model_top_k="3"/>'
    parts = [shape, LABELS.format('model_score_threshold="0.3" model_top_k="5"')]
    plan = read(IMAGE, *(parts if shape_first else reversed(parts)))
    control = only(plan)
    assert (control.kind, control.from_name, control.labels_name) == (tag.lower(), "x", "labels")
    assert [label.label for label in control.labels] == ["a", "B"]
    # The shape's own attributes win over those of <Labels>.
    assert (control.threshold, control.top_k) == (0.3, 3)
    assert plan.ignored == ()


def test_only_the_first_of_several_bare_shapes_shows_the_labels() -> None:
    plan = read(
        IMAGE,
        LABELS.format(""),
        '<Polygon name="p" toName="image" model_skip="true"/><Rectangle name="r" toName="image"/>',
        '<Brush name="b" toName="image"/><Ellipse name="e" toName="image" model_skip="false"/>',
    )
    assert [control.from_name for control in plan.controls] == ["r", "e"]
    assert reasons(plan)["p"] == "model_skip is set"
    assert '<Rectangle name="r">' in reasons(plan)["b"]
    assert 'model_skip="false"' in reasons(plan)["b"]


def test_a_bare_shape_takes_the_first_labels_of_its_own_image() -> None:
    plan = read(
        '<Image name="i" value="$i"/><Image name="j" value="$j"/>',
        '<Rectangle name="ri" toName="i"/><Rectangle name="rj" toName="j"/><Brush name="bj" toName="j"/>',
        '<Labels name="lj" toName="j"><Label value="x"/></Labels>',
        '<Labels name="li" toName="i"><Label value="y"/></Labels>',
        '<Labels name="more" toName="i"><Label value="z"/></Labels>',
    )
    assert [(c.from_name, c.labels_name, c.labels[0].label) for c in plan.controls] == [
        ("ri", "li", "y"),
        ("rj", "lj", "x"),
    ]
    assert 'first, <Labels name="li">' in reasons(plan)["more"]


@pytest.mark.parametrize(
    ("body", "name", "words"),
    [
        ('<Rectangle name="r" toName="image"/>', "r", 'no <Labels> has toName="image"'),
        (LABELS.format(""), "labels", "to draw its labels"),
        (LABELS.format('model_skip="true"') + '<Brush name="b" toName="image"/>', "b", "model_skip is set"),
        ('<Text name="t" value="$t"/><Labels name="l" toName="t"><Label value="a"/></Labels>', "l", "on images only"),
        ('<Pdf name="t" value="$t"/><Rectangle name="r" toName="t"/>', "r", "only images"),
    ],
)
def test_shapes_and_labels_without_each_other_are_left_alone(body: str, name: str, words: str) -> None:
    plan = read(IMAGE, body)
    assert plan.controls == ()
    assert words in reasons(plan)[name]


def test_smart_tools_ask_the_model_and_are_not_predicted_where_something_else_is() -> None:
    brush = '<BrushLabels name="b" toName="image" smart="true"><Label value="a"/></BrushLabels>'
    point = '<KeyPointLabels name="k" toName="image" smart="true" {}><Label value="a"/></KeyPointLabels>'
    box = '<RectangleLabels name="r" toName="image" smartOnly="true"><Label value="a"/></RectangleLabels>'
    plan = read(IMAGE, point.format(""), box, brush)
    assert [control.from_name for control in plan.controls] == ["b"]
    assert "<BrushLabels>" in reasons(plan)["k"]
    assert "smart tool" in reasons(plan)["r"]
    assert [control.from_name for control in read(IMAGE, point.format(""), box).controls] == ["k", "r"]
    plan = read(IMAGE, point.format('model_skip="false"'), brush)
    assert [control.from_name for control in plan.controls] == ["k", "b"]
    # A smart bare shape is not the first of them.
    plan = read(
        IMAGE, LABELS.format(""), '<KeyPoint name="k" toName="image" smart="true"/><Brush name="b" toName="image"/>'
    )
    assert only(plan).from_name == "b"


# Answers --------------------------------------------------------------------------------------------------------------
def test_a_taxonomy_is_asked_for_its_leaves() -> None:
    taxonomy = """<Taxonomy name="t" toName="image" leafsOnly="true" model_top_k="4">
      <Choice value="Animal" alias="animal" prompt="not read">
        <Choice value="Cat" prompt="a cat | a kitten"/><Choice value="Dog" alias="d"/><Choice value="other"/>
        <Choice value="Cat" prompt="twice"/>
      </Choice>
      <Choice value="Plant">
        <Choice value="other"/><Choice value="Trees" model_skip="true"><Choice value="Oak"/></Choice>
      </Choice>
      <Choice value="nothing"/>
    </Taxonomy>"""
    plan = read(IMAGE, taxonomy)
    control = only(plan)
    assert [(label.path, label.prompts) for label in control.labels] == [
        (("animal", "Cat"), ("a cat", "a kitten")),
        (("animal", "d"), ("Dog",)),
        # two leaves of one name: what they are called in says which is meant
        (("animal", "other"), ("Animal other",)),
        (("Plant", "other"), ("Plant other",)),
        (("nothing",), ("nothing",)),
    ]
    assert [label.label for label in control.labels] == [" / ".join(label.path) for label in control.labels]
    assert (control.multiple, control.top_k) == (True, 4)
    said = " ".join(item.reason for item in plan.ignored)
    for words in ('"animal / Cat" in line 4 is there already', '"Plant / Trees" has model_skip', "prompt of <Choice>"):
        assert words in said


def test_paths_of_a_taxonomy_are_label_studio_s() -> None:
    taxonomy = """<Taxonomy name="t" toName="image"><Choice value="A" alias="a"><Choice value="B"/></Choice>
      <Choice value="C"><Choice value="D" alias="d"/></Choice></Taxonomy>"""
    control = only(read(IMAGE, taxonomy))
    interface = LabelInterface(f"<View>{IMAGE}{taxonomy}</View>")
    region = {"from_name": "t", "to_name": "image", "type": "taxonomy"}
    paths = [list(label.path) for label in control.labels]
    assert paths == [["a", "B"], ["C", "d"]]
    assert (
        interface.validate_prediction({"result": [{**region, "value": {"taxonomy": paths}}]}, return_errors=True) == []
    )


@pytest.mark.parametrize(
    ("attributes", "multiple", "top_k"),
    [
        ("", True, None),
        ('maxUsages="1"', False, 1),
        ('maxUsages="3"', True, 3),
        ('maxUsages="3" model_top_k="2"', True, 2),
        ('maxUsages="3" model_top_k="1"', False, 1),
        ('maxUsages="many"', True, None),
    ],
)
def test_how_many_items_of_a_taxonomy(attributes: str, multiple: bool, top_k: int | None) -> None:
    control = only(read(IMAGE, f'<Taxonomy name="t" toName="image" {attributes}><Choice value="a"/></Taxonomy>'))
    assert (control.multiple, control.top_k) == (multiple, top_k)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('<Taxonomy name="x" toName="image" apiUrl="http://host/items"/>', "apiUrl"),
        ('<Taxonomy name="x" toName="image" value="$items"/>', "the task's data"),
        ('<Taxonomy name="x" toName="image"/>', "no <Choice>"),
        ('<Text name="t" value="$t"/><Taxonomy name="x" toName="t"><Choice value="a"/></Taxonomy>', "only images"),
        ('<Text name="t" value="$t"/><TextArea name="x" toName="t" prompt="a"/>', "only images"),
        ('<TextArea name="x" toName="image" perRegion="true"/>', "what annotators type"),
        ('<TextArea name="x" toName="image" prompt="a" model_skip="true"/>', "model_skip"),
        ('<TextArea name="x" toName="image" model_text="phrases" perRegion="true"/>', "perRegion"),
        ('<List name="l" value="$l"/><Ranker name="x" toName="l"><Bucket name="b"/></Ranker>', "buckets"),
        ('<List name="l" value="$l"/><Ranker name="x" toName="l" model_skip="true"/>', "model_skip"),
        ('<List name="l" value="words"/><Ranker name="x" toName="l"/>', "not one field"),
        ('<Ranker name="x" toName="image"/>', "only the items of a <List>"),
        ('<Image name="j" value="$j"/><List name="l" value="$l"/><Ranker name="x" toName="l"/>', "(image, j)"),
    ],
)
def test_answers_that_are_left_alone(body: str, words: str) -> None:
    plan = read(IMAGE, body)
    assert plan.controls == ()
    assert words in reasons(plan)["x"]


def test_text_areas() -> None:
    tags = only(read(IMAGE, '<TextArea name="x" toName="image" prompt="rain, at night | snow" maxSubmissions="2"/>'))
    assert (tags.kind, tags.text, tags.top_k) == ("textarea", "tags", 2)
    assert [(label.label, label.prompts) for label in tags.labels] == [
        ("rain, at night", ("rain, at night",)),
        ("snow", ("snow",)),
    ]
    listed = only(read(IMAGE, '<TextArea name="x" toName="image" predicted_values="rain,snow" model_top_k="1"/>'))
    assert ([label.label for label in listed.labels], listed.top_k) == (["rain", "snow"], 1)
    phrases = only(read(IMAGE, '<TextArea name="x" toName="image" model_text="phrases"/>'))
    assert (phrases.text, phrases.labels) == ("phrases", ())
    # From the connection it is for the text areas of images; a field without toName is no control at all.
    every = '<TextArea name="alone"/><Text name="t" value="$t"/><TextArea name="of" toName="t"/>'
    plan = parse_label_config(
        f'<View>{IMAGE}{every}<TextArea name="x" toName="image"/></View>', {"model_text": "phrases"}
    )
    assert only(plan) == phrases
    assert list(reasons(plan)) == ["of"]


def test_a_ranker_compares_the_items_of_its_list_with_an_image() -> None:
    ranker = '<List name="list" value="$texts"/><Ranker name="rank" toName="list" {}/>'
    control = only(read(IMAGE, ranker.format("")))
    assert (control.kind, control.to_name, control.image_key, control.items_from) == (
        "ranker",
        "list",
        "image",
        "texts",
    )
    assert (control.labels, control.shape) == ((), None)
    two = '<Image name="j" value="$second"/>'
    assert only(read(IMAGE, two, ranker.format('model_image="j"'))).image_key == "second"
    plan = read(ranker.format(""))
    assert "no <Image>" in reasons(plan)["rank"]


# Choices for single regions -------------------------------------------------------------------------------------------
REGIONS = (
    '<BrushLabels name="b" toName="image"><Label value="Car" alias="C"/><Label value="Tree, old"/></BrushLabels>'
    '<RectangleLabels name="r" toName="image"><Label value="Sign"/><Label value="Car" alias="C"/></RectangleLabels>'
)


def per_region(attributes: str = "", around: str = "{}") -> PredictionPlan:
    inner = f'<Choices name="c" toName="image" perRegion="true" {attributes}><Choice value="x"/></Choices>'
    return read(IMAGE, REGIONS, around.format(inner))


@pytest.mark.parametrize(
    ("attributes", "labels", "controls"),
    [
        ("", (), ()),
        ('whenLabelValue="C"', ("C",), ()),
        ('whenLabelValue="C,Sign"', ("C", "Sign"), ()),
        # a label may hold a comma itself
        ('whenLabelValue="Tree, old"', ("Tree, old",), ()),
        ('whenTagName="r"', (), ("r",)),
        ('visibleWhen="region-selected" whenTagName="b" whenLabelValue="C"', ("C",), ("b",)),
        ('visibleWhen="region-selected"', (), ()),
    ],
)
def test_choices_for_single_regions(attributes: str, labels: tuple[str, ...], controls: tuple[str, ...]) -> None:
    control = per_region(attributes).control("c")
    assert control is not None
    assert (control.per_region, control.only_labels, control.only_controls) == (True, labels, controls)


def test_the_conditions_of_views_around_hold_too() -> None:
    around = (
        '<View visibleWhen="region-selected" whenLabelValue="C,Sign"><View whenLabelValue="ignored">{}</View></View>'
    )
    control = per_region('whenTagName="r"', around).control("c")
    assert control is not None
    assert (control.only_labels, control.only_controls) == (("C", "Sign"), ("r",))
    control = per_region('whenLabelValue="Sign"', around).control("c")
    assert control is not None
    assert control.only_labels == ("Sign",)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ('whenLabelValue="Boat"', 'whenLabelValue="Boat"'),
        ('whenLabelValue="Car"', 'whenLabelValue="Car"'),  # the editor goes by the alias
        ('whenTagName="image"', 'whenTagName="image"'),
        ('whenTagName="b" whenLabelValue="Sign"', 'whenTagName="b"'),
        ('visibleWhen="no-region-selected"', "no region is selected"),
    ],
)
def test_choices_that_the_editor_never_shows_are_left_alone(attributes: str, words: str) -> None:
    plan = per_region(attributes)
    assert plan.control("c") is None
    assert words in reasons(plan)["c"]


def test_choices_for_single_regions_need_regions() -> None:
    plan = read(IMAGE, '<Choices name="c" toName="image" perRegion="true"><Choice value="x"/></Choices>')
    assert plan.controls == ()
    assert "no control gives regions" in reasons(plan)["c"]


def test_a_condition_on_labels_that_a_bare_shape_draws() -> None:
    plan = read(
        IMAGE,
        LABELS.format(""),
        '<Rectangle name="r" toName="image"/>',
        '<Choices name="c" toName="image" perRegion="true" whenTagName="labels"><Choice value="x"/></Choices>',
        '<Choices name="d" toName="image" perRegion="true" whenTagName="r"><Choice value="x"/></Choices>',
    )
    control = plan.control("c")
    assert control is not None
    assert control.only_controls == ("r",)
    assert "whenTagName" in reasons(plan)["d"]  # the editor asks for the tag that gives the label


def test_a_condition_on_other_choices_is_not_looked_at() -> None:
    plan = per_region('visibleWhen="choice-selected" whenTagName="other" whenChoiceValue="y"')
    control = plan.control("c")
    assert control is not None
    assert (control.only_labels, control.only_controls) == ((), ())
    assert "choice-selected" in reasons(plan)["c"]


def test_taxonomies_and_texts_may_be_for_single_regions_too() -> None:
    plan = read(
        IMAGE,
        REGIONS,
        '<Taxonomy name="t" toName="image" perRegion="true" whenTagName="b"><Choice value="x"/></Taxonomy>',
        '<TextArea name="a" toName="image" perRegion="true" prompt="red | blue"/>',
    )
    assert [(c.from_name, c.per_region, c.only_controls) for c in plan.controls[2:]] == [
        ("t", True, ("b",)),
        ("a", True, ()),
    ]


# Mistakes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('<Rectangle name="r" toName="img"/>', ['toName="img"', "Name one of the images: image"]),
        ('<Rectangle name="r"/>', ['name="r"', "no toName"]),
        ('<Polygon toName="image"/>', ["<Polygon> has no name"]),
        (LABELS.format('model_treshold="1"') + '<Brush name="b" toName="image"/>', ["model_score_threshold"]),
        (LABELS.format('model_top_k="-1"') + '<Brush name="b" toName="image"/>', ['<Labels name="labels">', '"-1"']),
        ('<RectangleLabels name="r" toName="image" model_rotate="45"><Label value="a"/></RectangleLabels>', ['"45"']),
        ('<TextArea name="x" toName="image" model_text="all"/>', ['"all"', "tags, phrases"]),
        ('<TextArea name="x" toName="image" model_text="tags"/>', ["no tags", "prompt="]),
        ('<TextArea name="x" toName="image" model_text="phrases" prompt="a"/>', ["Keep one"]),
        ('<TextArea name="x" toName="image" prompt=" "/>', ["no phrase"]),
        ('<TextArea name="x" prompt="a"/>', ["no toName"]),
        ('<List name="l" value="$l"/><Ranker name="x" toName="l" model_image="l"/>', ['model_image="l"', "image"]),
        ('<Ranker name="x" toName="nothing"/>', ['toName="nothing"']),
        (
            '<Taxonomy name="t" toName="image"><Choice value="a"/><Choice value="b" alias="a"/></Taxonomy>',
            ['"a" a second time', "Keep one"],
        ),
    ],
)
def test_mistakes_are_named(body: str, words: list[str]) -> None:
    with pytest.raises(LabelConfigError) as caught:
        read(IMAGE, "\n", body)
    assert caught.value.line == 2
    for word in words:
        assert word in str(caught.value)


# Whatever Label Studio reads ------------------------------------------------------------------------------------------
NAMES = st.sampled_from(["image", "list", "a", "b", "c", "labels", ""])
VALUES = st.sampled_from(
    ["true", "false", "1", "0.5", "$x", "a", "b", "a,b", "auto", "multiple", "region-selected", ""]
)
ATTRIBUTES = (
    *("value", "alias", "prompt", "not_prompt", "predicted_values", "perRegion", "visibleWhen", "whenTagName"),
    *("whenLabelValue", "smart", "model_skip", "model_tile", "model_top_k", "model_text", "model_image", "allowNested"),
    *("model_prompt_from", "maxUsages", "apiUrl", "choice", "model_treshold", "valueList", "model_rotate", "perItem"),
)
TAGS = (
    *("View", "Label", "Choice", "Labels", "Choices", "Taxonomy", "TextArea", "Ranker", "Bucket", "List", "Image"),
    *("Text", "Repeater", "Filter", "Brush", "Rectangle", "KeyPoint", "BrushLabels", "RectangleLabels", "Rating"),
)


@st.composite
def tags(draw: st.DrawFn, depth: int = 3) -> str:
    name = draw(st.sampled_from(TAGS))
    attributes = draw(st.dictionaries(st.sampled_from(ATTRIBUTES), VALUES, max_size=3))
    if name not in ("View", "Label", "Choice"):
        attributes |= draw(st.fixed_dictionaries({}, optional={"name": NAMES, "toName": NAMES}))
    elif name != "View":
        attributes.setdefault("value", draw(VALUES))
    inside = "".join(draw(st.lists(tags(depth - 1), max_size=4))) if depth else ""
    return f"<{name} {' '.join(f'{key}={quoteattr(value)}' for key, value in attributes.items())}>{inside}</{name}>"


@given(st.lists(tags(), max_size=6))
def test_whatever_label_studio_reads_is_read_or_named_as_a_mistake(body: list[str]) -> None:
    config = f'<View>{IMAGE}<List name="list" value="$items"/>{"".join(body)}</View>'
    LabelInterface(config)
    with contextlib.suppress(LabelConfigError):
        parse_label_config(config)


WORDS = st.sampled_from(["car", "red car", " tree ", "a, b", "Ä", "x / y", "|"])
FITTING: dict[str, st.SearchStrategy[str]] = {
    "model_score_threshold": st.sampled_from(["0", "0.5", "1"]),
    "model_tile": st.sampled_from(["auto", "none", "300"]),
    "model_top_k": st.sampled_from(["1", "3"]),
    "model_skip": st.sampled_from(["true", "false"]),
    "perRegion": st.sampled_from(["true", "false"]),
    "choice": st.sampled_from(["single", "multiple"]),
    "smart": st.sampled_from(["true", "false"]),
    "maxUsages": st.sampled_from(["1", "2"]),
}


@st.composite
def items(draw: st.DrawFn, name: str, depth: int) -> str:
    """Labels or choices, alone or in views; with depth, choices in choices."""
    made = ""
    for value in draw(st.lists(WORDS, max_size=3, unique_by=str.strip)):
        attributes = {"value": value} | draw(st.fixed_dictionaries({}, optional={"prompt": st.just("thing")}))
        if draw(st.booleans()):
            attributes["alias"] = f"{value.strip()}!"
        inside = draw(items(name, depth - 1)) if depth else ""
        text = f"<{name} {' '.join(f'{key}={quoteattr(item)}' for key, item in attributes.items())}>{inside}</{name}>"
        made += f"<View>{text}</View>" if not depth and draw(st.booleans()) else text
    return made


@st.composite
def configs(draw: st.DrawFn) -> str:
    """Configs as people write them."""
    body = '<Image name="image" value="$image"/><List name="list" value="$items"/>'
    kinds = [*SHAPES, *(f"{shape}Labels" for shape in SHAPES), "Taxonomy", "TextArea", "Ranker"]
    kinds += ["Labels", "Choices"] * 4
    for number, kind in enumerate(draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=6))):
        attributes = draw(st.fixed_dictionaries({}, optional=FITTING))
        to_name = "list" if kind == "Ranker" else "image"
        item = "Choice" if kind in ("Choices", "Taxonomy") else "Label"
        inside = draw(items(item, int(kind == "Taxonomy")))
        if kind in SHAPES or kind in ("TextArea", "Ranker"):
            inside = ""
        if kind == "TextArea":
            attributes |= draw(st.sampled_from([{}, {"model_text": "phrases"}, {"prompt": "a | b"}]))
        written = " ".join(f"{key}={quoteattr(value)}" for key, value in attributes.items())
        body += f'<{kind} name="c{number}" toName="{to_name}" {written}>{inside}</{kind}>'
    return f"<View>{body}</View>"


@given(configs())
def test_nothing_is_planned_that_label_studio_would_refuse(config: str) -> None:
    interface = LabelInterface(config)
    plan = parse_label_config(config)
    named = {item.name for item in plan.ignored} | {control.from_name for control in plan.controls}
    for control in plan.controls:
        known = interface.get_control(control.from_name)
        assert (known.tag.lower(), known.to_name) == (control.kind, [control.to_name])
        source = interface.get_control(control.labels_name) if control.labels_name else known
        for label in control.labels if control.kind != "textarea" else ():
            assert {*(label.path or (label.label,))} <= set(source.labels)
            assert label.prompts
        assert (control.labels == ()) == (control.kind == "ranker" or control.text == "phrases")
        assert set(control.only_controls) <= named
    # Each control is planned or left alone with a reason; <Labels> speak through their shapes.
    for known in interface.controls:
        assert known.name in named or known.tag == "Labels"

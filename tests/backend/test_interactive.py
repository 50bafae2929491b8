"""What an annotator gets for what was drawn and typed, by a model that knows colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.answers.interactive import POINT_REACH
from backend.label_studio.brush import encode_mask
from tests.backend.fakes import COLOURS, ColourModel, MemoryImages
from tests.backend.label_studio.test_interaction import SIZE
from tests.backend.test_predictor import Bench, brush_mask

IMAGE = """<View><Image name="i" value="$image"/>
<Text name="chat" value="The model says:"/><TextArea name="said" toName="chat" model_text="messages"/>
<TextArea name="ask" toName="i" maxSubmissions="9"/>
"""
LABELS = '<Label value="Apple" prompt="red"/><Label value="Leaf" prompt="green"/>'
BRUSH = f'{IMAGE}<BrushLabels name="b" toName="i">{LABELS}</BrushLabels></View>'
BARE = f"""{IMAGE}<Labels name="l" toName="i">{LABELS}</Labels><Brush name="b" toName="i"/>
<Rectangle name="r" toName="i" smart="true"/><KeyPoint name="k" toName="i" smartOnly="true"/></View>"""
HEIGHT, WIDTH = 60, 120
APPLES = ((15, 20, 45, 40), (60, 20, 80, 40))
LEAF = (90, 20, 120, 40)


def picture() -> Image.Image:
    """White, with a large red block, a small red one, and a green one."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    for box in APPLES:
        image.paste(COLOURS["red"], box)
    image.paste(COLOURS["green"], LEAF)
    return image


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, MemoryImages({"picture": picture()}))
    yield made
    made.predictor.close()


def text(*texts: str) -> dict[str, Any]:
    return {"id": "t", "from_name": "ask", "to_name": "i", "type": "textarea", "value": {"text": list(texts)}}


def rectangle(box: tuple[int, int, int, int], label: str | None, identity: str = "r1") -> dict[str, Any]:
    left, top, right, bottom = box
    value = {
        "x": 100 * left / WIDTH,
        "y": 100 * top / HEIGHT,
        "width": 100 * (right - left) / WIDTH,
        "height": 100 * (bottom - top) / HEIGHT,
        "rotation": 0,
        **({} if label is None else {"rectanglelabels": [label]}),
    }
    return {**SIZE, "id": identity, "from_name": "r", "to_name": "i", "type": "rectanglelabels", "value": value}


def point(x_px: float, y_px: float, label: str | None = "Apple", *, positive: bool = True) -> dict[str, Any]:
    value = {"x": 100 * x_px / WIDTH, "y": 100 * y_px / HEIGHT, "width": 0.4, "labels": [label] if label else []}
    return {"id": f"{x_px} {y_px}", "from_name": "k", "to_name": "i", "type": "keypoint", "value": value,
            "is_positive": positive}  # fmt: skip


def ask(bench: Bench, *results: dict[str, Any], config: str = BRUSH, **task: Any) -> dict[str, Any]:
    """The item for one request; the message is looked at where the annotator reads it."""
    tasks = [{"id": 1, "data": {"image": "picture"}, **task}]
    (item,) = bench.predict_tasks(tasks, config, context={"result": list(results)}).items
    return item


def regions(item: dict[str, Any]) -> list[dict[str, Any]]:
    return [region for region in item["result"] if region["type"] != "textarea"]


def message(item: dict[str, Any]) -> str:
    (said,) = (region for region in item["result"] if region["type"] == "textarea")
    assert (said["from_name"], said["to_name"]) == ("said", "chat")
    (words,) = said["value"]["text"]
    assert isinstance(words, str)
    return words


def covers(region: dict[str, Any], *boxes: tuple[int, int, int, int]) -> bool:
    """Whether a brush region is these boxes, up to the model's grid of 32 cells a side."""
    truth = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    for left, top, right, bottom in boxes:
        truth[top:bottom, left:right] = True
    mask = brush_mask(region)
    return bool((mask & truth).sum() / (mask | truth).sum() > 0.8)


def test_a_phrase_becomes_a_mask_and_the_editor_gives_it_the_selected_label(bench: Bench) -> None:
    item = ask(bench, text("something red"))
    (region,) = regions(item)
    assert covers(region, *APPLES)
    assert "brushlabels" not in region["value"]
    assert message(item).startswith('"something red": found in 2 places')


def test_a_phrase_that_names_a_label_has_it(bench: Bench) -> None:
    for phrase in ("leaf", "LEAF | red", "no such thing | Green"):
        (region,) = regions(ask(bench, text(phrase)))
        assert region["value"]["brushlabels"] == ["Leaf"]
    (region,) = regions(ask(bench, text("green")))
    assert covers(region, LEAF)


def test_the_phrase_is_asked_instead_of_the_labels_own(bench: Bench) -> None:
    (region,) = regions(ask(bench, text("leaf")))
    assert brush_mask(region)[0].all()  # a word without a colour is white to the model
    assert not brush_mask(region)[30, 100]


def test_the_only_label_is_everyones(bench: Bench) -> None:
    config = BRUSH.replace('<Label value="Leaf" prompt="green"/>', "")
    (region,) = regions(ask(bench, text("green"), config=config))
    assert region["value"]["brushlabels"] == ["Apple"]
    assert covers(region, LEAF)


def test_a_bare_shape_without_label_is_one_result(bench: Bench) -> None:
    (region,) = regions(ask(bench, text("something red"), config=BARE))
    assert (region["from_name"], region["type"]) == ("b", "brush")
    shape, labelled = regions(ask(bench, text("apple | red"), config=BARE))
    assert shape["id"] == labelled["id"]
    assert labelled["value"]["labels"] == ["Apple"]


def test_the_same_phrase_asked_again_replaces_its_region(bench: Bench) -> None:
    first, again, other = (regions(ask(bench, text(t)))[0]["id"] for t in ("a red", "a red", "the red"))
    assert first == again != other
    assert regions(ask(bench, text("a red"), id=2))[0]["id"] != first


def test_what_is_not_there_is_said(bench: Bench) -> None:
    item = ask(bench, text("something blue"))
    assert regions(item) == []
    assert "error" not in item
    assert message(item).startswith('Nothing found for "something blue": at best 0.')


def test_a_rectangle_limits_the_mask_to_it(bench: Bench) -> None:
    (region,) = regions(ask(bench, rectangle((50, 10, 100, 50), "Apple")))
    assert covers(region, APPLES[1])
    mask = brush_mask(region)
    assert not mask[:, :50].any()
    (region,) = regions(ask(bench, rectangle((20, 25, 30, 35), "Apple")))
    assert brush_mask(region).sum() == 100  # cut where the rectangle ends, at full size


def test_what_is_small_counts_in_a_small_rectangle(bench: Bench) -> None:
    config = BRUSH.replace('name="b"', 'name="b" model_min_area="700"')
    assert regions(ask(bench, rectangle((55, 10, 85, 50), "Apple"), config=config)) == []
    (region,) = regions(ask(bench, rectangle((20, 25, 22, 26), "Apple")))
    assert brush_mask(region).sum() == 2  # less than the least area of the whole image


def test_nothing_is_invented_in_a_rectangle(bench: Bench) -> None:
    item = ask(bench, rectangle((50, 45, 80, 55), "Apple"))
    assert regions(item) == []
    assert message(item) == 'Nothing found: no "Apple" inside the area'


def test_a_rectangle_without_label_finds_the_surest_label(bench: Bench) -> None:
    (region,) = regions(ask(bench, rectangle((85, 10, 120, 50), None)))
    assert region["value"]["brushlabels"] == ["Leaf"]
    assert covers(region, LEAF)


def test_a_point_picks_the_part_under_it(bench: Bench) -> None:
    (region,) = regions(ask(bench, point(70, 30)))
    assert covers(region, APPLES[1])


def test_a_point_may_miss_by_a_little(bench: Bench) -> None:
    (region,) = regions(ask(bench, point(70, 30)))
    end = int(np.flatnonzero(brush_mask(region)[30]).max()) + 1
    reach = POINT_REACH * WIDTH
    assert regions(ask(bench, point(end + 0.9 * reach, 30))) == [region]
    item = ask(bench, point(end + 1.1 * reach, 30))
    assert regions(item) == []
    assert message(item) == 'Nothing found: no "Apple" within 2% of the image around the points'


def test_points_ask_for_parts_and_against_them(bench: Bench) -> None:
    (region,) = regions(ask(bench, point(30, 30), point(70, 30)))
    assert covers(region, *APPLES)
    (region,) = regions(ask(bench, point(30, 30), point(70, 30), point(31, 31, positive=False)))
    assert covers(region, APPLES[1])
    (region,) = regions(ask(bench, point(31, 31, positive=False)))
    assert covers(region, APPLES[1])


def test_the_same_part_clicked_twice_is_one_region(bench: Bench) -> None:
    first, again, other = (regions(ask(bench, point(x, 30)))[0]["id"] for x in (70, 72, 30))
    assert first == again != other


def test_a_point_without_label_says_what_is_there(bench: Bench) -> None:
    (region,) = regions(ask(bench, point(100, 30, None)))
    assert region["value"]["brushlabels"] == ["Leaf"]


def test_more_like_this_finds_others_and_not_itself(bench: Bench) -> None:
    draft = {"result": [rectangle(APPLES[0], "Apple")], "updated_at": "2026"}
    item = ask(bench, text("more like this"), drafts=[draft])
    (region,) = regions(item)
    assert covers(region, APPLES[1])
    assert region["value"]["brushlabels"] == ["Apple"]
    assert bench.model.encoded == ["masks"]


def test_more_like_what_stands_alone_finds_nothing(bench: Bench) -> None:
    draft = {"result": [rectangle(LEAF, "Leaf")], "updated_at": "2026"}
    item = ask(bench, text("more like this"), drafts=[draft])
    assert regions(item) == []
    assert message(item) == "Nothing found that is like it"


def test_what_a_tool_shows_is_part_of_the_answer(bench: Bench) -> None:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[20:40, 60:80] = True
    value = {"format": "rle", "rle": encode_mask(mask), "brushlabels": ["Apple"]}
    brush = {"id": "s", "from_name": "b", "to_name": "i", "type": "brushlabels", "value": value}
    (region,) = regions(ask(bench, brush))
    assert covers(region, *APPLES)


def test_the_image_is_encoded_once_for_all_questions(bench: Bench) -> None:
    for asked in (text("red"), text("green"), rectangle((0, 0, 60, 60), "Apple"), point(70, 30)):
        ask(bench, asked)
    assert bench.model.encoded == ["masks"]


def test_masks_come_before_boxes_and_the_config_may_say_otherwise(bench: Bench) -> None:
    both = BRUSH.replace("<BrushLabels", f'<RectangleLabels name="r" toName="i">{LABELS}</RectangleLabels><BrushLabels')
    assert [r["from_name"] for r in regions(ask(bench, text("some red"), config=both))] == ["b"]
    chosen = both.replace('name="ask"', 'name="ask" model_answer="r"')
    assert [r["from_name"] for r in regions(ask(bench, text("some red"), config=chosen))] == ["r", "r"]
    wrong = both.replace('name="ask"', 'name="ask" model_answer="said"')
    assert 'model_answer="said"' in ask(bench, text("some red"), config=wrong)["error"]


def test_nothing_asked_is_answered_by_nothing(bench: Bench) -> None:
    item = ask(bench)
    assert item["result"] == []
    assert bench.model.encoded == []


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([rectangle((10, 10, 20, 20), "Pear")], 'no control that draws answers has the label "Pear"'),
        ([rectangle((400, 10, 420, 20), "Apple")], "covers no pixel"),
        ([{**rectangle((1, 1, 2, 2), "Apple"), "to_name": "other"}], "add <BrushLabels>"),
        ([text("more like this")], "draw one"),
        ([{**text("red"), "value": {"text": 7}}], "the phrase is a number"),
        ([7], "a region in the context is a number"),
    ],
)
def test_what_cannot_be_answered_is_said_where_the_annotator_reads(
    bench: Bench, results: list[Any], reason: str
) -> None:
    item = ask(bench, *results)
    assert reason in item["error"]
    assert message(item) == item["error"]
    assert regions(item) == []


def test_a_model_without_masks_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MemoryImages({"picture": picture()}), ColourModel(can_segment=False))
    item = ask(bench, text("red"))
    assert "gives no masks" in message(item)
    bench.predictor.close()


def test_without_a_place_for_messages_the_item_has_them_alone(bench: Bench) -> None:
    config = BRUSH.replace('model_text="messages"', "")
    item = ask(bench, text("something blue"), config=config)
    assert item["result"] == []
    assert item["message"].startswith("Nothing found")
    assert "result" not in ask(bench, text("more like this"), config=config)


def test_an_answer_to_an_annotator_has_the_version_of_predictions(bench: Bench) -> None:
    answer = bench.predict(["picture"], BRUSH, context={"result": [text("red")]})
    assert answer.model_version == bench.predict(["picture"], BRUSH).model_version
    assert answer.items[0]["model_version"] == answer.model_version

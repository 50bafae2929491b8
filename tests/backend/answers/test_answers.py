"""Controls that draw nothing: choices, taxonomies, texts and rankers, for images and for their regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.label_studio.config import LabelPrompt
from tests.backend.answers.bench import Bench, Item, control, label
from tests.backend.fakes import ColourModel, MemoryImages, squares
from vlm_core.tags import TagCalibration


def values(results: list[Item], name: str) -> list[Any]:
    return [result["value"][result["type"]] for result in results if result["from_name"] == name]


def coloured(data_dir: Path, colour: str = "red", **changes: Any) -> Bench:
    """A bench whose one image has one colour."""
    return Bench(data_dir, MemoryImages({"plain": Image.new("RGB", (30, 20), colour)}), ColourModel(**changes))


# --- for each region

COLOURS = (label("red"), label("green"), label("blue"))


@pytest.mark.parametrize("kind", ["brushlabels", "polygonlabels", "rectanglelabels", "ellipse", "keypointlabels"])
def test_each_region_is_told_by_what_is_in_it(bench: Bench, kind: str) -> None:
    drawn = control(kind, label("Left", "red"), label("Right", "green"))
    per_region = control("choices", *COLOURS, name="colour", per_region=True)
    results = bench.one([per_region, drawn], {"image": "squares"})
    regions = [result for result in results if result["from_name"] == drawn.from_name]
    about = [result for result in results if result["from_name"] == "colour"]
    assert [result["value"]["choices"] for result in about] == [["red"], ["green"]]
    for region, said in zip(regions, about, strict=True):
        # the region's id, size and geometry, as the editor writes them, and none of its labels
        assert results.index(region) < results.index(said)
        assert said["type"] == "choices"
        assert said["id"] == region["id"]
        assert (said["original_width"], said["original_height"]) == (120, 60)
        geometry = {name: value for name, value in region["value"].items() if name != kind}
        assert said["value"] == geometry | {"choices": said["value"]["choices"]}


def test_regions_are_encoded_together_and_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(bench.model, ColourModel)
    batches: list[int] = []
    encode = bench.model.encode_image
    monkeypatch.setattr(
        bench.model, "encode_image", lambda images, **k: batches.append(len(images)) or encode(images, **k)
    )  # type: ignore[func-returns-value]
    drawn = control("rectanglelabels", label("Any", "red", "green"))
    asked = [control("choices", *COLOURS, name=name, per_region=True) for name in ("a", "b")]
    results = bench.one([drawn, *asked], {"image": "squares"})
    assert values(results, "a") == values(results, "b") == [["green"], ["red"]]
    assert batches == [1, 2]
    assert bench.model.encoded == ["masks", "tags", "tags"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 4),
        ({"only_labels": ("Left",)}, 2),
        ({"only_controls": ("boxes",)}, 2),
        ({"only_controls": ("boxes",), "only_labels": ("Left", "Other")}, 1),
        ({"only_labels": ("Other",)}, 0),
        ({"to_name": "j", "image_key": "image"}, 0),
    ],
)
def test_only_the_regions_that_the_editor_would_ask_about_are_answered(
    bench: Bench, limits: dict[str, Any], expected: int
) -> None:
    labels = (label("Left", "red"), label("Right", "green"))
    drawn = [control("rectanglelabels", *labels, name="boxes"), control("brushlabels", *labels, name="masks")]
    results = bench.one(
        [*drawn, control("choices", *COLOURS, name="c", per_region=True, **limits)], {"image": "squares"}
    )
    assert len(values(results, "c")) == expected


def test_nothing_drawn_is_nothing_asked(bench: Bench) -> None:
    controls = [control("brushlabels", label("blue")), control("choices", *COLOURS, per_region=True)]
    (item,) = bench.predict(controls, {"image": "squares"})
    assert item["result"] == []
    (alone,) = bench.predict(controls[:1], {"image": "squares"})
    assert item["score"] == alone["score"]
    assert bench.model.encoded == ["masks", "masks"]  # type: ignore[attr-defined]


def test_taxonomies_and_texts_may_be_asked_for_regions_too(bench: Bench) -> None:
    paths = (
        LabelPrompt("Warm", ("red",), path=("Colours", "Warm")),
        LabelPrompt("Cold", ("blue",), path=("Colours", "Cold")),
    )
    drawn = control("rectanglelabels", label("Any", "red"))
    asked = [
        control("taxonomy", *paths, per_region=True),
        control("textarea", *COLOURS, per_region=True, text="tags", top_k=1),
    ]
    results = bench.one([drawn, *asked], {"image": "squares"})
    assert values(results, "taxonomy") == [[["Colours", "Warm"]]]
    assert results[2]["value"]["text"][0].startswith("red: ")
    assert len({result["id"] for result in results}) == 1


# --- taxonomies

KINDS = (
    LabelPrompt("Warm", ("white",), path=("Warm",)),
    LabelPrompt("Red", ("red",), path=("Warm", "Red")),
    LabelPrompt("Cold", ("white",), path=("Cold",)),
    LabelPrompt("Green", ("green",), path=("Cold", "Green")),
    LabelPrompt("Red", ("black",), path=("Cold", "Red")),
)


def test_a_taxonomy_is_answered_with_the_path_of_its_best_leaf(tmp_path: Path) -> None:
    for colour, path in (("red", ["Warm", "Red"]), ("black", ["Cold", "Red"])):
        bench = coloured(tmp_path / colour, colour)
        (result,) = bench.one([control("taxonomy", *KINDS)], {"image": "plain"})
        assert result["value"] == {"taxonomy": [path]}
        assert result["type"] == "taxonomy"
        assert "original_width" not in result
        bench.close()
    bench = coloured(tmp_path / "white", "white")  # what describes it best is no leaf
    (result,) = bench.one([control("taxonomy", *KINDS)], {"image": "plain"})
    assert len(result["value"]["taxonomy"][0]) == 2
    bench.close()


def test_a_taxonomy_of_several_answers_gives_all_near_the_best(tmp_path: Path) -> None:
    bench = coloured(tmp_path, "#800000")  # between red and black
    (result,) = bench.one([control("taxonomy", *KINDS, multiple=True)], {"image": "plain"})
    assert sorted(result["value"]["taxonomy"]) == [["Cold", "Red"], ["Warm", "Red"]]
    (result,) = bench.one([control("taxonomy", *KINDS, multiple=True, top_k=1)], {"image": "plain"})
    assert len(result["value"]["taxonomy"]) == 1
    bench.close()


# --- texts


def test_a_text_area_is_filled_with_ranked_tags_and_their_scores(tmp_path: Path) -> None:
    bench = coloured(tmp_path)
    (result,) = bench.one([control("textarea", *COLOURS, text="tags")], {"image": "plain"})
    lines = [line.split(": ") for line in result["value"]["text"]]
    assert lines[0][0] == "red"
    assert sum(float(score) for _, score in lines) == pytest.approx(1, abs=0.02)
    assert [float(score) for _, score in lines] == sorted((float(score) for _, score in lines), reverse=True)
    assert result["score"] == pytest.approx(float(lines[0][1]), abs=0.01)
    (result,) = bench.one([control("textarea", *COLOURS, text="tags", top_k=2)], {"image": "plain"})
    assert len(result["value"]["text"]) == 2
    (result,) = bench.one([control("textarea", *COLOURS, text="tags", threshold=0.5)], {"image": "plain"})
    assert [line.split(": ")[0] for line in result["value"]["text"]] == ["red"]
    (item,) = bench.predict([control("textarea", *COLOURS, text="tags", threshold=0.999)], {"image": "plain"})
    assert item["result"] == []
    bench.close()


def test_scores_of_a_model_that_says_yes_or_no_need_not_sum_to_one(tmp_path: Path) -> None:
    bench = coloured(tmp_path, tag_calibration=TagCalibration(3.0, 20.0))
    (result,) = bench.one([control("textarea", *COLOURS, text="tags")], {"image": "plain"})
    assert [line.split(": ")[1] for line in result["value"]["text"]] == ["1.00"] * 3
    bench.close()


def test_a_text_area_may_name_the_phrases_that_found_something(bench: Bench) -> None:
    drawn = control("brushlabels", label("A", "blue", "red"), label("B", "black"), label("C", "green", "red"))
    text = control("textarea", text="phrases")
    results = bench.one([text, drawn], {"image": "squares"})
    assert results[0]["value"] == {"text": ["red", "green"]}
    (item,) = bench.predict([text, control("brushlabels", label("B", "black"))], {"image": "squares"})
    assert item["result"] == []


# --- rankers

ITEMS = [
    {"id": 7, "title": "blue"},
    {"id": "b", "body": "something", "html": "<p>black &amp; <b>red</b></p>"},
    {"id": 3, "title": "a", "body": "green"},
]


def ranker(**changes: Any) -> Any:
    return control("ranker", name="rank", to_name="list", items_from="results.items", **changes)


def test_items_of_the_task_are_ranked_by_how_well_they_describe_the_image(tmp_path: Path) -> None:
    bench = coloured(tmp_path)
    data = {"image": "plain", "results": {"items": ITEMS}}
    (result,) = bench.one([ranker(top_k=1)], data)  # the editor would not show items that are left out
    assert (result["type"], result["from_name"], result["to_name"]) == ("ranker", "rank", "list")
    (ids,) = result["value"]["ranker"].values()
    assert list(result["value"]["ranker"]) == ["rank"]
    assert ids[0] == "b"
    assert sorted(ids) == ["3", "7", "b"]
    assert 0 < result["score"] <= 1
    data = {"image": "plain", "results": {"items": ["green", "red", "blue"]}}
    (result,) = bench.one([ranker()], data)
    assert result["value"]["ranker"]["rank"][0] == "red"
    # equal texts keep their order
    data = {"image": "plain", "results": {"items": [{"id": n, "title": "red"} for n in (5, 4, 6)]}}
    (result,) = bench.one([ranker()], data)
    assert result["value"]["ranker"]["rank"] == ["5", "4", "6"]
    (item,) = bench.predict([ranker()], {"image": "plain", "results": {"items": []}})
    assert item["result"] == []
    bench.close()


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (None, 'no list in "results.items"'),
        ("red", 'no list in "results.items"'),
        ([{"title": "red"}], 'item 1 in "results.items" has no id'),
        ([{"id": 1, "title": "red"}, {"id": 2, "html": "<br/>"}], "item 2 in .* has no text"),
        ([{"id": 1, "title": "red"}, {"id": "1", "title": "blue"}], "several items with the id '1'"),
        ([3], "item 1 in .* is neither"),
        ([" "], "item 1 in .* is neither"),
    ],
)
def test_items_that_cannot_be_ranked_are_that_tasks_error(bench: Bench, items: Any, said: str) -> None:
    reason = bench.error([ranker()], {"image": "squares", "results": {"items": items}})
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(reason)


# --- together


def test_controls_of_all_kinds_share_one_encoding_for_masks_and_one_for_tags(bench: Bench) -> None:
    controls = [
        control("brushlabels", *COLOURS),
        control("choices", *COLOURS, multiple=True),
        control("taxonomy", *KINDS),
        control("textarea", *COLOURS, text="tags"),
        control("textarea", text="phrases", name="found"),
        ranker(),
    ]
    results = bench.one(controls, {"image": "squares", "results": {"items": ITEMS}})
    assert [result["from_name"] for result in results] == [
        "brushlabels", "brushlabels", "choices", "taxonomy", "textarea", "found", "rank"
    ]  # fmt: skip
    assert bench.model.encoded == ["masks", "tags"]  # type: ignore[attr-defined]


def test_a_model_that_sees_both_alike_encodes_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MemoryImages({"squares": squares()}), ColourModel(one_view=True))
    bench.one([control("brushlabels", *COLOURS), control("textarea", *COLOURS, text="tags")], {"image": "squares"})
    assert bench.model.encoded == ["both"]  # type: ignore[attr-defined]
    bench.close()


def test_a_model_without_masks_answers_what_needs_none(tmp_path: Path) -> None:
    bench = coloured(tmp_path, can_segment=False)
    controls = [
        control("brushlabels", *COLOURS),
        control("choices", *COLOURS, per_region=True, name="each"),
        control("textarea", text="phrases", name="found"),
        control("taxonomy", *KINDS),
    ]
    results = bench.one(controls, {"image": "plain"})
    assert [result["from_name"] for result in results] == ["taxonomy"]
    assert "gives no masks" in bench.error(controls[:3], {"image": "plain"})
    bench.close()

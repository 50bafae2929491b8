"""Label Studio's exports: every kind of region, the annotations that count, images found, and what is left out."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.label_studio.brush import encode_mask
from backend.label_studio.export import convert_label_studio
from vlm_core.convert.dataset import DatasetWriter
from vlm_core.data import JsonlPairs, JsonlPhrases, read_pairs, read_phrases
from vlm_core.errors import DataError

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="b" toName="image"><Label value="car" prompt="a car | an auto"/><Label value="tree"/></BrushLabels>
<PolygonLabels name="p" toName="image"><Label value="House" alias="house" prompt="a house"/></PolygonLabels>
<Choices name="scene" toName="image"><Choice value="street" prompt="a street scene"/><Choice value="field"/></Choices>
</View>"""
Box = tuple[int, int, int, int]


def filled(left: int, top: int, right: int, bottom: int) -> np.ndarray[Any, Any]:
    mask = np.zeros((10, 20), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def region(kind: str, label: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": f"{kind}-{label}",
        "type": kind,
        "from_name": "b",
        "to_name": "image",
        "original_width": 20,
        "original_height": 10,
        "image_rotation": 0,
        "value": {**value, kind: [label]},
        **more,
    }


def brush(label: str, box: Box, **more: Any) -> dict[str, Any]:
    return region("brushlabels", label, {"format": "rle", "rle": encode_mask(filled(*box))}, **more)


def rectangle(label: str, box: Box, **more: Any) -> dict[str, Any]:
    left, top, right, bottom = box
    value = {"x": left * 5, "y": top * 10, "width": (right - left) * 5, "height": (bottom - top) * 10, "rotation": 0}
    return region("rectanglelabels", label, value, **more)


def polygon(label: str, box: Box, **more: Any) -> dict[str, Any]:
    left, top, right, bottom = (side * scale for side, scale in zip(box, (5, 10, 5, 10), strict=True))
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return region("polygonlabels", label, {"points": points, "closed": True}, **more)


def bitmask(label: str, box: Box) -> dict[str, Any]:
    picture = np.zeros((10, 20, 4), dtype=np.uint8)
    picture[..., 3] = 255 * filled(*box)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return region("bitmasklabels", label, {"imageDataURL": url})


def keypoint(label: str) -> dict[str, Any]:
    return region("keypointlabels", label, {"x": 5, "y": 5, "width": 1})


def choice(*labels: str, name: str = "scene") -> dict[str, Any]:
    return {"id": "c", "type": "choices", "from_name": name, "to_name": "image", "value": {"choices": list(labels)}}


def annotation(*result: dict[str, Any], by: int = 1, at: str = "2026-01-01", **more: Any) -> dict[str, Any]:
    return {"id": 1, "completed_by": by, "updated_at": at, "result": list(result), "was_cancelled": False, **more}


def task(uri: str, *annotations: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return {"id": number, "data": {"image": uri}, "annotations": list(annotations)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / f"images/{name}")
    return tmp_path


Convert = Callable[..., DatasetWriter]


@pytest.fixture
def convert(folder: Path) -> Convert:
    def run(*tasks: object, config: str | None = None, **options: Any) -> DatasetWriter:
        (folder / "export.json").write_text(json.dumps(tasks))
        with DatasetWriter(folder / "out", **options) as writer:
            convert_label_studio(folder / "export.json", folder / "images", writer, config=config)
        return writer

    return run


def masks(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """By phrase, of the one image that was converted."""
    (sample,) = JsonlPhrases(folder / "out/phrases.jsonl").every_sample()
    return dict(zip(sample.phrases, sample.masks.astype(bool), strict=True))


def reasons(writer: DatasetWriter) -> dict[str, int]:
    return {reason: entry.count for reason, entry in writer.summary.left_out.items()}


@pytest.mark.parametrize("draw", [brush, rectangle, polygon, bitmask])
def test_each_kind_of_region_has_its_pixels(
    folder: Path, convert: Convert, draw: Callable[..., dict[str, Any]]
) -> None:
    writer = convert(task("a.png", annotation(draw("car", (2, 1, 9, 6)))))
    assert list(masks(folder)) == ["car"]
    assert (masks(folder)["car"] == filled(2, 1, 9, 6)).all()
    assert writer.summary.left_out == {}


def test_an_ellipse_has_its_pixels(folder: Path, convert: Convert) -> None:
    value = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0}  # 2 px and 1 px about (10, 5)
    convert(task("a.png", annotation(region("ellipselabels", "car", value))))
    assert (masks(folder)["car"] == filled(8, 4, 12, 6)).all()


def test_the_config_gives_phrases_aliases_and_what_is_absent(folder: Path, convert: Convert) -> None:
    convert(task("a.png", annotation(brush("car", (0, 0, 3, 3)), polygon("house", (5, 5, 9, 9)))), config=CONFIG)
    found = masks(folder)
    assert list(found) == ["a car", "an auto", "tree", "a house"]
    assert (found["a car"] == filled(0, 0, 3, 3)).all()
    assert (found["an auto"] == filled(0, 0, 3, 3)).all()
    assert (found["a house"] == filled(5, 5, 9, 9)).all()
    rows = read_phrases(folder / "out/phrases.jsonl")
    assert [row.phrase for row in rows if row.mask is None] == ["tree"]


def test_without_a_config_nothing_is_said_to_be_absent(folder: Path, convert: Convert) -> None:
    tasks = [
        task("a.png", annotation(brush("car", (0, 0, 3, 3)))),
        task("b.png", annotation(brush("tree", (0, 0, 1, 1)))),
    ]
    convert(*tasks)
    rows = read_phrases(folder / "out/phrases.jsonl")
    assert [(row.image.name, row.phrase, row.mask is None) for row in rows] == [
        ("a.png", "car", False),
        ("b.png", "tree", False),
    ]


def test_a_label_with_a_region_that_cannot_be_read_is_neither_there_nor_absent(folder: Path, convert: Convert) -> None:
    broken = polygon("House", (5, 5, 9, 9))  # by its value, not its alias
    broken["value"]["points"] = [[1, 1]]
    tasks = task("a.png", annotation(broken, keypoint("tree"), brush("car", (0, 0, 3, 3))))
    writer = convert(tasks, config=CONFIG)
    assert list(masks(folder)) == ["a car", "an auto"]
    assert reasons(writer) == {
        "a region: a polygon needs three or more points [x, y]": 1,
        "a region: a region of type 'keypointlabels' has no area": 1,
    }
    first = next(iter(writer.summary.left_out.values()))
    assert first.examples == ["region polygonlabels-House of task 1"]


def test_bare_shapes_answers_about_regions_and_phrases_of_tasks(folder: Path, convert: Convert) -> None:
    config = """<View><Image name="image" value="$image"/>
    <Labels name="what" toName="image"><Label value="car" prompt="a car"/><Label value="target"
    model_prompt_from="$caption"/></Labels><Rectangle name="b" toName="image"/>
    <Choices name="scene" toName="image" perRegion="true"><Choice value="dirty"/></Choices>
    <List name="list" value="$items"/><Ranker name="rank" toName="list"/></View>"""

    def drawn(label: str, box: Box) -> list[dict[str, Any]]:
        shape = rectangle("", box) | {"id": label, "type": "rectangle"}
        geometry = {key: side for key, side in shape["value"].items() if key != "rectanglelabels"}
        return [
            shape | {"value": geometry},
            shape | {"value": {**geometry, "labels": [label]}, "type": "labels", "from_name": "what"},
            shape | {"value": {**geometry, "choices": ["dirty"]}, "type": "choices", "from_name": "scene"},
        ]

    result = [*drawn("car", (0, 0, 3, 3)), *drawn("target", (5, 5, 9, 9))]
    said = task("a.png", annotation(*result))
    said["data"]["caption"] = " the left  one"
    writer = convert(said, config=config)
    assert {phrase: mask.sum() for phrase, mask in masks(folder).items()} == {"a car": 9, "the left one": 16}
    assert writer.summary.left_out == {}
    assert not (folder / "out/pairs.jsonl").exists()


def test_without_a_config_bare_shapes_have_their_labels_and_regions_answers_are_no_pairs(
    folder: Path, convert: Convert
) -> None:
    shape = rectangle("", (0, 0, 3, 3)) | {"type": "rectangle"}
    geometry = {key: side for key, side in shape["value"].items() if key != "rectanglelabels"}
    result = [
        shape | {"value": geometry},
        shape | {"value": {**geometry, "labels": ["car"]}, "type": "labels", "from_name": "what"},
        shape | {"value": {**geometry, "choices": ["dirty"]}, "type": "choices", "from_name": "scene"},
    ]
    writer = convert(task("a.png", annotation(*result)))
    assert {phrase: mask.sum() for phrase, mask in masks(folder).items()} == {"car": 9}
    assert writer.summary.left_out == {}
    assert not (folder / "out/pairs.jsonl").exists()


def test_a_task_without_its_phrase_teaches_nothing_of_that_label(folder: Path, convert: Convert) -> None:
    config = """<View><Image name="image" value="$image"/><BrushLabels name="b" toName="image">
    <Label value="target" model_prompt_from="$caption"/><Label value="car"/></BrushLabels></View>"""
    result = [brush("target", (0, 0, 3, 3)), brush("car", (5, 5, 9, 9))]
    writer = convert(task("a.png", annotation(*result)), config=config)
    assert list(masks(folder)) == ["car"]
    assert reasons(writer) == {"the task's data has no phrase in 'caption'": 1}


def test_a_keypoint_beside_a_mask_takes_nothing_from_it(folder: Path, convert: Convert) -> None:
    convert(task("a.png", annotation(keypoint("car"), brush("car", (0, 0, 3, 3)))), config=CONFIG)
    assert (masks(folder)["a car"] == filled(0, 0, 3, 3)).all()


def test_strokes_win_over_boxes_of_the_same_label(folder: Path, convert: Convert) -> None:
    convert(task("a.png", annotation(rectangle("car", (0, 0, 9, 9)), brush("car", (1, 1, 3, 3)))))
    assert (masks(folder)["car"] == filled(1, 1, 3, 3)).all()


def test_skipped_and_older_annotations_do_not_count_and_ground_truth_wins(folder: Path, convert: Convert) -> None:
    wrong = brush("car", (10, 0, 20, 10))
    writer = convert(
        task(
            "a.png",
            annotation(wrong, was_cancelled=True),
            annotation(wrong, by=2, at="2026-01-01"),
            annotation(brush("car", (0, 0, 2, 2)), by=2, at="2026-01-02", ground_truth=True),
            annotation(wrong, by=3, at="2026-01-03"),
        )
    )
    assert (masks(folder)["car"] == filled(0, 0, 2, 2)).all()
    assert reasons(writer) == {
        "the annotation was skipped by its annotator": 1,
        "a newer annotation of the same annotator, or a ground truth, counts instead": 2,
    }


def test_annotators_vote_for_pixels_and_choices(folder: Path, convert: Convert) -> None:
    convert(
        task(
            "a.png",
            annotation(brush("car", (0, 0, 4, 4)), choice("street"), by=1),
            annotation(brush("car", (2, 0, 6, 4)), choice("street"), by=2),
            annotation(choice("field"), by=3),
        ),
        config=CONFIG,
    )
    assert (masks(folder)["a car"] == filled(2, 0, 4, 4)).all()  # two of three
    assert [row.text for row in read_pairs(folder / "out/pairs.jsonl")] == ["a street scene"]


def test_choices_become_pairs_without_a_config_too(folder: Path, convert: Convert) -> None:
    convert(
        task("a.png", annotation(choice("street", "field"))), task("b.png", annotation(choice("night", name="time")))
    )
    pairs = JsonlPairs(folder / "out/pairs.jsonl")
    assert list(pairs.texts.values()) == [["street", "field"], ["night"]]
    assert not (folder / "out/phrases.jsonl").exists()


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("/data/upload/7/1a2b3c4d-c d.png", "upload/7/1a2b3c4d-c d.png"),
        ("/data/upload/7/1a2b3c4d-c%20d.png", "7/1a2b3c4d-c d.png"),
        ("http://label.studio:8080/data/upload/7/1a2b3c4d-c.png", "1a2b3c4d-c.png"),
        ("/data/upload/7/1a2b3c4d-c.png", "c.png"),  # as it was called before
        ("/data/local-files/?d=cam%201/c+1.png", "cam 1/c+1.png"),
        ("/data/local-files/?x=1&d=store/cam/c.png", "cam/c.png"),
        ("s3://bucket/store/c.png", "store/c.png"),
        ("https://host/c.png?signature=abc", "c.png"),
        ("store/c#1.png", "store/c#1.png"),
    ],
)
def test_images_are_found_by_the_end_of_their_address(folder: Path, convert: Convert, uri: str, file: str) -> None:
    path = folder / "images" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(path)
    convert(task(uri, annotation(brush("car", (0, 0, 2, 2)))))
    (row,) = read_phrases(folder / "out/phrases.jsonl")
    assert row.image == path.resolve()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("/data/upload/7/none.png", "the image is not in the folder"),
        ("/data/local-files/?d=../a.png", "the image's address is broken"),
        ("https://[/a.png", "the image's address is broken"),
        ("data:image/png;base64,AAAA", "the image is inside the task, as a data URL"),
        ("x" * 300 + ".png", "the image is not in the folder"),
        ("text.png", "the image cannot be read"),
    ],
)
def test_images_that_are_not_found_are_counted(folder: Path, convert: Convert, uri: str, reason: str) -> None:
    (folder / "images/text.png").write_text("no image")
    good = task("a.png", annotation(brush("car", (0, 0, 2, 2))))
    writer = convert(task(uri, annotation(brush("car", (0, 0, 2, 2)))), good)
    assert reasons(writer) == {reason: 1}
    assert writer.summary.files["phrases.jsonl"]["images"] == 1


def test_different_addresses_with_one_file_are_not_guessed(convert: Convert) -> None:
    tasks = [task(f"/data/upload/{i}/a.png", annotation(brush("car", (0, 0, 2, 2)))) for i in (1, 2)]
    writer = convert(*tasks, task("b.png", annotation(brush("car", (0, 0, 2, 2)))))
    assert reasons(writer)["different addresses lead to one file: give a folder that tells them apart"] == 1
    assert writer.summary.files["phrases.jsonl"]["images"] == 1


def test_of_two_tasks_with_one_image_the_one_changed_last_counts(folder: Path, convert: Convert) -> None:
    tasks = [task("a.png", annotation(brush("car", (0, 0, i, i)), at=f"2026-01-0{4 - i}")) for i in (1, 2)]
    writer = convert(*tasks)
    assert (masks(folder)["car"] == filled(0, 0, 1, 1)).all()
    assert reasons(writer) == {"the image is in another task too, whose annotation is newer": 1}


def test_regions_of_another_size_are_left_out(convert: Convert) -> None:
    writer = convert(
        task("a.png", annotation(brush("car", (0, 0, 2, 2)), rectangle("x", (0, 0, 1, 1), original_width=40)))
    )
    assert reasons(writer) == {"a region: it states a size of N x N, but the image has N x N": 1}


def test_several_images_in_a_task_need_the_config(folder: Path, convert: Convert) -> None:
    both = {
        "id": 1,
        "data": {"left": "a.png", "right": "b.png"},
        "annotations": [annotation(brush("car", (0, 0, 2, 2), to_name="l"), brush("car", (5, 5, 9, 9), to_name="r"))],
    }
    with pytest.raises(DataError, match=r"several images in a task \(l, r\): give --config"):
        convert(both)
    config = """<View><Image name="l" value="$left"/><Image name="r" value="$right"/>
    <BrushLabels name="b" toName="l"><Label value="car"/></BrushLabels>
    <BrushLabels name="c" toName="r"><Label value="car"/></BrushLabels></View>"""
    convert(both, config=config)
    left, right = JsonlPhrases(folder / "out/phrases.jsonl").every_sample()
    assert (left.masks[0] == filled(0, 0, 2, 2)).all()
    assert (right.masks[0] == filled(5, 5, 9, 9)).all()


def test_what_is_no_export_is_named(folder: Path, convert: Convert) -> None:
    with pytest.raises(DataError, match="JSON-MIN will not do"):
        convert({"id": 1, "image": "a.png", "b": [{"x": 1}], "annotator": 1})
    with pytest.raises(DataError, match="labelling config"):
        convert(task("a.png", annotation(brush("car", (0, 0, 2, 2)))), config="<View>")


def test_parts_are_by_image(folder: Path, convert: Convert) -> None:
    tasks = []
    for i in range(30):
        Image.new("RGB", (20, 10)).save(folder / f"images/{i}.png")
        tasks.append(
            task(f"{i}.png", annotation(brush("car", (0, 0, 2, 2)), brush("tree", (4, 4, 5, 5)), choice("street")))
        )
    convert(*tasks, val_share=0.4)
    images = {
        name: {json.loads(line)["image"] for line in (folder / "out" / f"{name}.jsonl").read_text().splitlines()}
        for name in ("phrases-train", "phrases-val", "pairs-train", "pairs-val")
    }
    assert images["phrases-train"] == images["pairs-train"]
    assert images["phrases-val"] == images["pairs-val"]
    assert not images["phrases-train"] & images["phrases-val"]
    assert sum(map(len, images.values())) == 60


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "images", "lines", "left_out"),
    [
        ("polygons.json", 1, {"Airplane": 1}, {}),
        ("rotated_boxes.json", 3, {"Butterfly": 2, "butterfly": 1}, {}),
        ("choices.json", 2, {"Car": 2}, {}),
        (
            "polygon_rectangle_keypoint.json",
            1,
            {"rectangle_label": 1, "polygon_label": 1},
            {"a region: a region of type 'keypointlabels' has no area": 2},
        ),
    ],
)
def test_exports_of_label_studio_itself(
    tmp_path: Path, name: str, images: int, lines: dict[str, int], left_out: dict[str, int]
) -> None:
    data = os.environ.get("VLM_REALDATA")
    if not data:
        pytest.skip("VLM_REALDATA is not set")
    export = Path(data) / "label_studio_exports" / name
    for item in json.loads(export.read_text()):
        first = item["annotations"][0]["result"][0]
        path = tmp_path / "images" / item["data"]["image"].rsplit("/", 1)[-1]
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (first["original_width"], first["original_height"])).save(path, "PNG")
    with DatasetWriter(tmp_path / "out") as writer:
        convert_label_studio(export, tmp_path / "images", writer)
    assert reasons(writer) == left_out
    assert writer.summary.phrases == lines
    assert writer.summary.files["phrases.jsonl"]["images"] == images
    samples = list(JsonlPhrases(tmp_path / "out/phrases.jsonl").every_sample())
    assert all(sample.masks.any(axis=(1, 2)).all() for sample in samples)

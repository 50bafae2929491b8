"""COCO: masks equal pycocotools' (the reference), one mask a category, and everything broken is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as reference

from vlm_core.convert.coco import convert_captions, convert_instances
from vlm_core.convert.coco_masks import segmentation_mask
from vlm_core.convert.dataset import DatasetWriter, LeftOutError
from vlm_core.data import JsonlPairs, JsonlPhrases
from vlm_core.errors import DataError

SIDES = st.integers(1, 40)
COORDINATES = st.floats(-20, 60) | st.integers(-40, 120).map(lambda value: value / 2)
OUTLINES = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=9).map(
    lambda points: [number for point in points for number in point]
)


@given(outlines=st.lists(OUTLINES, min_size=1, max_size=3), height=SIDES, width=SIDES)
def test_outlines_are_filled_as_the_reference_does(outlines: list[list[float]], height: int, width: int) -> None:
    expected = reference.decode(reference.merge(reference.frPyObjects(outlines, height, width)))
    assert (segmentation_mask(outlines, (height, width)) == expected.astype(bool)).all()


@given(mask=arrays.arrays(np.bool_, st.tuples(SIDES, SIDES)), scale=st.integers(1, 30))
def test_packed_run_lengths_are_read_as_the_reference_writes_them(mask: np.ndarray[Any, Any], scale: int) -> None:
    large = mask.repeat(scale, axis=0)  # long runs take several characters
    packed = reference.encode(np.asfortranarray(large.astype(np.uint8)))
    read = segmentation_mask({"size": list(large.shape), "counts": packed["counts"].decode()}, large.shape)
    assert (read == large).all()


def test_run_lengths_go_down_the_columns() -> None:
    mask = segmentation_mask({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
    assert mask.astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "no segmentation"),
        (None, "no segmentation"),
        ([[0, 0, 2, 2]], "three or more points"),  # a box is no outline
        ([[0, 0, 2, 2, 3]], "three or more points"),
        ([["a", 0, 2, 2, 3, 3]], "three or more points"),
        ([0, 0, 2, 2, 3, 3], "three or more points"),  # not nested
        ([[0, 0, float("nan"), 2, 3, 3]], "not a number"),
        ([[0, 0, 1e9, 2, 3, 3]], "far outside"),
        ([[0, 0, 1e5, 1e5] * 20], "longer than"),
        ({"size": [3, 2], "counts": [6]}, "another size"),
        ({"size": [2, 3], "counts": [5]}, "do not fill"),  # the reference fills up with what is in memory
        ({"size": [2, 3], "counts": [5, 2, -1]}, "do not fill"),
        ({"size": [2, 3], "counts": [5.0, 1.0]}, "not whole numbers"),
        ({"size": [2, 3], "counts": ""}, "do not fill"),
        ({"size": [2, 3], "counts": "o"}, "packed run lengths are broken"),  # more is said to follow
        ({"size": [2, 3], "counts": "ä"}, "packed run lengths are broken"),
    ],
)
def test_broken_segmentations_have_a_reason(segmentation: object, reason: str) -> None:
    with pytest.raises(LeftOutError, match=reason):
        segmentation_mask(segmentation, (2, 3))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "train2017"
    folder.mkdir()
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (6, 4)).save(folder / name)
    return folder


def square(left: int, top: int, right: int, bottom: int) -> list[float]:
    """An outline that COCO fills as the pixels left..right-1, top..bottom-1."""
    return [left, top, right, top, right, bottom, left, bottom]


def filled(left: int, top: int, right: int, bottom: int) -> np.ndarray[Any, Any]:
    mask = np.zeros((4, 6), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def write(path: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    document = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 6} for i in (1, 2, 3)],
        "annotations": [{"id": 100 + i, **annotation} for i, annotation in enumerate(annotations)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "traffic  light"}, {"id": 11, "name": "cat"}],
        **changes,
    }
    path.write_text(json.dumps(document))
    return path


def instance(image: int, category: int, segmentation: object, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


def test_all_objects_of_a_category_and_its_crowds_are_one_mask(tmp_path: Path, images: Path) -> None:
    crowd = filled(5, 3, 6, 4)
    runs = reference.encode(np.asfortranarray(crowd.astype(np.uint8)))["counts"].decode()
    path = write(
        tmp_path / "instances.json",
        [
            instance(1, 7, [square(0, 0, 2, 2)]),
            instance(2, 9, {"size": [4, 6], "counts": [0, 4, 20]}),  # the first column
            instance(1, 7, [square(4, 1, 6, 3), square(0, 3, 1, 4)]),
            instance(1, 7, {"size": [4, 6], "counts": runs}, crowd=1),
        ],
    )
    with DatasetWriter(tmp_path / "out") as writer:
        convert_instances(path, images, writer)
    samples = list(JsonlPhrases(tmp_path / "out/phrases.jsonl").every_sample())
    assert [sample.phrases for sample in samples] == [("dog",), ("traffic light",)]
    dogs = filled(0, 0, 2, 2) | filled(4, 1, 6, 3) | filled(0, 3, 1, 4) | crowd
    assert (samples[0].masks[0] == dogs).all()
    assert (samples[1].masks[0] == filled(0, 0, 1, 4)).all()
    assert writer.summary.left_out == {}
    assert writer.summary.phrases == {"dog": 1, "traffic light": 1}


def test_what_cannot_be_read_is_counted_and_says_nothing_about_its_category(tmp_path: Path, images: Path) -> None:
    (images / "3.png").unlink()
    path = write(
        tmp_path / "instances.json",
        [
            instance(1, 7, [square(0, 0, 2, 2)]),
            instance(1, 7, [[0, 0, 1]]),  # so where dogs are is not known
            instance(1, 8, [square(0, 0, 2, 2)]),
            instance(1, 9, [square(0, 0, 2, 2)]),
            instance(1, 9, [square(-9, -9, -5, -5)]),  # outside: no loss
            instance(3, 9, [square(0, 0, 2, 2)]),
            instance(4, 9, [square(0, 0, 2, 2)]),
        ],
    )
    with DatasetWriter(tmp_path / "out") as writer:
        convert_instances(path, images, writer, absent=3)
    assert {reason: entry.count for reason, entry in writer.summary.left_out.items()} == {
        "the annotation's image is not in the file": 1,
        "an outline is no list of three or more points": 1,
        "the annotation's category is not in the file": 1,
        "the segmentation covers no pixel": 1,
        "another object of the category could not be read": 1,
        "the image is not in the folder": 1,
    }
    assert writer.summary.left_out["an outline is no list of three or more points"].examples == [
        "annotation 101 of 1.png"
    ]
    first, second = JsonlPhrases(tmp_path / "out/phrases.jsonl").every_sample()
    assert first.phrases == ("traffic light", "cat")  # neither is the dog there nor absent
    assert [bool(mask.any()) for mask in first.masks] == [True, False]
    assert sorted(second.phrases) == ["cat", "dog", "traffic light"]
    assert not second.masks.any()


def test_parts_are_by_image_for_phrases_and_captions_alike_and_again_the_same(tmp_path: Path, images: Path) -> None:
    entries = []
    for i in range(1, 41):
        Image.new("RGB", (6, 4)).save(images / f"{i}.png")
        entries.append({"id": i, "file_name": f"{i}.png", "height": 4, "width": 6})
    objects = [instance(i, category, [square(0, 0, 2, 2)]) for category in (7, 9) for i in range(1, 41)]
    captions = [{"image_id": i, "caption": f"picture {i} {k}"} for k in (1, 2) for i in range(1, 41)]
    instances = write(tmp_path / "instances.json", objects, images=entries)
    texts = write(tmp_path / "captions.json", captions, images=entries, categories=[])
    for out in ("out", "again"):
        with DatasetWriter(tmp_path / out, val_share=0.3, seed=5) as writer:
            convert_instances(instances, images, writer, absent=1)
            convert_captions(texts, images, writer)
    parts: dict[str, dict[str, set[str]]] = {}
    for kind in ("phrases", "pairs"):
        for part in ("train", "val"):
            lines = (tmp_path / f"out/{kind}-{part}.jsonl").read_text().splitlines()
            parts.setdefault(kind, {})[part] = {json.loads(line)["image"] for line in lines}
    assert parts["phrases"] == parts["pairs"]
    assert not parts["pairs"]["train"] & parts["pairs"]["val"]
    assert len(parts["pairs"]["train"] | parts["pairs"]["val"]) == 40
    pairs = JsonlPairs(tmp_path / "out/pairs-val.jsonl")
    assert all(len(texts) == 2 for texts in pairs.texts.values())
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert len(files) == 4 + 80
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_files_of_another_kind_are_named(tmp_path: Path, images: Path) -> None:
    with DatasetWriter(tmp_path / "out") as writer:
        with pytest.raises(DataError, match="through --captions"):
            convert_instances(write(tmp_path / "captions.json", [], categories=[]), images, writer)
        with pytest.raises(DataError, match='has no "images"'):
            convert_captions(write(tmp_path / "other.json", [], images=[]), images, writer)
    assert not list((tmp_path / "out").iterdir())


def test_captions_without_text_are_counted(tmp_path: Path, images: Path) -> None:
    path = write(tmp_path / "c.json", [{"image_id": 1, "caption": " A dog.\n"}, {"image_id": 1, "caption": " "}])
    with DatasetWriter(tmp_path / "out") as writer:
        convert_captions(path, images, writer)
    assert list(JsonlPairs(tmp_path / "out/pairs.jsonl").vocabulary()) == ["A dog."]
    assert writer.summary.left_out["the annotation has no caption"].examples == ["annotation 101"]

"""PhraseCut: outlines filled as its evaluation does, its splits, and phrases that are true of nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm_core.convert.dataset import DatasetWriter, LeftOutError
from vlm_core.convert.phrasecut import convert_phrasecut, polygons_mask
from vlm_core.data import JsonlPhrases, read_phrases
from vlm_core.errors import DataError, InputError

SQUARE = [[1, 1], [3, 1], [3, 2], [1, 2]]


def task(image: int, phrase: str, polygons: object = None) -> dict[str, Any]:
    return {
        "task_id": f"{image}__{phrase}",
        "image_id": image,
        "ann_ids": [1],
        "instance_boxes": [[1, 1, 3, 2]],
        "Polygons": [[SQUARE]] if polygons is None else polygons,
        "phrase": phrase,
        "phrase_structure": {"name": phrase, "attributes": [], "relation_ids": [], "relation_descriptions": []},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(1, 5):
        Image.new("RGB", (6, 4)).save(tmp_path / f"images/{i}.jpg")
    sizes = [{"image_id": i, "width": 6, "height": 4, "split": "train"} for i in range(1, 5)]
    (tmp_path / "image_data_split3000.json").write_text(json.dumps(sizes))
    return tmp_path


def convert(folder: Path, out: str = "out", seed: int = 0, **options: Any) -> DatasetWriter:
    with DatasetWriter(folder / out, seed=seed) as writer:
        convert_phrasecut(folder, writer, **options)
    return writer


def write(folder: Path, split: str, *tasks: Any) -> None:
    (folder / f"refer_{split}.json").write_text(json.dumps(tasks))


def test_polygons_cover_their_own_outline_and_corners_are_cut_to_pixels() -> None:
    mask = polygons_mask([[SQUARE, [[5.9, 3.2], [5.1, 3.9]]], [[[0, 0]]]], (4, 6))
    assert mask.astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0],  # one point is nothing
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize(
    ("polygons", "reason"),
    [
        (None, "no lists of points"),
        ([SQUARE], "no lists of points"),  # a level is missing
        ([[[[1, 1, 1]]]], "no lists of points"),
        ([[[["1", 1]]]], "no lists of points"),
        ([[[[float("nan"), 1], [2, 2]]]], "not a number"),
        ([[[[1e9, 1], [2, 2]]]], "far outside"),
        ([[[[50, 50], [60, 50], [60, 60]]]], "cover no pixel"),
        ([], "cover no pixel"),
    ],
)
def test_broken_polygons_have_a_reason(polygons: object, reason: str) -> None:
    with pytest.raises(LeftOutError, match=reason):
        polygons_mask(polygons, (4, 6))


def test_each_split_is_a_file_with_the_same_masks(folder: Path) -> None:
    write(folder, "train", task(1, "black dog"), task(2, "dog", [[[[0, 0], [0, 3]]]]), task(1, "dog on grass"))
    write(folder, "miniv", task(3, "tree"))
    writer = convert(folder)
    assert list(writer.summary.files) == ["phrases-train.jsonl", "phrases-miniv.jsonl"]
    first, second = JsonlPhrases(folder / "out/phrases-train.jsonl").every_sample()
    assert first.phrases == ("black dog", "dog on grass")
    expected = np.zeros((4, 6))
    expected[1:3, 1:4] = 1
    assert (first.masks == expected).all()
    assert second.masks[0].sum(axis=0).tolist() == [4, 0, 0, 0, 0, 0]
    assert list(convert(folder, splits=["miniv"]).summary.files) == ["phrases-miniv.jsonl"]


def test_what_cannot_be_used_is_counted(folder: Path) -> None:
    Image.new("RGB", (7, 4)).save(folder / "images/2.jpg")  # as 17 of Visual Genome's
    (folder / "images/3.jpg").unlink()
    tasks = [task(1, "a"), task(2, "b"), task(3, "c"), task(9, "d"), task(1, " "), task(1, "e", [[[["x"]]]]), 5]
    write(folder, "train", *tasks)
    left_out = convert(folder).summary.left_out
    assert {reason: entry.examples for reason, entry in left_out.items()} == {
        "the image has another size than the data says": ["task 2__b"],
        "the image is not in the folder": ["task 3__c"],
        "the phrase's image is not in image_data_split3000.json": ["task 9__d", "task None"],
        "the phrase is blank or no text": ["task 1__ "],
        "the polygons are no lists of points": ["task 1__e"],
    }


def many(folder: Path) -> None:
    for i in range(1, 101):
        Image.new("RGB", (6, 4)).save(folder / f"images/{i}.jpg")
    sizes = [{"image_id": i, "width": 6, "height": 4} for i in range(1, 101)]
    (folder / "image_data_split3000.json").write_text(json.dumps(sizes))
    words = ["dog", "black dog", "Dog on grass", "tree", "tall tree", "car", "red car", "sky"]
    write(folder, "val", *(task(i, words[(i + k * k) % 8]) for i in range(1, 101) for k in range(4)))


def test_negatives_are_written_once_and_never_true_by_their_words(folder: Path) -> None:
    many(folder)
    writer = convert(folder, negatives=0.2)
    rows = read_phrases(folder / "out/phrases-val.jsonl")
    assert len(rows) == 400
    own: dict[str, list[set[str]]] = {}
    for line in json.loads((folder / "refer_val.json").read_text()):
        own.setdefault(f"{line['image_id']}.jpg", []).append(set(line["phrase"].casefold().split()))
    absent = [row for row in rows if row.mask is None]
    assert len(absent) / 400 == pytest.approx(0.2, abs=0.08)  # four deviations of the binomial
    for row in absent:
        assert not any(set(row.phrase.casefold().split()) <= words for words in own[row.image.name])
    assert writer.summary.files["phrases-val.jsonl"]["absent"] == len(absent)
    again = convert(folder, out="again", negatives=0.2)
    assert again.summary == writer.summary
    text = (folder / "out/phrases-val.jsonl").read_text()
    assert (folder / "again/phrases-val.jsonl").read_text() == text
    convert(folder, out="other", seed=1, negatives=0.2)
    assert (folder / "other/phrases-val.jsonl").read_text() != text


def test_a_phrase_stays_where_every_other_is_true_too(folder: Path) -> None:
    write(folder, "val", task(1, "black dog"), task(1, "dog"), task(2, "Dog"))
    writer = convert(folder, negatives=1.0)
    rows = read_phrases(folder / "out/phrases-val.jsonl")
    assert [(row.phrase, row.mask is None) for row in rows] == [
        ("black dog", False),
        ("dog", False),
        ("black dog", True),
    ]
    assert writer.summary.absent == {"black dog": 1}


def test_wrong_options_and_folders_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"has no refer_train\.json"):
        convert(folder)
    with pytest.raises(DataError, match=r"there is no file .*refer_val\.json"):
        convert(folder, splits=["val"])
    with pytest.raises(InputError, match="no split 'tests'"):
        convert(folder, splits=["tests"])
    with pytest.raises(InputError, match=r"negatives 1\.5"):
        convert(folder, negatives=1.5)
    (folder / "image_data_split3000.json").write_text("[]")
    write(folder, "val", task(1, "a"))
    with pytest.raises(DataError, match="names no image with its size"):
        convert(folder)

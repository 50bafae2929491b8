"""RefCOCO: sentences with their objects' masks, the data's own splits, and a pickle that is not trusted."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm_core.convert.dataset import DatasetWriter
from vlm_core.convert.plain_pickle import read_plain_pickle
from vlm_core.convert.refcoco import convert_refcoco
from vlm_core.data import JsonlPhrases
from vlm_core.errors import DataError


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_nothing_and_is_called_so(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"split": "train", "ref": Malicious(tmp_path / "made")}], protocol))
    with pytest.raises(DataError, match=rf"refs\(unc\)\.p names {os.name}\.mkdir, .*may be malicious"):
        read_plain_pickle(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [bytearray(b"x"), complex(1, 2), np.int64(3), Path("x"), print])
def test_even_harmless_names_are_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([value], 2))
    with pytest.raises(DataError, match="plain data has no need of"):
        read_plain_pickle(path)


def test_plain_values_are_read_also_as_python_2_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    value = [{"ref_id": 1, "sentences": [{"tokens": ["a", "b"], "sent": "a b"}], "box": (1.5, None, True)}]
    path.write_bytes(pickle.dumps(value, 2))
    assert read_plain_pickle(path) == value
    path.write_bytes(b"\x80\x02]q\x00}q\x01U\x05splitU\x05traina\x85s.")  # no pickle
    with pytest.raises(DataError, match="no readable pickle"):
        read_plain_pickle(path)
    path.write_bytes(b"(lp0\n(dp1\nS'split'\np2\nS'caf\\xc3\\xa9'\np3\nsa.")  # protocol 0 of Python 2
    assert read_plain_pickle(path) == [{"split": "café"}]
    path.write_bytes(pickle.dumps(value)[:-20])
    with pytest.raises(DataError, match="no readable pickle"):
        read_plain_pickle(path)


def ref(ref_id: int, image: int, annotation: int, split: str, *sentences: str) -> dict[str, Any]:
    return {
        "ref_id": ref_id,
        "image_id": image,
        "ann_id": annotation,
        "split": split,
        "category_id": 1,
        "file_name": f"COCO_train2014_{image}_{ref_id}.jpg",  # of the reference, no image
        "sentences": [{"sent": text, "raw": text.upper(), "tokens": text.split(), "sent_id": 0} for text in sentences],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train2014").mkdir()
    for i in (1, 2):
        Image.new("RGB", (6, 4)).save(tmp_path / f"train2014/{i}.png")
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 6} for i in (1, 2, 3)],
        "annotations": [
            {"id": 10, "image_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
            {"id": 20, "image_id": 2, "segmentation": {"size": [4, 6], "counts": [20, 4]}},
            {"id": 30, "image_id": 3, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return tmp_path


def convert(folder: Path, refs: list[dict[str, Any]], **options: Any) -> DatasetWriter:
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    with DatasetWriter(folder / "out") as writer:
        convert_refcoco(folder / "refs(unc).p", folder / "train2014", writer, **options)
    return writer


def test_each_sentence_gets_its_objects_mask_in_its_split(folder: Path) -> None:
    refs = [ref(1, 1, 10, "train", "left one", "the left  one", "left one"), ref(2, 2, 20, "testA", "last column")]
    writer = convert(folder, refs)
    (train,) = JsonlPhrases(folder / "out/phrases-train.jsonl").every_sample()
    assert train.phrases == ("left one", "the left one")
    expected = np.zeros((4, 6))
    expected[:2, :2] = 1
    assert (train.masks == expected).all()
    (test,) = JsonlPhrases(folder / "out/phrases-testA.jsonl").every_sample()
    assert test.masks[0].sum(axis=0).tolist() == [0, 0, 0, 0, 0, 4]
    assert writer.summary.notes == []
    assert writer.summary.left_out == {}


def test_chosen_splits_alone_are_written_and_unknown_ones_named(folder: Path) -> None:
    refs = [ref(1, 1, 10, "train", "a"), ref(2, 2, 20, "val", "b")]
    writer = convert(folder, refs, splits=["val"])
    assert list(writer.summary.files) == ["phrases-val.jsonl"]
    with pytest.raises(DataError, match="no split 'testA': it has train, val"):
        convert(folder, refs, splits=["testA"])


def test_a_split_that_is_not_by_image_is_noted(folder: Path) -> None:
    writer = convert(folder, [ref(1, 1, 10, "train", "a"), ref(2, 1, 10, "val", "b")])
    assert writer.summary.notes[0].startswith("1 images are in more than one split")


def test_broken_references_are_counted(folder: Path) -> None:
    refs = [
        ref(1, 1, 99, "train", "no such object"),
        ref(2, 9, 10, "train", "no such image"),
        ref(3, 2, 10, "train", "of another image"),
        ref(4, 3, 30, "train", "no file"),
        ref(5, 1, 10, "../train", "leads away"),
        ref(6, 1, 10, "train", " ", "good"),
    ]
    writer = convert(folder, refs)
    assert {reason: entry.examples for reason, entry in writer.summary.left_out.items()} == {
        "the reference's object is not in the instances file": ["reference 1"],
        "the reference's image is not in the instances file": ["reference 2"],
        "the reference's object is in another image": ["reference 3"],
        "the image is not in the folder": ["reference 4"],
        "the reference has no usable split": ["reference 5"],
        "the phrase is blank or no text": ["reference 6"],
    }
    assert writer.summary.phrases == {"good": 1}


def test_the_references_may_be_json(folder: Path) -> None:
    (folder / "refs.json").write_text(json.dumps([ref(1, 1, 10, "train", "a")]))
    with DatasetWriter(folder / "out") as writer:
        convert_refcoco(folder / "refs.json", folder / "train2014", writer)
    assert writer.summary.phrases == {"a": 1}
    (folder / "refs.json").write_text("[1]")
    with DatasetWriter(folder / "out") as writer, pytest.raises(DataError, match="no list of references"):
        convert_refcoco(folder / "refs.json", folder / "train2014", writer)

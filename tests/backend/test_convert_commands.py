"""`vlm convert`: what is printed, the exit codes, and that what it writes trains a model."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from typer.testing import CliRunner, Result

from backend.cli import app
from vlm_core.data import JsonlPhrases
from vlm_core.demo.scenes import generate_scene
from vlm_core.errors import DataError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet"], catch_exceptions=False)


def runs(mask: np.ndarray[Any, Any]) -> list[int]:
    """COCO's run lengths, as a list."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


@pytest.fixture
def scenes(tmp_path: Path) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    """Twelve pictures in a COCO file, their phrases as categories; the masks by image and phrase."""
    (tmp_path / "images").mkdir()
    masks: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
    images, annotations, categories = [], [], {}
    for seed in range(12):
        scene = generate_scene(seed, size=48)
        scene.image.save(tmp_path / f"images/{seed}.png")
        images.append({"id": seed, "file_name": f"{seed}.png", "height": 48, "width": 48})
        for phrase, mask in scene.phrases(limit=3):
            pixels = np.asarray(mask, dtype=bool)
            masks[f"{seed}.png", phrase] = masks.get((f"{seed}.png", phrase), False) | pixels
            category = categories.setdefault(phrase, len(categories))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": seed,
                    "category_id": category,
                    "segmentation": {"size": [48, 48], "counts": runs(pixels)},
                }
            )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return masks


def test_converted_data_trains_a_model(tmp_path: Path, scenes: dict[tuple[str, str], np.ndarray[Any, Any]]) -> None:
    data = tmp_path / "data"
    converted = run(
        "convert", "coco", "--instances", tmp_path / "instances.json", "--images", tmp_path / "images",
        "--out", data, "--val-share", 0.3, "--json",
    )  # fmt: skip
    assert converted.exit_code == 0
    summary = json.loads(converted.stdout)
    files = summary["files"]
    assert files["phrases-train.jsonl"]["images"] + files["phrases-val.jsonl"]["images"] == 12
    assert sum(entry["lines"] for entry in summary["phrases"].values()) == len(scenes)
    read = {}
    for part in ("train", "val"):
        source = JsonlPhrases(data / f"phrases-{part}.jsonl")
        for path, sample in zip(source.images, source.every_sample(), strict=True):
            read.update({(path.name, phrase): mask for phrase, mask in zip(sample.phrases, sample.masks, strict=True)})
    assert read.keys() == scenes.keys()
    assert all((read[key] == scenes[key]).all() for key in scenes)

    trained = run(
        "train", "clipseg", "--clip", "demo", "--train", data / "phrases-train.jsonl",
        "--validation", data / "phrases-val.jsonl", "--out", tmp_path / "run", "--steps", 2, "--batch-size", 4,
        "--evaluate-every", 1, "--device", "cpu",
    )  # fmt: skip
    assert trained.exit_code == 0
    measured = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in measured] == [1, 2]
    assert (tmp_path / "run/checkpoint/weights.safetensors").is_file()


def test_the_summary_names_files_phrases_and_what_was_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "1.jpg")
    (tmp_path / "image_data_split3000.json").write_text(
        json.dumps([{"image_id": i, "height": 4, "width": 6} for i in (1, 2)])
    )
    polygons = [[[[0, 0], [2, 0], [2, 2]]]]
    tasks = [
        {"task_id": f"{image}__{phrase}", "image_id": image, "phrase": phrase, "Polygons": polygons}
        for image, phrase in ((1, "dog"), (2, "cat"), (1, "tree"), (1, "dog"))
    ]
    (tmp_path / "refer_val.json").write_text(json.dumps(tasks))
    out = tmp_path / "out"
    result = run("convert", "phrasecut", tmp_path, "--images", tmp_path, "--out", out, "--split", "val")
    assert result.exit_code == 0
    assert result.stdout == (
        f"{out}/phrases-val.jsonl: 3 lines about 1 images\n"
        "\n2 phrases, by lines with a mask (and absent):\n"
        "        2 (0)  dog\n"
        "        1 (0)  tree\n"
        "\nLeft out:\n"
        "        1  the image is not in the folder (task 2__cat)\n"
    )


def test_nothing_converted_is_an_error_that_keeps_the_reasons(tmp_path: Path) -> None:
    task = {"id": 3, "data": {"image": "x.png"}, "annotations": [{"result": [], "was_cancelled": True}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    arguments = ["convert", "label-studio", tmp_path / "export.json", "--images", tmp_path, "--out", tmp_path / "out"]
    result = run(*arguments)
    assert result.exit_code == 1
    assert "nothing could be converted" in result.stderr
    (tmp_path / "config.xml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"config\.xml cannot be read as UTF-8"):
        run(*arguments, "--config", tmp_path / "config.xml")


def test_refcoco_and_a_config_reach_their_converters(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "1.png")
    ref = {"ref_id": 1, "image_id": 1, "ann_id": 5, "split": "testB", "sentences": [{"sent": "left dog"}]}
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([ref], 2))
    annotation = {"id": 5, "image_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
    images = [{"id": 1, "file_name": "1.png", "height": 4, "width": 6}]
    (tmp_path / "objects.json").write_text(json.dumps({"images": images, "annotations": [annotation]}))
    result = run(
        "convert", "refcoco", tmp_path / "refs(unc).p", "--images", tmp_path, "--out", tmp_path / "out",
        "--instances", tmp_path / "objects.json", "--split", "testB", "--copy",
    )  # fmt: skip
    assert result.exit_code == 0
    line = json.loads((tmp_path / "out/phrases-testB.jsonl").read_text())
    assert line == {"image": "images/1.png", "phrase": "left dog", "mask": "masks/5.png"}

    task = {"id": 1, "data": {"image": "1.png"}, "annotations": [{"result": []}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    (tmp_path / "config.xml").write_text(
        '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i"><Label value="D" prompt="a dog"/>'
        "</BrushLabels></View>"
    )
    result = run(
        "convert", "label-studio", tmp_path / "export.json", "--images", tmp_path, "--out", tmp_path / "ls",
        "--config", tmp_path / "config.xml",
    )  # fmt: skip
    assert result.exit_code == 0
    line = json.loads((tmp_path / "ls/phrases.jsonl").read_text())
    assert line == {"image": "../1.png", "phrase": "a dog", "mask": None}


def test_coco_needs_something_to_convert(tmp_path: Path) -> None:
    assert run("convert", "coco", "--images", tmp_path, "--out", tmp_path / "out").exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.realdata
def test_photographs_as_coco_instances_keep_their_masks(tmp_path: Path) -> None:
    data = os.environ.get("VLM_REALDATA")
    if not data:
        pytest.skip("VLM_REALDATA is not set")
    folder = Path(data) / "coco_photos"
    entries = json.loads((folder / "labels.json").read_text())["images"]
    names = sorted({segment["category"] for entry in entries for segment in entry["segments"]})
    areas: dict[tuple[str, str], int] = {}
    unions: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
    annotations = []
    for image_id, entry in enumerate(entries):
        for segment in entry["segments"]:
            with Image.open(folder / segment["mask"]) as picture:
                mask = np.asarray(picture.convert("L")) >= 128
            assert int(mask.sum()) == segment["area"]
            packed = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": list(mask.shape), "counts": packed["counts"].decode()}
            category = names.index(segment["category"])
            annotations.append(
                {"id": len(annotations), "image_id": image_id, "category_id": category, "segmentation": segmentation}
            )
            key = (Path(entry["image"]).name, segment["category"])
            unions[key] = unions.get(key, False) | mask
            areas[key] = areas.get(key, 0) + segment["area"]
    document = {
        "images": [
            {"id": i, "file_name": Path(entry["image"]).name, "height": entry["height"], "width": entry["width"]}
            for i, entry in enumerate(entries)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    result = run(
        "convert", "coco", "--instances", tmp_path / "instances.json", "--images", folder / "images",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["left_out"] == {}
    source = JsonlPhrases(tmp_path / "out/phrases.jsonl")
    seen = set()
    for path, sample in zip(source.images, source.every_sample(), strict=True):
        for phrase, mask in zip(sample.phrases, sample.masks, strict=True):
            seen.add((path.name, phrase))
            assert (mask == unions[path.name, phrase]).all()
            assert mask.sum() == areas[path.name, phrase]  # segments of one photograph do not overlap
    assert seen == unions.keys()

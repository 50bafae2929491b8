"""Masks of every kind of control, from one encoding of each image."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import vlm_core
from backend import decoding
from backend.label_studio.annotation_masks import masks_from_results
from backend.label_studio.config import ControlPlan, LabelPrompt, PredictionPlan
from backend.label_studio.images import ImageConfig, ImageFetcher
from tests.backend.answers.bench import Bench, Item, control, label
from tests.backend.fakes import ColourModel, MemoryImages, squares
from tests.core.factories import make_clipseg_directory
from vlm_core import Prompt
from vlm_core.evaluate import iou

LABELLED = ("brushlabels", "bitmasklabels", "polygonlabels", "rectanglelabels", "ellipselabels", "keypointlabels")
BARE = ("brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint")
THING = label("Thing", "red", "green")

TRUTH = np.zeros((60, 120), bool)
TRUTH[20:40, 15:45] = True
TRUTH[20:40, 90:120] = True


def read(results: list[Item], plan: ControlPlan) -> np.ndarray:
    """The union of the regions of one control, as a correction would be read."""
    own = [result for result in results if result["from_name"] in (plan.from_name, plan.labels_name)]
    found = masks_from_results(own, PredictionPlan((plan,)))
    assert found.unread == ()
    (mask,) = found.masks.values()
    return mask


@pytest.mark.parametrize("kinds", [LABELLED, BARE])
def test_every_kind_of_shape_marks_the_same_things_from_one_encoding(bench: Bench, kinds: tuple[str, ...]) -> None:
    controls = [control(kind, THING) for kind in kinds]
    results = bench.one(controls, {"image": "squares"})
    assert isinstance(bench.model, ColourModel)
    assert bench.model.encoded == ["masks"]
    for plan in controls:
        own = [result for result in results if result["from_name"] == plan.from_name]
        assert len(own) == (1 if plan.shape in ("brush", "bitmask") else 2)
        if plan.shape == "keypoint":
            for region in own:
                x, y = int(region["value"]["x"] * 1.2), int(region["value"]["y"] * 0.6)
                assert TRUTH[y, x]
            continue
        # the model's grid has 32 cells a side; an ellipse of the moments leaves the corners of a box out
        assert iou(read(results, plan), TRUTH) > (0.7 if plan.shape == "ellipse" else 0.85)
    exact = [read(results, plan) for plan in controls if plan.shape in ("brush", "bitmask", "rectangle")]
    assert all(np.array_equal(mask, exact[0]) for mask in exact)


def _decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every label that is decoded from now on."""
    decoded: list[int] = []
    decode = decoding.decode_label
    monkeypatch.setattr(decoding, "decode_label", lambda *a, **k: decoded.append(1) or decode(*a, **k))  # type: ignore[func-returns-value]
    return decoded


def test_a_label_that_several_controls_ask_for_is_decoded_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = _decoded(monkeypatch)
    labels = (label("red"), label("green"))
    bench.one([control(kind, *labels) for kind in LABELLED], {"image": "squares"})
    assert len(decoded) == 2
    bench.one([control("brushlabels", *labels), control("polygonlabels", *labels, threshold=0.6)], {"image": "squares"})
    assert len(decoded) == 2 + 4


def test_results_come_in_the_order_of_the_controls_and_labels(bench: Bench) -> None:
    names = [label("red"), label("blue"), label("green")]

    def order(labels: list[LabelPrompt], kinds: tuple[str, ...]) -> list[tuple[str, str, str]]:
        results = bench.one([control(kind, *labels) for kind in kinds], {"image": "squares"})
        return [(r["type"], r["value"][r["type"]][0], str(r["value"].get("rle", r["value"].get("x")))) for r in results]

    there = order(names, ("brushlabels", "rectanglelabels"))
    back = order(names[::-1], ("rectanglelabels", "brushlabels"))
    assert [kind for kind, _, _ in there] == ["brushlabels"] * 2 + ["rectanglelabels"] * 2
    assert [name for _, name, _ in there] == ["red", "green"] * 2
    assert back == there[::-1]


@pytest.fixture
def ladder(tmp_path: Path) -> Bench:
    """Three squares of less and less red."""
    image = Image.new("RGB", (96, 32), "white")
    for left, red in ((4, 215), (36, 235), (68, 255)):
        image.paste((red, 0, 0), (left, 8, left + 20, 24))
    return Bench(tmp_path, MemoryImages({"ladder": image}))


@pytest.mark.parametrize("kind", ["rectanglelabels", "polygonlabels", "ellipselabels", "keypointlabels"])
def test_of_a_label_the_surest_regions_are_kept(ladder: Bench, kind: str) -> None:
    def scores(**changes: Any) -> list[float]:
        results = ladder.one([control(kind, label("red"), threshold=0.6, **changes)], {"image": "ladder"})
        return [result["score"] for result in results]

    everything = scores()
    assert len(everything) == 3
    assert everything == sorted(everything, reverse=True)
    assert scores(top_k=2) == everything[:2]
    ladder.close()


def test_of_a_control_the_surest_regions_are_kept_over_all_labels(bench: Bench, ladder: Bench) -> None:
    weak, strong = label("weak", "red"), label("strong", "green")
    image = squares()
    image.paste((230, 0, 0), (15, 20, 45, 40))
    bench._images.images["pale"] = image  # type: ignore[attr-defined]
    for kind in ("brushlabels", "bitmasklabels", "rectanglelabels"):
        for limit, expected in ((None, ["weak", "strong"]), (1, ["strong"]), (5, ["weak", "strong"])):
            plan = control(kind, weak, strong, max_regions=limit)
            results = bench.one([plan], {"image": "pale"})
            assert [result["value"][kind][0] for result in results] == expected
    results = ladder.one([control("rectanglelabels", label("red"), threshold=0.6, max_regions=1)], {"image": "ladder"})
    assert results[0]["value"]["x"] > 60
    ladder.close()


def test_a_turned_box_is_turned_only_where_the_control_says_so(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 200), "white")
    image.paste("red", (60, 90, 160, 110))
    bench = Bench(tmp_path, MemoryImages({"bar": image.rotate(30, fillcolor="white")}))
    upright, turned = (
        bench.one([control("rectanglelabels", label("red"), rotated=rotated)], {"image": "bar"})[0]["value"]
        for rotated in (False, True)
    )
    assert upright["rotation"] == 0
    assert min(abs(turned["rotation"] - angle) for angle in (60, 150, 240, 330)) < 6
    assert turned["width"] * turned["height"] < 0.6 * upright["width"] * upright["height"]
    bench.close()


def test_what_is_not_meant_is_left_out(bench: Bench) -> None:
    everything = control("brushlabels", label("Thing", "red", "green"))
    without = control("brushlabels", label("Thing", "red", "green", not_prompts=("dark green",)))
    both = read(bench.one([everything], {"image": "squares"}), everything)
    left = read(bench.one([without], {"image": "squares"}), without)
    assert both[30, 100]
    assert not left[30, 100]
    assert np.array_equal(left[:, :60], both[:, :60])
    # what is there only as what is not meant is not there
    none = control("brushlabels", label("Thing", "green", not_prompts=("dark green",)))
    (item,) = bench.predict([none], {"image": "squares"})
    assert item["result"] == []
    assert item["score"] > 0.9


SMALL = Image.new("RGB", (400, 300), "white")
SMALL.paste("red", (198, 141, 205, 148))  # between the points at which the whole view looks


def test_windows_find_what_is_too_small_for_the_whole_view(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MemoryImages({"small": SMALL}))
    assert isinstance(bench.model, ColourModel)
    plan = control("rectanglelabels", label("red"))
    assert bench.one([plan], {"image": "small"}) == []
    (region,) = bench.one([control("rectanglelabels", label("red"), tile=100)], {"image": "small"})
    assert region["value"]["x"] * 4 == pytest.approx(198, abs=4)
    assert region["value"]["y"] * 3 == pytest.approx(141, abs=4)
    # windows are encoded once, whoever asks
    bench.model.encoded.clear()
    labels = (label("red"), label("blue"), label("green", "green", not_prompts=("red",)))
    bench.one([control(kind, *labels, tile=100) for kind in ("rectanglelabels", "brushlabels")], {"image": "small"})
    windows = len(bench.model.encoded)
    bench.model.encoded.clear()
    bench.one([control("rectanglelabels", label("red"), tile=100)], {"image": "small"})
    assert windows == len(bench.model.encoded) > 12
    assert "more than 4096" in bench.error([control("rectanglelabels", label("red"), tile=1)], {"image": "small"})
    bench.close()


def test_an_image_is_decoded_whole_where_the_model_looks_at_parts_of_it(bench: Bench, images: MemoryImages) -> None:
    boxes = control("rectanglelabels", label("red"))
    for controls, expected in (
        ([boxes], 64),  # twice what the model sees
        ([boxes, control("brushlabels", label("red"), tile="auto")], None),
        ([boxes, control("choices", label("red"), per_region=True)], None),
    ):
        bench.one(controls, {"image": "squares"})
        assert images.least_px["squares"] == expected


def test_labels_in_portions_are_answered_as_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of windows are fine, and those of a hundred labels would not fit into the memory."""
    bench = Bench(tmp_path, MemoryImages({"small": SMALL}))
    names = [label("red"), label("blue", "blue", "green"), label("white", not_prompts=("red",))]
    plan = control("brushlabels", *names, tile=100)
    together = bench.one([plan], {"image": "small"})
    monkeypatch.setattr("backend.answers.masks._MOST_GRID_BYTES", 1)
    decoded = _decoded(monkeypatch)
    apart = bench.one([plan], {"image": "small"})
    assert len(decoded) == 3
    assert [(r["value"], r["score"]) for r in apart] == [(r["value"], r["score"]) for r in together]
    bench.close()


def test_several_images_are_each_answered_for_their_own_controls(bench: Bench, images: MemoryImages) -> None:
    other = squares().transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((240, 60))
    images.images["other"] = other
    first = control("brushlabels", label("red"), name="a")
    second = control("rectanglelabels", label("red"), name="b", to_name="j", image_key="second.image")
    third = control("polygonlabels", label("green"), name="c")
    results = bench.one([first, second, third], {"image": "squares", "second": {"image": "other"}})
    assert [(r["from_name"], r["to_name"], r["original_width"]) for r in results] == [
        ("a", "i", 120), ("c", "i", 120), ("b", "j", 240)
    ]  # fmt: skip
    assert bench.model.encoded == ["masks", "masks"]  # type: ignore[attr-defined]
    assert results[2]["value"]["x"] * 2.4 == pytest.approx(240 - 90, abs=8)


def test_the_phrase_may_stand_in_the_task(bench: Bench) -> None:
    asked = label("Target", "what the config says", prompt_from="caption.text")
    plan = control("rectanglelabels", asked, label("red"))
    for caption in ("green", "green | black", ["green", "black", "green"], " green "):
        results = bench.one([plan], {"image": "squares", "caption": {"text": caption}})
        assert [(r["value"]["rectanglelabels"][0], round(r["value"]["x"] * 1.2) > 60) for r in results] == [
            ("Target", True), ("red", False)
        ]  # fmt: skip
    first, second = bench.predict(
        [plan], {"image": "squares", "caption": {"text": "red"}}, {"image": "squares", "caption": {"text": "blue"}}
    )
    assert [len(item["result"]) for item in (first, second)] == [2, 1]


@pytest.mark.parametrize("data", [{}, {"caption": None}, {"caption": " | "}, {"caption": []}, {"caption": ["", 3]}])
def test_a_task_without_its_phrase_says_which(bench: Bench, data: dict[str, Any]) -> None:
    plan = control("brushlabels", label("Target", prompt_from="caption"))
    reason = bench.error([plan], {"image": "squares", **data})
    assert '"caption"' in reason
    assert '"Target"' in reason
    assert len(bench.one([plan], {"image": "squares", "caption": "red"})) == 1


def test_an_image_that_exif_turns_is_marked_as_it_is_seen(tmp_path: Path) -> None:
    upright = squares((160, 240))  # blocks at rows 20 to 40, from column 15 and from column 90
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=95, exif=exif)
    assert np.abs(np.asarray(ImageOps.exif_transpose(Image.open(file)), float) - np.asarray(upright)).mean() < 3
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    bench = Bench(tmp_path, ImageFetcher(ImageConfig(cache_dir=tmp_path / "images")))
    truth = (np.asarray(upright)[..., 1] < 128) & (np.asarray(upright)[..., 2] < 128)
    for kind in ("brushlabels", "bitmasklabels", "polygonlabels", "rectanglelabels"):
        plan = control(kind, label("red"))
        results = bench.one([plan], {"image": uri})
        assert {(r["original_width"], r["original_height"]) for r in results} == {(240, 160)}
        assert iou(read(results, plan), truth) > 0.8
    bench.close()


def test_labels_may_hold_quotes_and_any_letters(bench: Bench) -> None:
    names = ("ü", "目標", "it's", "a&b"[:1] + "\U0001f600")
    results = bench.one([control("polygonlabels", *(label(name, "red") for name in names))], {"image": "squares"})
    assert [result["value"]["polygonlabels"][0] for result in results] == list(names)


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> vlm_core.Model:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return vlm_core.load(directory, device="cpu")


@pytest.mark.parametrize("tile", [None, 70])
def test_served_masks_are_those_of_the_model_itself(tmp_path: Path, clipseg: vlm_core.Model, tile: int | None) -> None:
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)).resize(
        (150, 100), Image.Resampling.BICUBIC
    )
    bench = Bench(tmp_path, MemoryImages({"image": image}), clipseg)
    asked = [
        (("left player",), ()),
        (("dog", "a cat"), ()),
        (("dog",), ("a cat",)),
        (("dog", "x"), ("a cat", "y")),
    ]
    model_says = clipseg.segment(image, [Prompt(texts, not_texts=against) for texts, against in asked], tile=tile)
    compared = 0
    for share in (0.3, 0.5, 0.8):
        for number, (texts, against) in enumerate(asked):
            logits = model_says.logits[number].numpy()
            usual = np.quantile(logits[logits > -1e3], share)
            threshold = float(1 / (1 + np.exp(-usual)))
            plan = control("bitmasklabels", label("x", *texts, not_prompts=against), threshold=threshold, tile=tile)
            results = bench.one([plan], {"image": "image"})
            served = read(results, plan) if results else np.zeros(logits.shape, bool)
            differ = served != (model_says.probabilities()[number].numpy() >= threshold)
            assert not (differ & (np.abs(logits - usual) > 1e-4)).any()
            compared += int(served.sum())
    assert compared > 0
    bench.close()

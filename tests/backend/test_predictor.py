from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_studio_sdk.converter import brush
from PIL import Image

from backend import decoding
from backend.model_store import ModelStore
from backend.plans import ExtraParams
from backend.predictor import Answer, Deadline, Predictor
from backend.versions import BaseCheckpoint, ManifestDraft, RecipeRecord, VersionStore
from tests.backend.fakes import ColourModel, MemoryImages, squares
from vlm_core.tags import TagCalibration

BRUSH = """<View><Image name="i" value="$image"/>
<BrushLabels name="b" toName="i"><Label value="Red"  prompt="red"/><Label value="Blue" prompt="blue"/></BrushLabels>
</View>"""
ALL = """<View><Image name="i" value="$image"/>
<BrushLabels name="b" toName="i"><Label value="Thing" prompt="red | green"/></BrushLabels>
<RectangleLabels name="r" toName="i"><Label value="Box" prompt="red | green"/></RectangleLabels>
<Choices name="c" toName="i">
  <Choice value="Light" predicted_values="white"/><Choice value="Dark" alias="dk" prompt="black"/>
</Choices>
<Choices name="m" toName="i" choice="multiple" model_score_threshold="0.01">
  <Choice value="red"/><Choice value="green"/>
</Choices>
</View>"""


class Bench:
    """A predictor over fakes."""

    def __init__(self, data_dir: Path, images: MemoryImages, model: ColourModel | None = None) -> None:
        self.model = model or ColourModel()
        self.versions = VersionStore(data_dir)
        self.store = ModelStore(lambda: self.model, self.versions)
        self.store.start()
        self.predictor = Predictor(self.store, images, ExtraParams(data_dir), fetch_threads=2)

    def predict(self, uris: list[str], config: str = BRUSH, **changes: Any) -> Answer:
        tasks = [{"id": n, "data": {"image": uri}} for n, uri in enumerate(uris, start=1)]
        return self.predict_tasks(tasks, config, **changes)

    def predict_tasks(self, tasks: list[dict[str, Any]], config: str, **changes: Any) -> Answer:
        arguments: dict[str, Any] = {"project_id": 7, "label_config": config, "deadline": Deadline(20)}
        return self.predictor.predict(tasks, **(arguments | changes))


@pytest.fixture
def images() -> MemoryImages:
    return MemoryImages({"squares": squares(), "white": Image.new("RGB", (40, 30), "white")})


@pytest.fixture
def bench(tmp_path: Path, images: MemoryImages) -> Iterator[Bench]:
    made = Bench(tmp_path, images)
    yield made
    made.predictor.close()


def brush_mask(region: dict[str, Any]) -> np.ndarray:
    flat = brush.decode_rle(region["value"]["rle"])
    height, width = region["original_height"], region["original_width"]
    return flat.reshape(height, width, 4)[:, :, 3] > 0


def test_a_mask_covers_what_the_prompt_names(bench: Bench) -> None:
    (item,) = bench.predict(["squares"]).items
    (region,) = item["result"]
    assert region["value"]["brushlabels"] == ["Red"]
    assert (region["original_height"], region["original_width"]) == (60, 120)
    mask = brush_mask(region)
    truth = np.zeros((60, 120), bool)
    truth[20:40, 15:45] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.85  # the model's grid has 32 cells a side
    assert item["score"] == pytest.approx((region["score"] + 1.0) / 2, abs=0.01)  # blue: sure that it is not there


def test_every_kind_of_control_is_answered_from_one_encoding(bench: Bench) -> None:
    answer = bench.predict(["squares"], ALL)
    (item,) = answer.items
    kinds = [(region["from_name"], region["type"]) for region in item["result"]]
    masks, boxes = [("b", "brushlabels")], [("r", "rectanglelabels")] * 2
    assert kinds == [*masks, *boxes, ("c", "choices"), ("m", "choices")]
    by_name = {region["from_name"]: region["value"] for region in item["result"]}
    assert by_name["c"] == {"choices": ["Light"]}
    assert set(by_name["m"]["choices"]) == {"red", "green"}
    # Alternatives: one label holds both squares, and its boxes are the squares.
    assert brush_mask(item["result"][0]).sum() == pytest.approx(2 * 20 * 30, rel=0.15)
    lefts = sorted(r["value"]["x"] * 1.2 for r in item["result"] if r["type"] == "rectanglelabels")
    assert lefts == pytest.approx([15, 90], abs=4)
    assert bench.model.encoded == ["masks", "tags"]


def test_a_model_that_sees_masks_and_tags_alike_encodes_once_for_both(tmp_path: Path, images: MemoryImages) -> None:
    bench = Bench(tmp_path, images, ColourModel(one_view=True))
    both = bench.predict(["squares"], ALL).items[0]["result"]
    assert bench.model.encoded == ["both"]
    separate = Bench(tmp_path, images).predict(["squares"], ALL).items[0]["result"]
    assert [(r["from_name"], r["value"]) for r in both] == [(r["from_name"], r["value"]) for r in separate]


def test_the_alias_of_a_choice_is_what_is_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MemoryImages({"night": Image.new("RGB", (20, 20), "black")}))
    (item,) = bench.predict(["night"], ALL).items
    assert [r["value"] for r in item["result"] if r["from_name"] == "c"] == [{"choices": ["dk"]}]


def test_the_second_question_about_an_image_is_not_encoded_again(bench: Bench) -> None:
    bench.predict(["squares"])
    bench.predict(["squares"], BRUSH.replace('"blue"', '"green"'))
    assert bench.model.encoded == ["masks"]


def test_nothing_found_is_an_empty_result(bench: Bench) -> None:
    (item,) = bench.predict(["white"]).items
    assert item["result"] == []
    assert "error" not in item
    assert 0.9 < item["score"] <= 1.0


def test_one_item_a_task_in_order_and_a_bad_one_costs_itself_only(bench: Bench) -> None:
    answer = bench.predict(["squares", "gone", "white", "squares"])
    assert [len(item.get("result", "none")) for item in answer.items] == [1, 4, 0, 1]
    assert answer.items[1] == {"error": "gone: there is no such image"}
    assert answer.failed == 1
    assert {item.get("model_version") for item in answer.items} == {answer.model_version, None}


def test_a_task_without_the_image_field_says_which(bench: Bench) -> None:
    answer = bench.predictor.predict(
        [{"id": 1, "data": {"picture": "squares"}}], project_id=7, label_config=BRUSH, deadline=Deadline(5)
    )
    assert '"image"' in answer.items[0]["error"]
    assert "result" not in answer.items[0]


def test_no_task_is_no_item(bench: Bench) -> None:
    assert bench.predict([]).items == []


def test_what_is_not_done_in_time_is_an_error_and_the_rest_is_answered(tmp_path: Path) -> None:
    gate = threading.Event()
    images = MemoryImages({"squares": squares(), "slow": squares()}, {"slow": gate})
    bench = Bench(tmp_path, images)
    try:
        answer = bench.predict(["slow", "squares", "squares"], deadline=Deadline(0.5))
    finally:
        gate.set()
    assert "0.5 s" in answer.items[0]["error"]
    assert "result" not in answer.items[0]
    assert [len(item["result"]) for item in answer.items[1:]] == [1, 1]


def test_only_a_few_images_are_fetched_ahead(tmp_path: Path) -> None:
    images = MemoryImages({f"{n}": squares((60, 120 + n)) for n in range(20)})
    bench = Bench(tmp_path, images)
    ahead: list[int] = []
    bench.model.on_encode = lambda: ahead.append(len(images.fetched))
    answer = bench.predict([str(n) for n in range(20)])
    assert answer.failed == 0
    assert ahead[0] <= 3
    assert all(fetched <= done + 3 for done, fetched in enumerate(ahead))


def test_a_busy_model_is_waited_for_until_the_deadline_only(bench: Bench) -> None:
    with bench.store.computing(1):
        answer = bench.predict(["squares"], deadline=Deadline(0.3))
    assert "busy" in answer.items[0]["error"]


def test_an_unforeseen_error_costs_its_task_and_shows_nothing_of_the_server(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        bench.model.on_encode = lambda: None
        raise RuntimeError("/secret/path")

    bench.model.on_encode = fail
    bench.predictor._window = 1  # one after the other
    answer = bench.predict(["white", "squares"])
    assert "unexpected error" in answer.items[0]["error"]
    assert "secret" not in str(answer.items)
    assert len(answer.items[1]["result"]) == 1
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("<View", "not well-formed"),
        ("<View/>", "nothing to predict"),
        ('<View><Text name="t" value="$t"/><TextArea name="a" toName="t"/></View>', "nothing to predict"),
    ],
)
def test_a_config_that_cannot_be_used_is_every_tasks_error(bench: Bench, config: str, reason: str) -> None:
    answer = bench.predict(["squares", "white"], config)
    assert len(answer.items) == 2
    assert all(reason in item["error"] and "result" not in item for item in answer.items)


def test_a_config_with_an_xml_declaration_is_answered(bench: Bench) -> None:
    (item,) = bench.predict(["squares"], '\n<?xml version="1.0" encoding="UTF-8"?>\n' + BRUSH).items
    assert [region["value"]["brushlabels"] for region in item["result"]] == [["Red"]]


def test_the_deadline_holds_between_the_labels_of_one_image(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(20)
    drawn = []

    def draw_late(*args: Any, **kwargs: Any) -> Any:
        drawn.append(decode_label(*args, **kwargs))
        monkeypatch.setattr(deadline, "remaining", lambda: 0.0)
        return drawn[-1]

    decode_label = decoding.decode_label
    monkeypatch.setattr(decoding, "decode_label", draw_late)
    (item,) = bench.predict(["squares"], deadline=deadline).items
    assert len(drawn) == 1
    assert "result" not in item
    assert "not done within 20 s" in item["error"]


def test_a_model_that_says_yes_or_no_answers_each_choice_alone(tmp_path: Path, images: MemoryImages) -> None:
    """The same image and labels: compared, one label is always chosen; asked alone, none or both may be."""
    config = """<View><Image name="i" value="$image"/><Choices name="m" toName="i" choice="multiple">
    <Choice value="white"/><Choice value="black"/></Choices></View>"""
    answered = []
    for bias in (None, -3.0, -2.0, 13.0):
        calibration = None if bias is None else TagCalibration(3.0, bias)
        bench = Bench(tmp_path / str(bias), images, ColourModel(tag_calibration=calibration))
        (item,) = bench.predict(["white"], config).items
        assert item["score"] > 0
        answered.append([choice for region in item["result"] for choice in region["value"]["choices"]])
        bench.predictor.close()
    # white is 0 away from the image, black 4.4: probabilities 0.05 and 0, 0.12 and 0, 1 and 0.44
    assert answered == [["white"], [], ["white"], ["white", "black"]]


def test_a_model_without_masks_answers_choices_only(tmp_path: Path, images: MemoryImages) -> None:
    bench = Bench(tmp_path, images, ColourModel(can_segment=False))
    (item,) = bench.predict(["squares"], ALL).items
    assert [region["type"] for region in item["result"]] == ["choices", "choices"]
    (item,) = bench.predict(["squares"], BRUSH).items
    assert "gives no masks" in item["error"]


def _publish(bench: Bench, gain: float, **changes: Any) -> None:
    draft = ManifestDraft(
        base=BaseCheckpoint(name=bench.model.name, fingerprint=bench.model.fingerprint),
        recipe=RecipeRecord(name="test"),
        seed=0,
        decision="better",
        **changes,
    )
    version = bench.versions.write(7, {"gain": torch.tensor([gain])}, draft, {})
    bench.versions.publish(7, version, bench.versions.next_token(7))


def test_a_published_version_answers_the_next_request(bench: Bench) -> None:
    before = bench.predict(["squares"])
    _publish(bench, -1.0)  # marks everything that is not red
    after = bench.predict(["squares"])
    assert before.model_version.startswith("colours-p7-v000-")
    assert after.model_version.startswith("colours-p7-v001-")
    (region,) = (r for r in after.items[0]["result"] if r["value"]["brushlabels"] == ["Red"])
    mask = brush_mask(region)
    assert not mask[30, 30]
    assert mask[5, 5]
    # Another project keeps the base model.
    assert bench.predict(["squares"], project_id=8).model_version.startswith("colours-p8-v000-")


def test_thresholds_come_from_the_config_then_the_version_then_the_default(bench: Bench) -> None:
    # Dark red has the logit 6 - 10.5 = -4.5, a probability of 0.011.
    bench.predictor._images.images["half"] = Image.new("RGB", (20, 20), (150, 0, 0))  # type: ignore[attr-defined]

    def found(config: str = BRUSH) -> bool:
        return bool(bench.predict(["half"], config).items[0]["result"])

    assert not found()
    _publish(bench, 1.0, thresholds={"Red": 0.005})
    assert found()
    assert not found(BRUSH.replace("<BrushLabels", '<BrushLabels model_score_threshold="0.2"'))
    assert found(BRUSH.replace("<BrushLabels", '<BrushLabels model_score_threshold="0.006"'))


def test_extra_parameters_that_setup_brought_hold_for_predict(bench: Bench, tmp_path: Path) -> None:
    before = bench.predict(["squares"]).model_version
    ExtraParams(tmp_path).remember(7, {"model_min_area": 5000})
    after = bench.predict(["squares"])
    assert after.items[0]["result"] == []
    assert after.model_version != before


def test_a_damaged_version_is_an_error_without_paths(bench: Bench, tmp_path: Path) -> None:
    _publish(bench, 2.0)
    (bench.versions.project_dir(7) / "versions" / "001" / "manifest.json").write_text("{")
    (item,) = bench.predict(["squares"]).items
    assert "damaged" in item["error"]
    assert str(tmp_path) not in item["error"]


def test_requests_together_give_what_they_give_alone(bench: Bench) -> None:
    alone = bench.predict(["squares", "white"])
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(bench.predict(["squares", "white"]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    def comparable(answer: Answer) -> list[Any]:
        return [(i["score"], [(r["value"], r["score"]) for r in i["result"]]) for i in answer.items]

    assert len(answers) == 6
    assert all(comparable(answer) == comparable(alone) for answer in answers)

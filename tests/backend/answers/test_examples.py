"""Every labelling config of the documentation is answered, and Label Studio accepts the answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from backend.label_studio.config import parse_label_config
from backend.model_store import ModelStore
from backend.plans import ExtraParams
from backend.predictor import Deadline, Predictor
from backend.versions import VersionStore
from tests.backend.fakes import ColourModel, MemoryImages, squares

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "labelling-config.md").read_text()
EXAMPLES = re.findall(r"^```xml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
DATA = {
    "image": "squares",
    "before": "squares",
    "after": "other",
    "caption": "a thing",
    "captions": [{"id": 1, "title": "red"}, {"id": 2, "body": "white"}],
}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 18


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_answered_by_every_control(tmp_path: Path, example: str) -> None:
    """The fake model takes phrases without a colour for white, of which the image is full."""
    example = example.replace("dotted square", "black")  # what is not meant must differ from what is
    store = ModelStore(lambda: ColourModel(), VersionStore(tmp_path))
    store.start()
    images = MemoryImages({"squares": squares(), "other": squares((90, 60))})
    predictor = Predictor(store, images, ExtraParams(tmp_path))
    try:
        answer = predictor.predict([{"id": 1, "data": DATA}], project_id=7, label_config=example, deadline=Deadline(60))
    finally:
        predictor.close()
    (item,) = answer.items
    assert "error" not in item
    answered: set[Any] = {result["from_name"] for result in item["result"]}
    assert {control.from_name for control in parse_label_config(example).controls} <= answered

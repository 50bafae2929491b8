"""What the bundled demo checkpoint can do, on scenes that no training and no choice has seen."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import pytest

import vlm_core
from vlm_core.checkpoint import DEMO_DIRECTORY, MANIFEST
from vlm_core.demo.measure import measure_scenes

FIRST_SEED, SCENES = 2_000_000, 300
LARGEST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def measured() -> Mapping[str, float]:
    return measure_scenes(vlm_core.load("demo", device="cpu"), range(FIRST_SEED, FIRST_SEED + SCENES))


def test_it_is_small_and_says_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert sum(path.stat().st_size for path in DEMO_DIRECTORY.iterdir()) <= LARGEST_BYTES
    with caplog.at_level(logging.WARNING):
        model = vlm_core.load("demo", device="cpu")
    assert "not for photographs" in caplog.text
    assert model.name == "demo"
    assert model.can_segment
    assert "never seen a photograph" in (DEMO_DIRECTORY / "README.md").read_text()


def test_the_card_and_the_manifest_tell_what_is_measured(measured: Mapping[str, float]) -> None:
    told = json.loads((DEMO_DIRECTORY / MANIFEST).read_text())["about"]["final_scenes"]
    assert measured["mean_iou"] == pytest.approx(told["mean_iou"], abs=0.01)
    assert measured["absent_marked"] == pytest.approx(told["absent_marked"], abs=0.02)
    assert measured["one_of_four"] == pytest.approx(told["one_of_four"], abs=0.02)


def test_phrases_whose_object_is_there(measured: Mapping[str, float]) -> None:
    assert measured["mean_iou"] >= 0.7


def test_absent_phrases_mark_nothing(measured: Mapping[str, float]) -> None:
    assert measured["absent_marked"] <= 0.10


def test_the_right_description_out_of_four(measured: Mapping[str, float]) -> None:
    assert measured["one_of_four"] >= 0.95

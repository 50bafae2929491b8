"""The demo's project: config, pictures, and the annotation of somebody who makes no mistake."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

from backend.demo.label_studio import Credentials, find_label_studio
from backend.demo.measure import LabelScore, Measurement
from backend.demo.processes import DemoError
from backend.demo.project import (
    DESCRIPTIONS,
    LABELS,
    NEW_SHAPE,
    evaluation_scenes,
    label_config,
    pictures,
    plan,
    sentence,
    truth_of,
)
from backend.demo.round_trip import RoundTrip
from vlm_core.demo.scenes import KNOWN_SHAPES


def test_the_config_asks_for_every_shape_and_description() -> None:
    controls = {control.kind: control for control in plan().controls}
    assert [label.label for label in controls["brushlabels"].labels] == [*KNOWN_SHAPES, "star"]
    assert [label.label for label in controls["choices"].labels] == [sentence(pair) for pair in DESCRIPTIONS]
    assert sentence(DESCRIPTIONS[3]) == "an orange square and a black triangle"
    assert NEW_SHAPE not in KNOWN_SHAPES


def test_exactly_one_description_is_true_of_each_picture() -> None:
    images = list(pictures(8))
    assert len({image.name for image in images}) == 8
    for image in images:
        seen = {(item.colour, item.shape) for item in image.scene.objects if item.named}
        assert [sentence(pair) for pair in DESCRIPTIONS if set(pair) <= seen] == [image.description]
    assert [image.scene.seed for image in images] == [image.scene.seed for image in pictures(8)]
    assert {image.description for image in images} == {sentence(pair) for pair in DESCRIPTIONS}


def test_three_pictures_of_four_are_made_with_a_star() -> None:
    stars = [NEW_SHAPE in image.truth() for image in pictures(16)]
    assert stars == [True] * 12 + [False] * 4


def test_an_annotation_is_valid_and_decodes_to_the_truth() -> None:
    image = next(pictures(1))
    interface = LabelInterface(label_config())
    result = image.annotation()
    assert interface.validate_annotation({"result": result})
    assert result[-1]["value"]["choices"] == [image.description]
    truth = image.truth()
    assert {region["value"]["brushlabels"][0] for region in result[:-1]} == set(truth)
    for region in result[:-1]:
        shape = (region["original_height"], region["original_width"], 4)
        decoded = decode_rle(region["value"]["rle"]).reshape(shape)[..., 3] > 127
        assert np.array_equal(decoded, truth[region["value"]["brushlabels"][0]])


def test_scenes_for_measuring_use_their_own_seeds_and_hold_every_shape() -> None:
    scenes = evaluation_scenes(30)
    assert [scene.seed for scene in scenes] == list(range(4_000_000, 4_000_030))
    held = [set(truth_of(scene)) for scene in scenes]
    assert all(NEW_SHAPE in labels for labels in held[::2])
    assert not any(NEW_SHAPE in labels for labels in held[1::2])
    assert set.union(*held) == set(LABELS)


def measured(version: str, **iou: float) -> Measurement:
    return Measurement(version, {label: LabelScore(iou.get(label, 0.8), 10, 0, 10) for label in LABELS})


@pytest.mark.parametrize(
    ("after", "reasons"),
    [
        # star gains enough, circle loses what is allowed
        (measured("v1", star=0.36, circle=0.76), []),
        # one hundredth too little
        (measured("v1", star=0.34), ["star"]),
        # a known shape pays for it
        (measured("v1", star=0.9, heart=0.74), ["heart"]),
        # nothing was published
        (measured("v0", star=0.1), ["no better version", "star"]),
    ],
)
def test_success_needs_the_gain_and_forbids_the_loss(after: Measurement, reasons: list[str]) -> None:
    failures = RoundTrip(measured("v0", star=0.1), after).failures()
    assert len(failures) == len(reasons)
    for failure, reason in zip(failures, reasons, strict=True):
        assert reason in failure


def test_credentials_are_random_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a" / "credentials.json"
    made = Credentials.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Credentials.load_or_create(path) == made
    other = Credentials.load_or_create(tmp_path / "b" / "credentials.json")
    assert other.password != made.password
    assert other.api_token != made.api_token
    assert len(made.api_token) == 40


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"email": "only"})])
def test_spoilt_credentials_are_an_error_with_a_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "credentials.json").write_text(text)
    with pytest.raises(DemoError, match="start afresh"):
        Credentials.load_or_create(tmp_path / "credentials.json")


def test_a_missing_label_studio_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="make venv-label-studio"):
        find_label_studio(tmp_path / "label-studio")

"""`vlm versions compare`: on the same images where there are enough, and honest where there are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.cli import app
from backend.version_compare import compare_versions
from backend.version_report import ReportRecord
from backend.versions import VersionNotFoundError, VersionStore
from tests.backend.reported import scored_images, write_version


def record(scores: dict[str, dict[str, float]]) -> ReportRecord:
    return ReportRecord(images=scored_images(scores))


def test_images_that_both_were_measured_on_are_compared_pair_by_pair(tmp_path: Path) -> None:
    first = {f"i{n}": {"crane": 0.1 * n} for n in range(8)}
    second = {f"i{n}": {"crane": 0.1 * n + 0.2} for n in range(2, 8)} | {"other": {"crane": 0.0}}
    write_version(tmp_path, record=record(first), figures={"crane": (0.0, 0.35)})
    write_version(tmp_path, record=record(second), figures={"crane": (0.0, 0.5)})
    found = compare_versions(VersionStore(tmp_path), 7, 1, 2)
    (label,) = found.labels
    # Images 2 to 7 only: means 0.45 and 0.65, each pair apart by 0.2, so there is no spread at all.
    assert (label.label, label.images) == ("crane", 6)
    assert label.first == pytest.approx(0.45)
    assert label.second == pytest.approx(0.65)
    assert label.change == pytest.approx(0.2)
    assert label.interval == pytest.approx((0.2, 0.2))
    assert found.note.startswith("on images that both were measured on")
    backwards = compare_versions(VersionStore(tmp_path), 7, 2, 1).labels[0]
    assert backwards.change == pytest.approx(-0.2)


def test_different_images_are_said_to_be_different(tmp_path: Path) -> None:
    write_version(tmp_path, record=record({f"a{n}": {"crane": 0.5} for n in range(9)}), figures={"crane": (0, 0.5)})
    write_version(tmp_path, record=record({f"b{n}": {"crane": 0.7} for n in range(9)}), figures={"crane": (0, 0.7)})
    found = compare_versions(VersionStore(tmp_path), 7, 1, 2)
    (label,) = found.labels
    assert (label.first, label.second, label.images, label.change, label.interval) == (0.5, 0.7, 0, None, None)
    assert "they were measured on different images" in found.note
    assert "not to be compared closely" in found.note


def test_a_version_of_an_earlier_release_has_its_means(tmp_path: Path) -> None:
    write_version(tmp_path, figures={"crane": (0.0, 0.5), "boat": (None, None)})
    write_version(tmp_path, record=record({"a": {"crane": 0.7}}), figures={"crane": (0, 0.7)})
    found = compare_versions(VersionStore(tmp_path), 7, 1, 2)
    assert [(item.label, item.first, item.second) for item in found.labels] == [
        ("boat", None, None),
        ("crane", 0.5, 0.7),
    ]
    assert "different images" in found.note


def test_labels_that_can_be_compared_and_labels_that_cannot_are_told_apart(tmp_path: Path) -> None:
    same = {f"i{n}": {"crane": 0.5} for n in range(6)}
    figures = {"crane": (0.0, 0.5), "boat": (0.0, 0.4)}
    for _ in range(2):
        write_version(tmp_path, record=record(same | {"x": {"boat": 0.4}}), figures=figures)
    found = compare_versions(VersionStore(tmp_path), 7, 1, 2)
    assert [(item.label, item.images) for item in found.labels] == [("boat", 0), ("crane", 6)]
    assert "the labels without a change were measured on different images" in found.note


def test_the_command(tmp_path: Path) -> None:
    same = {f"i{n}": {"[/red]": 0.5} for n in range(6)}
    for _ in range(2):
        write_version(tmp_path, label="[/red]", record=record(same))
    environment = {"VLM_DATA_DIR": str(tmp_path), "COLUMNS": "160", "REDIS_URL": ""}
    shown = CliRunner().invoke(app, ["versions", "compare", "7", "1", "2"], env=environment)
    assert shown.exit_code == 0
    assert "[/red]" in shown.output
    assert "+0.000 (+0.000 to +0.000)" in shown.output
    as_json = CliRunner().invoke(app, ["versions", "compare", "7", "1", "2", "--json"], env=environment)
    assert json.loads(as_json.output)["labels"][0]["images"] == 6
    with pytest.raises(VersionNotFoundError):
        compare_versions(VersionStore(tmp_path), 7, 1, 3)

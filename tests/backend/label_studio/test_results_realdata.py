"""Results that Label Studio itself and its examples wrote, read back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle

from backend.label_studio.config import parse_label_config
from backend.label_studio.results import AnnotationMasks, masks_from_results

pytestmark = pytest.mark.realdata


def results(name: str) -> Iterator[list[dict[str, Any]]]:
    """Every `result` list in an export, wherever it hangs."""
    folder = os.environ.get("VLM_REALDATA")
    if not folder:
        pytest.skip("VLM_REALDATA is not set")

    def walk(node: Any) -> Iterator[list[dict[str, Any]]]:
        if isinstance(node, dict):
            if isinstance(node.get("result"), list):
                yield node["result"]
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    return walk(json.loads((Path(folder) / "label_studio_exports" / name).read_text()))


def read(result: list[dict[str, Any]], *labels: str, **options: Any) -> AnnotationMasks:
    listed = "".join(f'<Label value="{label}"/>' for label in labels)
    plan = parse_label_config(
        f'<View><Image name="image" value="$image"/><BrushLabels name="m" toName="image">{listed}</BrushLabels></View>'
    )
    return masks_from_results(result, plan, **options)


def test_brush_masks() -> None:
    (result,) = results("brush_labels_prediction.json")
    found = read(result, "Person")
    alphas = [decode_rle(region["value"]["rle"]).reshape(576, 768, 4)[..., 3] > 0 for region in result]
    assert [int(alpha.sum()) for alpha in alphas] == [12104, 5716, 11709]
    assert np.array_equal(found.masks["Person"], alphas[0] | alphas[1] | alphas[2])
    assert found.unread == ()
    assert found.size_hw == (576, 768)


def test_rotated_boxes_have_their_area() -> None:
    count = 0
    for result in results("rotated_boxes.json"):
        for region in result:
            value, (width, height) = region["value"], (region["original_width"], region["original_height"])
            (label,) = value["rectanglelabels"]
            mask = read([region], label).masks[label]
            area = value["width"] / 100 * width * value["height"] / 100 * height
            corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
            angle = math.radians(value["rotation"])
            inside = all(
                0 <= x <= width and 0 <= y <= height
                for u, v in corners
                for x, y in [
                    (
                        value["x"] / 100 * width
                        + u * value["width"] / 100 * width * math.cos(angle)
                        - v * value["height"] / 100 * height * math.sin(angle),
                        value["y"] / 100 * height
                        + u * value["width"] / 100 * width * math.sin(angle)
                        + v * value["height"] / 100 * height * math.cos(angle),
                    )
                ]
            )
            assert mask.shape == (height, width)
            assert mask.sum() == pytest.approx(area, rel=0.02) if inside else mask.sum() <= area * 1.02
            count += inside
    assert count > 20


def test_polygons_rectangles_and_points() -> None:
    (result,) = results("polygon_rectangle_keypoint.json")
    found = read(result, "rectangle_label", "polygon_label", "keypoint_label1", "keypoint_label2")
    assert found.size_hw == (320, 500)
    assert found.masks["rectangle_label"].sum() == pytest.approx(0.06352 * 500 * 0.09929 * 320, rel=0.05)
    polygon = np.array(result[1]["value"]["points"]) / 100 * (500, 320)
    x, y = polygon.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert found.masks["polygon_label"].sum() == pytest.approx(area, rel=0.05)
    assert [region.type for region in found.unread] == ["keypointlabels"] * 2
    assert all("no area" in region.reason for region in found.unread)


def test_a_long_polygon() -> None:
    (result,) = results("polygons.json")
    (region,) = result
    (label,) = region["value"]["polygonlabels"]
    mask = read(result, label).masks[label]
    polygon = np.array(region["value"]["points"]) / 100 * (region["original_width"], region["original_height"])
    x, y = polygon.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert mask.sum() == pytest.approx(area, rel=0.02)


def test_predictions_without_a_size_need_one() -> None:
    lists = list(results("choices.json"))
    bare = [result for result in lists if result and "original_width" not in result[0]]
    assert bare
    for result in bare:
        assert "does not state" in read(result, "Car").unread[0].reason
        mask = read(result, "Car", size_hw=(510, 768)).masks["Car"]
        assert mask.shape == (510, 768)
        assert mask.any()

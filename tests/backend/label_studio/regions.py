"""Regions as Label Studio stores them, for one labelling config."""

from __future__ import annotations

from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import mask2rle

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="cat"/><Label value="dog" alias="hound"/></BrushLabels>
<RectangleLabels name="box" toName="image"><Label value="cat"/><Label value="car"/></RectangleLabels>
<Choices name="scene" toName="image" choice="multiple"><Choice value="day"/><Choice value="night"/></Choices></View>"""
SIZE = (40, 100)


def region(name: str, kind: str, value: dict[str, Any], size_hw: tuple[int, int] = SIZE) -> dict[str, Any]:
    size = {"original_height": size_hw[0], "original_width": size_hw[1], "image_rotation": 0}
    return {"id": "r", "from_name": name, "to_name": "image", "type": kind, "value": value, **size}


def brush(label: str, left: int, right: int, **options: Any) -> dict[str, Any]:
    """Columns from `left` to before `right`, the whole height."""
    mask = np.zeros(options.get("size_hw", SIZE), dtype=np.uint8)
    mask[:, left:right] = 255
    return region("brush", "brushlabels", {"format": "rle", "rle": mask2rle(mask), "brushlabels": [label]}, **options)


def box(label: str, left: float, right: float) -> dict[str, Any]:
    value = {"x": left, "y": 0, "width": right - left, "height": 100, "rotation": 0, "rectanglelabels": [label]}
    return region("box", "rectanglelabels", value)


def choice(name: str, *values: str) -> dict[str, Any]:
    return {"id": "c", "from_name": name, "to_name": "image", "type": "choices", "value": {"choices": list(values)}}

"""Pictures of the documents, taken by the tests that see what they show.

With `VLM_PICTURES` naming a directory (`make pictures`) they are kept there; else nothing is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def keep_picture(name: str, screenshot: Callable[[], bytes], *, colours: int = 256) -> None:
    """Keep a screenshot as the PNG file of that name, with few colours; it is not taken where nobody keeps it."""
    folder = os.environ.get("VLM_PICTURES")
    if not folder:
        return
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(screenshot())).convert("RGB")
    picture.quantize(colours, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)

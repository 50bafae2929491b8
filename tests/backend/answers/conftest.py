from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.backend.answers.bench import Bench
from tests.backend.fakes import MemoryImages, squares


@pytest.fixture
def images() -> MemoryImages:
    return MemoryImages({"squares": squares(), "white": Image.new("RGB", (40, 30), "white")})


@pytest.fixture
def bench(tmp_path: Path, images: MemoryImages) -> Iterator[Bench]:
    made = Bench(tmp_path, images)
    yield made
    made.close()

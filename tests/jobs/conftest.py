"""For all tests of jobs: a tiny checkpoint with random weights that can learn colours, and a Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backend.settings import Settings
from tests.core.factories import make_clipseg_directory
from tests.private_redis import private_redis


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_clipseg_directory(directory, refined=False, mask_size=48, image_size=48, patch_size=8)
    return directory


@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path) -> Settings:
    return Settings(checkpoint=str(checkpoint), data_dir=tmp_path, device="cpu")


@pytest.fixture
def connection(settings: Settings) -> Iterator[redis.Redis]:
    with private_redis(settings.data_dir) as connected:
        yield connected

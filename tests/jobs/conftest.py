"""A tiny checkpoint with random weights that can learn colours, for all tests of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.factories import make_clipseg_directory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_clipseg_directory(directory, refined=False, mask_size=48, image_size=48, patch_size=8)
    return directory

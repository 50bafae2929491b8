"""`vlm models pull` and the bound on a GPU's memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import vlm_core
from backend.cli import app
from backend.gpu_memory import bound_gpu_memory
from backend.models_command import pull
from backend.settings import Settings
from tests.core.factories import make_clipseg_directory
from vlm_core import CheckpointError, InputError


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the hub's cache holds it: links to files elsewhere."""
    folder = tmp_path_factory.mktemp("hub")
    make_clipseg_directory(folder / "blobs", mask_size=64, image_size=32)
    (folder / "snapshot").mkdir()
    for file in (folder / "blobs").iterdir():
        (folder / "snapshot" / file.name).symlink_to(file)
    return folder / "snapshot"


def test_a_pulled_checkpoint_is_a_folder_of_files_that_loads(fetched: Path, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["models", "pull", str(fetched), "--to", str(tmp_path / "carried")])
    assert outcome.exit_code == 0, outcome.output
    assert not any(path.is_symlink() for path in (tmp_path / "carried").iterdir())
    assert vlm_core.load(tmp_path / "carried", device="cpu").can_segment
    assert [path.name for path in tmp_path.iterdir()] == ["carried"]
    with pytest.raises(InputError, match="exists already"):
        pull(str(fetched), tmp_path / "carried")
    assert pull(str(fetched), None) == fetched


def test_what_does_not_load_is_not_copied(fetched: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        pull(str(tmp_path / "broken"), tmp_path / "carried")
    assert not (tmp_path / "carried").exists()


@pytest.mark.parametrize(
    ("fraction", "device", "there", "asked"),
    [
        (0.5, "auto", True, [(0.5, None)]),
        (0.25, "cuda:1", True, [(0.25, 1)]),
        (1.0, "auto", True, []),
        (0.5, "cpu", True, []),
        (0.5, "auto", False, []),
    ],
)
def test_a_gpu_s_memory_is_bounded_where_that_was_asked_for(
    fraction: float, device: str, there: bool, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, index: said.append((part, index)))
    bound_gpu_memory(Settings(gpu_memory_fraction=fraction, device=device))
    assert said == asked

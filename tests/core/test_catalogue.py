"""What a checkpoint is said to be must be what loading it gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vlm_core
from backend import models_command
from backend.cli import app
from tests.core.factories import make_clip_directory, make_clipseg_directory, make_siglip_directory
from vlm_core import CheckpointError
from vlm_core.catalogue import KNOWN, describe
from vlm_core.checkpoint import DEMO_DIRECTORY


def _clipseg(directory: Path) -> Path:
    make_clipseg_directory(directory, mask_size=64, image_size=32, taps=(0, 2, 3))
    return directory


def _clip(directory: Path) -> Path:
    make_clip_directory(directory)
    return directory


def _siglip(directory: Path) -> Path:
    make_siglip_directory(directory)
    return directory


@pytest.mark.parametrize(
    ("make", "layout"),
    [(_clipseg, "CLIPSeg"), (_clip, "CLIP"), (_siglip, "SigLIP"), (lambda _: DEMO_DIRECTORY, "vlm train")],
)
def test_a_description_agrees_with_the_loaded_model(make: object, layout: str, tmp_path: Path) -> None:
    directory = make(tmp_path / "made")  # type: ignore[operator]  # a function of the table above
    said = describe(directory)
    model = vlm_core.load(directory, device="cpu")
    assert said.layout == layout
    assert said.masks == model.can_segment
    assert said.missing == ()
    if model.decoder is not None:
        assert said.taps == model.decoder.config.taps
        assert model.mask_transform is not None
        assert said.mask_px == model.mask_transform.size_hw[0]
    learned = sum(p.numel() for p in model.clip.parameters())
    learned += sum(p.numel() for p in model.decoder.parameters()) if model.decoder is not None else 0
    assert said.parameters == pytest.approx(learned, rel=0.01)  # files hold buffers too
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    assert said.megabytes == pytest.approx(size / 1e6, abs=0.05)


def test_what_is_missing_is_said_and_is_the_exit_code(tmp_path: Path) -> None:
    directory = _clipseg(tmp_path / "made")
    (directory / "tokenizer.json").unlink()
    for name in ("vocab.json", "preprocessor_config.json", "processor_config.json"):
        (directory / name).unlink(missing_ok=True)
    outcome = CliRunner().invoke(app, ["models", "show", str(directory), "--json"])
    assert outcome.exit_code == 1
    missing = json.loads(outcome.output)["missing"]
    assert len(missing) == 2
    assert "tokenizer.json" in missing[0]
    assert "preprocessor_config.json" in missing[1]
    (directory / "model.safetensors").unlink()
    assert "model.safetensors" in describe(directory).missing[0]


@pytest.mark.parametrize(
    ("config", "reason"),
    [(None, "neither manifest.json nor config.json"), ("{", "not readable JSON"), ('{"model_type": "bert"}', "'bert'")],
)
def test_what_is_no_checkpoint_is_an_error(tmp_path: Path, config: str | None, reason: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=reason):
        describe(tmp_path)


def test_a_garbled_configuration_is_an_error_of_its_own(tmp_path: Path) -> None:
    directory = _clipseg(tmp_path / "made")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "extract_layers": 3}))
    with pytest.raises(CheckpointError, match=r"config\.json lacks or garbles"):
        describe(directory)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, (2).to_bytes(8, "little") + b"[]"])
def test_a_damaged_file_of_weights_is_an_error(tmp_path: Path, content: bytes) -> None:
    directory = _clipseg(tmp_path / "made")
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        describe(directory)


def test_the_list_names_what_can_be_loaded_and_what_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models_command, "cached", lambda: {"openai/clip-vit-base-patch16": tmp_path})
    outcome = CliRunner().invoke(app, ["models", "--json"])
    assert outcome.exit_code == 0, outcome.output
    rows = {row["name"]: row for row in json.loads(outcome.output)}
    assert list(rows) == [known.name for known in KNOWN]
    assert {name for name, row in rows.items() if row["here"]} == {"demo", "openai/clip-vit-base-patch16"}
    text = CliRunner().invoke(app, ["models"]).output
    assert all(name in text for name in rows)
    assert CliRunner().invoke(app, ["models", "show", "google/siglip-base-patch16-224"]).exit_code != 0


def test_the_hubs_cache_is_looked_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    snapshot = tmp_path / "models--CIDAS--clipseg-rd64" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--CIDAS--clipseg-rd64" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path))
    from vlm_core.catalogue import cached

    assert cached() == {"CIDAS/clipseg-rd64": snapshot}
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path / "none"))
    assert cached() == {}

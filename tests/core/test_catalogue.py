"""What a checkpoint is said to be must be what loading it gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vlm_core
from backend.cli import app
from tests.core.factories import make_clip_directory, make_clipseg_directory, make_siglip_directory
from vlm_core import CheckpointError
from vlm_core.catalogue import KNOWN, cached, find_checkpoints
from vlm_core.checkpoint import DEMO_DIRECTORY
from vlm_core.description import describe


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
    assert said.parameters == learned
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


@pytest.mark.parametrize("zipped", [True, False])
def test_parameters_of_what_torch_saved_are_counted(tmp_path: Path, zipped: bool) -> None:
    directory = _clip(tmp_path / "made")
    expected = describe(directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (directory / "notes.bin").write_bytes(b"nothing that is loaded")
    said = describe(directory)
    assert said.parameters == expected.parameters
    assert said.missing == ()
    assert said.megabytes == pytest.approx((directory / "pytorch_model.bin").stat().st_size / 1e6, abs=0.05)
    (directory / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged"):
        describe(directory)


def test_the_original_decoder_is_counted_as_far_as_it_is_read(tmp_path: Path) -> None:
    directory = _clip(tmp_path / "made")
    clip = describe(directory)
    torch.save(
        {
            "film_mul.weight": torch.zeros(3, 5),
            "reduce.weight": torch.zeros(7, 7),
            "clip_model.visual.proj": torch.zeros(900, 900),
        },
        directory / "rd-uni.pth",
    )
    said = describe(directory)
    assert said.path == str(directory / "rd-uni.pth")
    assert said.parameters == clip.parameters + 15
    assert said.megabytes > clip.megabytes


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_missing_shard_is_named(tmp_path: Path, name: str) -> None:
    directory = _clip(tmp_path / "made")
    whole = describe(directory).parameters
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem, _, suffix = name.partition(".")
    shards = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    names = sorted(tensors)
    parts = [{key: tensors[key] for key in some} for some in (names[::2], names[1::2])]
    for shard, part in zip(shards, parts, strict=True):
        (save_file if suffix == "safetensors" else torch.save)(part, directory / shard)
    index = {"weight_map": {key: shard for shard, part in zip(shards, parts, strict=True) for key in part}}
    (directory / f"{name}.index.json").write_text(json.dumps(index))
    assert (describe(directory).missing, describe(directory).parameters) == ((), whole)
    assert vlm_core.load(directory, device="cpu").can_rank
    (directory / shards[1]).unlink()
    said = describe(directory)
    assert said.missing == (f"weights: {shards[1]}, which {name}.index.json names",)
    assert said.parameters == sum(tensor.numel() for key, tensor in parts[0].items() if "position_ids" not in key)
    with pytest.raises(CheckpointError, match=shards[1]):
        vlm_core.load(directory, device="cpu")


@pytest.mark.parametrize(
    ("make", "without", "said"),
    [(_clip, ["tokenizer.json", "merges.txt"], "merges.txt"), (_siglip, ["tokenizer.json"], "tokenizer.json")],
)
def test_a_tokenizer_that_would_not_load_is_missing(
    tmp_path: Path, make: Callable[[Path], Path], without: list[str], said: str
) -> None:
    directory = make(tmp_path / "made")
    (directory / "vocab.json").write_text("{}")
    for name in without:
        (directory / name).unlink(missing_ok=True)
    (missing,) = describe(directory).missing
    assert said in missing
    with pytest.raises(CheckpointError, match=said):
        vlm_core.load(directory, device="cpu")


# --- lists -----------------------------------------------------------------------------------------------------


def _models(*arguments: str) -> list[dict[str, Any]]:
    outcome = CliRunner().invoke(app, ["models", *arguments, "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows: list[dict[str, Any]] = json.loads(outcome.output)
    return rows


def _hub(folder: Path, name: str, revision: str, make: Callable[[Path], Path] | None, *, main: bool = True) -> Path:
    """A repository in the hub's cache, with one revision."""
    repository = folder / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / (revision * 40)
    if make is None:
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text('{"model_type": "clip"}')
    else:
        make(snapshot)
        for folder_in in [path for path in snapshot.iterdir() if path.is_dir()]:
            shutil.rmtree(folder_in)
    (repository / "refs").mkdir(exist_ok=True)
    if main:
        (repository / "refs" / "main").write_text(revision * 40)
    return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub

    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_list_names_what_can_be_loaded_and_what_is_here(hub: Path) -> None:
    assert cached() == {}  # there is no such directory
    whole = _hub(hub, "openai/clip-vit-base-patch16", "a", _clip)
    part = _hub(hub, "CIDAS/clipseg-rd64-refined", "b", None)
    other = _hub(hub, "somebody/clip", "c", _clip)
    bert = _hub(hub, "somebody/bert", "d", None)
    (bert / "config.json").write_text('{"model_type": "bert"}')
    assert cached() == {
        "openai/clip-vit-base-patch16": whole, "CIDAS/clipseg-rd64-refined": part, "somebody/clip": other
    }  # fmt: skip
    rows = {row["name"]: row for row in _models()}
    assert list(rows) == [*(known.name for known in KNOWN), "somebody/clip"]
    assert {name: row["here"] for name, row in rows.items() if row["here"]} == {
        "demo": str(DEMO_DIRECTORY), "openai/clip-vit-base-patch16": str(whole), "somebody/clip": str(other)
    }  # fmt: skip
    assert "weights: model.safetensors" in rows["CIDAS/clipseg-rd64-refined"]["missing"]
    assert {len(row) for row in rows.values()} == {8}
    text = CliRunner().invoke(app, ["models"], catch_exceptions=False).output
    assert all(name in text for name in rows)
    assert "CIDAS/clipseg-rd64-refined lacks weights: model.safetensors" in text
    assert CliRunner().invoke(app, ["models", "show", "google/siglip-base-patch16-224"]).exit_code != 0


def test_a_link_to_a_file_that_the_hub_has_not_fetched_is_no_file(hub: Path) -> None:
    snapshot = _hub(hub, "openai/clip-vit-base-patch16", "a", _clip)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(hub / "blobs" / "none")
    rows = {row["name"]: row for row in _models()}
    assert rows["openai/clip-vit-base-patch16"]["here"] is None
    assert describe(snapshot).missing == ("weights: model.safetensors",)


def test_the_main_revision_is_taken_though_another_is_newer(hub: Path) -> None:
    main = _hub(hub, "openai/clip-vit-base-patch16", "a", _clip)
    _hub(hub, "openai/clip-vit-base-patch16", "b", None, main=False)
    assert cached() == {"openai/clip-vit-base-patch16": main}


def test_directories_are_looked_through(tmp_path: Path) -> None:
    shutil.copytree(DEMO_DIRECTORY, tmp_path / "runs" / "clipseg" / "checkpoint")
    about = {"recipe": "clipseg", "metrics": {"step": 40, "mask_loss": 0.31, "mean_iou": 0.826, "one_of_four": 0.5}}
    manifest = tmp_path / "runs" / "clipseg" / "checkpoint" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "about": about}))
    shutil.copytree(DEMO_DIRECTORY, tmp_path / ".hidden")
    (tmp_path / "runs" / "going").mkdir()
    (tmp_path / "runs" / "going" / "training.json").write_text('{"step": 20, "settings": {"steps": 90}}')
    _clip(tmp_path / "models" / "clip")
    (tmp_path / "models" / "clip" / "one.pth").write_bytes(b"")
    (tmp_path / "models" / "clip" / "two.pth").write_bytes(b"")
    _clipseg(tmp_path / "models" / "part")
    (tmp_path / "models" / "part" / "model.safetensors").unlink()
    found = [
        tmp_path / "models" / "clip" / "one.pth",
        tmp_path / "models" / "clip" / "two.pth",
        tmp_path / "models" / "part",
        tmp_path / "runs" / "clipseg" / "checkpoint",
        tmp_path / "runs" / "going",
    ]
    assert find_checkpoints(tmp_path) == found
    assert find_checkpoints(found[3]) == [found[3]]
    rows = _models(str(tmp_path / "runs"), str(tmp_path / "models"), str(tmp_path))
    assert [row["name"] for row in rows] == [str(found[i]) for i in (3, 4, 0, 1, 2)]
    trained, going, one, _, part = rows
    assert trained["here"] == trained["name"]
    assert (trained["masks"], trained["tags"]) == (True, True)
    assert trained["good_for"] == "clipseg, 40 updates, mean iou 0.83, one of four 0.50"
    assert "20 of 90 updates" in going["missing"][0]
    assert "one.pth is damaged" in one["missing"][0]
    assert part["missing"] == ["weights: model.safetensors"]
    assert [row["here"] for row in rows[1:]] == [None] * 4
    lines = CliRunner().invoke(app, ["models", str(tmp_path)], catch_exceptions=False).output.splitlines()
    assert lines[lines.index(str(found[3])) + 1].endswith("MB: clipseg, 40 updates, mean iou 0.83, one of four 0.50")
    assert "lacks weights: model.safetensors" in lines[lines.index(str(found[2])) + 2]


def test_where_nothing_is_that_is_said_and_no_directory_is_an_error(tmp_path: Path) -> None:
    assert _models(str(tmp_path)) == []
    outcome = CliRunner().invoke(app, ["models", str(tmp_path)])
    assert outcome.exit_code == 0
    assert "No checkpoint" in outcome.output
    with pytest.raises(CheckpointError, match="there is no directory 'shwo'"):
        CliRunner().invoke(app, ["models", "shwo"], catch_exceptions=False)
    assert "pull" in CliRunner().invoke(app, ["models", "--help"]).output

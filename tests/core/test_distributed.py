"""Two real processes: the same loss, gradients and weights as one, and a run that is resumed as it was."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.core.towers import pretrained_towers
from tests.core.two_processes import SETTINGS, whole_batch
from vlm_core.demo.scenes import generate_scene
from vlm_core.demo.source import SceneSource
from vlm_core.pair_files import open_pairs
from vlm_core.recipes.common import SettingsError
from vlm_core.recipes.distributed import Processes, joined
from vlm_core.recipes.train_clip import TrainClipSettings, train_clip

ROOT = Path(__file__).parents[2]


def write_scene_shards(folder: Path) -> None:
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for seed in range(8 * number, 8 * number + 8):
                scene = generate_scene(seed, size=32)
                png = io.BytesIO()
                scene.image.save(png, "PNG")
                for suffix, content in (("png", png.getvalue()), ("json", json.dumps(list(scene.captions)).encode())):
                    info = tarfile.TarInfo(f"{seed:04d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The directory that two processes worked in, and what each said. One start for all tests: it takes seconds."""
    out = tmp_path_factory.mktemp("two")
    (out / "shards").mkdir()
    write_scene_shards(out / "shards")
    pretrained_towers(out, dropout=0.0)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]  # a free port of this machine
    command += ["-m", "tests.core.two_processes", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.count("The model is in") == 1  # rank 0 speaks for both
    return out, [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_loss_and_gradients_are_those_of_one_process(two: tuple[Path, list[dict[str, Any]]]) -> None:
    loss, grads = whole_batch()
    for said in two[1]:
        assert said["loss"] == pytest.approx(loss, rel=1e-6)
        assert said["grads"].keys() == grads.keys()
        for name, grad in grads.items():
            assert torch.allclose(torch.tensor(said["grads"][name]), grad, rtol=1e-5, atol=1e-7), name
    assert two[1][0]["grads"] == two[1][1]["grads"]  # to the bit, so that weights stay equal


def test_weights_that_differ_are_told_to_all(two: tuple[Path, list[dict[str, Any]]]) -> None:
    assert all("have become different" in said["diverged"] for said in two[1])


def test_a_mistake_that_one_process_sees_stops_all(two: tuple[Path, list[dict[str, Any]]]) -> None:
    (first, shared), (second, also) = (said["refused"] for said in two[1])
    assert "another process cannot use them" in first
    assert "projection_dim 0" in second
    assert "batch_size 9 cannot be shared equally by 2 processes" in shared
    assert shared == also


def test_resumed_equals_uninterrupted_on_two_processes(two: tuple[Path, list[dict[str, Any]]]) -> None:
    out, _ = two
    whole, resumed = (load_file(out / run / "checkpoint" / "weights.safetensors") for run in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (out / "whole" / "metrics.jsonl").read_text() == (out / "resumed" / "metrics.jsonl").read_text()
    source = SceneSource(range(24), 32)
    with pytest.raises(SettingsError, match="started with 2 processes, not 1"):
        train_clip(SETTINGS, source, source, out / "whole", resume=True, quiet=True)


def test_each_process_drops_out_units_of_its_own(two: tuple[Path, list[dict[str, Any]]]) -> None:
    assert two[1][0]["random"] != two[1][1]["random"]


def test_the_command_on_two_processes_ends_as_on_one(two: tuple[Path, list[dict[str, Any]]]) -> None:
    out, said = two
    assert [own["command"] for own in said] == [0, 0]
    settings = TrainClipSettings(
        image_encoder=str(out / "vit"),
        text_encoder=str(out / "bert"),
        train_image_encoder=True,
        train_text_encoder=True,
        projection_dim=16,
        steps=4,
        batch_size=8,
        evaluate_every=2,
        device="cpu",
    )
    source = open_pairs(out / "shards")
    train_clip(settings, source, source, out / "one", quiet=True)
    logs = [
        [json.loads(line) for line in (out / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "command")
    ]
    assert [row["step"] for row in logs[1]] == [0, 2, 4]
    for expected_row, row in zip(*logs, strict=True):
        assert row.get("loss", 0.0) == pytest.approx(expected_row.get("loss", 0.0), rel=1e-4)
    expected, found = (load_file(out / run / "checkpoint" / "weights.safetensors") for run in ("one", "command"))
    for name, values in expected.items():
        # A key's bias changes no attention: its gradient is rounding, which Adam makes as large as any.
        if not name.endswith(("qkv.bias", "key.bias")):
            assert torch.allclose(found[name], values, atol=2e-5), name


def test_a_process_alone_is_all_there_is() -> None:
    with joined("cpu") as speaks:
        assert speaks
        processes = Processes.joined("cpu")
    assert (processes.rank, processes.size, processes.main) == (0, 1, True)
    rows = torch.ones(3, 2)
    assert processes.gather(rows) is rows
    assert processes.part([1, 2, 3]) == [1, 2, 3]
    assert (processes.mean(2.5), processes.any(True), processes.any(False)) == (2.5, True, False)

"""What the contrastive training needs for much data: parts of a batch, shards with broken images, the best weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

import vlm_core
from backend.cli import app
from tests.core.towers import pretrained_towers
from tests.core.two_processes import SETTINGS as TWO
from tests.core.two_processes import Stopped
from vlm_core.demo.scenes import generate_scene
from vlm_core.demo.source import SceneSource
from vlm_core.errors import DataError
from vlm_core.evaluation.matching import measure_matching
from vlm_core.recipes.clip_validation import Validation
from vlm_core.recipes.common import SettingsError, learning_rate
from vlm_core.recipes.event_log import EventLog
from vlm_core.recipes.train_clip import TrainClipSettings, train_clip
from vlm_core.shards import ShardPairs

SETTINGS = dataclasses.replace(TWO, micro_batch=None, patience=None)


@pytest.fixture(scope="module")
def scenes() -> SceneSource:
    return SceneSource(range(24), 32)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "weights.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Say what the next measurements give: what a tiny model really recalls hangs on the last bits."""

    def will_be(values: list[float]) -> None:
        left = iter(values)
        monkeypatch.setattr(Validation, "measure", lambda *_: {"mean_recall": next(left)})

    return will_be


# --- parts of a batch ----------------------------------------------------------------------------------------


def test_parts_of_a_batch_learn_what_the_batch_does(scenes: SceneSource, tmp_path: Path) -> None:
    still = {**SETTINGS.text_args, "dropout": 0.0, "attention_dropout": 0.0}  # type: ignore[dict-item]
    settings = dataclasses.replace(SETTINGS, text_args=still, steps=4)
    whole = train_clip(settings, scenes, None, tmp_path / "whole", quiet=True)
    parts = train_clip(dataclasses.replace(settings, micro_batch=3), scenes, None, tmp_path / "parts", quiet=True)
    expected, found = weights(whole), weights(parts)
    for name, values in expected.items():
        # A key's bias changes no attention: its gradient is rounding, which Adam makes as large as any.
        if not name.endswith(("qkv.bias", "k_lin.bias")):
            assert torch.allclose(found[name], values, atol=1e-4), name
    losses = [[row["loss"] for row in rows(tmp_path / run)[1:]] for run in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_resumed_equals_uninterrupted_with_parts_and_the_best_before_the_state(
    scenes: SceneSource, measured: Callable[[list[float]], None], tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, micro_batch=3, patience=10)
    measured([0.0, 0.5, 0.3, 0.4])
    whole = train_clip(settings, scenes, scenes, tmp_path / "whole", quiet=True)
    source = Stopped(range(24), 32)
    source.left = 8 * 4 + 3  # images of four steps and a part of the fifth
    measured([0.0, 0.5, 0.3])
    with pytest.raises(KeyboardInterrupt):
        train_clip(settings, source, scenes, tmp_path / "run", quiet=True)
    state = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (state["step"], state["notes"]["best"]["step"], state["notes"]["best"]["stale"]) == (4, 2, 1)
    source.left = 10**9
    measured([0.4])
    resumed = train_clip(settings, source, scenes, tmp_path / "run", resume=True, quiet=True)
    assert same(weights(resumed), weights(whole))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    ends = [load_file(tmp_path / run / "00000006-training.safetensors") for run in ("run", "whole")]
    assert same(*ends)  # weights, optimizer and random numbers
    assert not same({name: ends[0][name] for name in weights(whole)}, weights(whole))  # the best are not the last


# --- what is measured, and the best of it ----------------------------------------------------------------------


def test_recall_in_the_log_is_that_of_the_report(scenes: SceneSource, tmp_path: Path) -> None:
    written = train_clip(SETTINGS, scenes, scenes, tmp_path / "run", quiet=True)
    last = rows(tmp_path / "run")[-1]
    texts = [scenes.texts_of(index) for index in range(24)]
    report = measure_matching(vlm_core.load(written, device="cpu"), scenes.image, texts)
    expected = {f"image_to_text_recall@{k}": value for k, value in report.text_of_image.recall.items()}
    expected |= {f"text_to_image_recall@{k}": value for k, value in report.image_of_text.recall.items()}
    assert {key: last[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert len(expected) == 6
    assert last["mean_recall"] == pytest.approx(sum(expected.values()) / 6, abs=1e-6)


def test_only_recalls_that_there_are_candidates_for(tmp_path: Path) -> None:
    few = SceneSource(range(8), 32)
    train_clip(dataclasses.replace(SETTINGS, steps=2), few, few, tmp_path / "run", quiet=True)
    assert {key for key in rows(tmp_path / "run")[0] if key.startswith("text_to_image")} == {
        "text_to_image_recall@1",
        "text_to_image_recall@5",
    }


def test_a_run_that_gets_no_better_ends_with_its_best_weights(
    scenes: SceneSource, measured: Callable[[list[float]], None], tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, patience=2, steps=100)
    measured([0.9, 0.3, 0.5, 0.4, 0.5])  # before the first update does not count, and equal is no better
    written = train_clip(settings, scenes, scenes, tmp_path / "run", quiet=True)
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 2, 4, 6, 8]
    about = json.loads((written / "manifest.json").read_text())["about"]
    assert about["step"] == 4
    assert about["metrics"] == rows(tmp_path / "run")[2]
    # The state of a run that is stopped after its best measurement holds the weights that are saved.
    source = Stopped(range(24), 32)
    source.left = 8 * 4 + 1
    measured([0.9, 0.3, 0.5])
    with pytest.raises(KeyboardInterrupt):
        train_clip(settings, source, scenes, tmp_path / "stopped", quiet=True)
    state = load_file(tmp_path / "stopped" / "00000004-training.safetensors")
    at_best = {name: values for name, values in state.items() if name.startswith("clip.")}
    assert same(at_best, weights(written))
    # Resumed after its end it is completed, and does not go on.
    measured([])
    again = train_clip(settings, scenes, scenes, tmp_path / "run", resume=True, quiet=True)
    assert same(weights(again), at_best)
    assert len(rows(tmp_path / "run")) == 5
    assert [path.name for path in (tmp_path / "run").glob("*best*")] == ["00000004-best.safetensors"]


# --- shards ----------------------------------------------------------------------------------------------------


def write_shard(path: Path, broken: set[int], count: int = 12) -> Path:
    with tarfile.open(path, "w") as tar:
        for seed in range(count):
            scene = generate_scene(seed, size=32)
            png = io.BytesIO()
            scene.image.save(png, "PNG")
            image = png.getvalue()[:100] if seed in broken else png.getvalue()
            for suffix, content in (("png", image), ("json", json.dumps(list(scene.captions)).encode())):
                info = tarfile.TarInfo(f"{seed:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("learn", [True, False])
def test_broken_images_are_left_out_while_training(tmp_path: Path, learn: bool) -> None:
    shard = write_shard(tmp_path / "a.tar", {1, 2, 7})
    settings = dataclasses.replace(SETTINGS, train_image_encoder=learn, text_args={**SETTINGS.text_args, "n_layers": 1})  # type: ignore[dict-item]
    source = ShardPairs([shard])
    whole = train_clip(settings, source, source, tmp_path / "whole", quiet=True)
    assert sorted(member.member for member in source.broken) == ["0001.png", "0002.png", "0007.png"]
    again = train_clip(settings, ShardPairs([shard]), ShardPairs([shard]), tmp_path / "again", quiet=True)
    assert same(weights(again), weights(whole))  # who stands in depends on the data alone
    few = ShardPairs([write_shard(tmp_path / "b.tar", {0, 1, 2, 3, 4})])
    with pytest.raises(DataError, match="do not fill a batch"):
        train_clip(settings, few, None, tmp_path / "few", quiet=True)


def test_a_broken_file_of_a_jsonl_is_an_error_as_before(tmp_path: Path) -> None:
    class Broken(SceneSource):
        def image(self, index: int) -> Image.Image:
            raise DataError("repair it")

    with pytest.raises(DataError, match="repair it"):
        train_clip(SETTINGS, Broken(range(8), 32), None, tmp_path / "run", quiet=True)


# --- event files and the schedule --------------------------------------------------------------------------------


def test_event_files_hold_what_the_log_does_and_the_rate(scenes: SceneSource, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, tensorboard=True, warmup=0.5, evaluate_every=1)
    source = Stopped(range(24), 32)
    source.left = 8 * 3 + 2
    with pytest.raises(KeyboardInterrupt):
        train_clip(settings, source, scenes, tmp_path / "run", quiet=True)
    train_clip(settings, scenes, scenes, tmp_path / "run", resume=True, quiet=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    log = rows(tmp_path / "run")
    for name in ("loss", "mean_recall", "image_to_text_recall@1"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({row["step"]: row[name] for row in log if name in row}, rel=1e-4)
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert rates == pytest.approx([learning_rate(step, 6, 3e-3, warmup=0.5) for step in range(6)], rel=1e-5)
    assert rates.index(max(rates)) == 3  # half of the steps rise


def test_events_that_a_resumed_run_makes_again_are_hidden(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for step in (1, 2, 3):
        log.add(step, {"loss": step})
    log.close()
    log = EventLog(tmp_path, resumed_at=2)
    log.add(4, {"loss": 40})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (4, 40)]


def test_no_event_files_unless_asked_for(scenes: SceneSource, tmp_path: Path) -> None:
    train_clip(dataclasses.replace(SETTINGS, steps=1), scenes, None, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_event_files_without_their_package_name_the_extra(
    scenes: SceneSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    settings = dataclasses.replace(SETTINGS, tensorboard=True)
    with pytest.raises(SettingsError, match=r"pip install 'label-studio-vlm-backend\[tensorboard\]'"):
        train_clip(settings, scenes, None, tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        # Four steps, half of them up: to a third and two thirds of the peak, then half a cosine from the peak down.
        (0.5, [1 / 3, 2 / 3, 1.0, 0.01 + 0.99 * 0.5]),
        (0.0, [1.0, 0.01 + 0.99 * 0.8535534, 0.01 + 0.99 * 0.5, 0.01 + 0.99 * 0.1464466]),
    ],
)
def test_the_rate_warms_up_linearly_and_falls_as_a_cosine(warmup: float, expected: list[float]) -> None:
    assert [learning_rate(step, 4, 1.0, warmup=warmup) for step in range(4)] == pytest.approx(expected, rel=1e-6)


# --- settings ----------------------------------------------------------------------------------------------------


def test_every_mistake_is_told_at_once(scenes: SceneSource, tmp_path: Path) -> None:
    wrong = TrainClipSettings(
        image_encoder="scratch:vit_tiny_patch16_224",
        image_args={"stem_widths": [8, 16]},
        text_encoder="scratch:distilbert",
        micro_batch=40,
        warmup=1.0,
        patience=0,
        validation_images=3,
    )
    with pytest.raises(SettingsError) as caught:
        train_clip(wrong, scenes, None, tmp_path / "run", quiet=True)
    message = str(caught.value)
    for part in (
        "micro_batch 40 must be between 1 and batch_size 32",
        "batch norms of stem_widths",
        "warmup 1.0 must be in [0, 1)",
        "patience 0: at least 1",
        "validation_images 3",
        "patience needs validation data",
        "24 training images are fewer than batch_size 32",
    ):
        assert part in message
    assert not (tmp_path / "run").exists()
    frozen = dataclasses.replace(wrong, train_image_encoder=False)
    assert not any("batch norms" in problem for problem in frozen.problems())  # frozen ones use what they know


def test_the_command_hands_its_options_on_and_names_what_is_broken(tmp_path: Path) -> None:
    image, text = pretrained_towers(tmp_path)
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(shards / "a.tar", set())
    (shards / "b.tar").write_bytes(b"not a shard")
    options = ["--train", f"{shards}/*.tar", "--validation", str(shards / "a.tar"), "--out", str(tmp_path / "run")]
    options += ["--image-encoder", str(image), "--text-encoder", str(text), "--steps", "2", "--batch-size", "8"]
    options += ["--micro-batch", "5", "--warmup", "0", "--patience", "3", "--tensorboard", "--device", "cpu", "--quiet"]
    result = CliRunner().invoke(app, ["train", "clip", *options])
    assert result.exit_code == 0, result.output
    assert "Left out as broken: 1: b.tar: " in result.stderr
    used = json.loads((tmp_path / "run" / "checkpoint" / "manifest.json").read_text())["about"]["settings"]
    given = {"micro_batch": 5, "warmup": 0.0, "patience": 3, "tensorboard": True}
    assert {name: used[name] for name in given} == given


def test_the_defaults_are_those_for_little_data() -> None:
    settings = TrainClipSettings(image_encoder="vit", text_encoder="bert")
    assert settings.problems() == []
    assert (settings.micro_batch, settings.patience, settings.warmup, settings.tensorboard) == (None, None, 0.1, False)
    assert not settings.image_encoder_learns
    assert not settings.text_encoder_learns

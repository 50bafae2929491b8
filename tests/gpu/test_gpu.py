"""On a GPU: the same answers as on the CPU, trainings that learn the same, and memory that is really short."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vlm_core
from backend.gpu_memory import bound_gpu_memory
from backend.settings import Settings
from backend.versions import VersionStore
from benchmarks.server import predict_body, running_backend, tasks
from tests.core.two_processes import SETTINGS as CONTRASTIVE
from tests.jobs.demo_project import scenes_project
from tests.jobs.label_studio import serve
from tests.jobs.one_training import train
from training_jobs.errors import MemoryShortError
from training_jobs.ladder import Climb, Labels
from training_jobs.memory import short_memory_told
from training_jobs.recipes.config import RecipeConfig
from training_jobs.recipes.finetune_decoder import Example, FinetuneConfig, PromptTable, fit
from training_jobs.recipes.fit_mask_head import MaskHeadConfig
from training_jobs.recipes.fit_mask_head import fit as fit_mask_head
from training_jobs.recipes.micro_batches import MicroBatches
from training_jobs.recipes.tune_conditions import ConditionsConfig, tune
from vlm_core.demo.scenes import generate_scene
from vlm_core.demo.source import SceneSource
from vlm_core.model import Model
from vlm_core.recipes.train_clip import train_clip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

PHRASES = ("circle", "red square", "star")


@pytest.fixture(scope="module")
def cpu() -> Model:
    return vlm_core.load("demo", "cpu", "float32")


@pytest.fixture(scope="module")
def gpu() -> Model:
    return vlm_core.load("demo", "cuda", "float32")


@pytest.fixture
def all_memory() -> Iterator[None]:
    """Gives the whole GPU back after a test that lets torch have a part of it."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def pictures(count: int) -> list[Image.Image]:
    return [generate_scene(1_700_000 + number, size=(160, 120)).image for number in range(count)]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


# Answers ----------------------------------------------------------------------------------------------------
def test_masks_and_tags_are_those_of_the_cpu(cpu: Model, gpu: Model) -> None:
    images = pictures(70)  # more than a GPU's batch
    found = gpu.decode_batch(gpu.encode_image(images), [gpu.encode_text(PHRASES)] * len(images))
    expected = cpu.decode_batch(cpu.encode_image(images), [cpu.encode_text(PHRASES)] * len(images))
    for one, other in zip(found, expected, strict=True):
        assert relative(one.logits, other.logits) < 1e-3  # convolutions round to tf32 there
    ranked, as_expected = (model.rank(images[0], PHRASES) for model in (gpu, cpu))
    assert [one.tag for one in ranked] == [one.tag for one in as_expected]
    assert [one.probability for one in ranked] == pytest.approx([one.probability for one in as_expected], abs=1e-4)


def test_half_precision_moves_few_pixels(cpu: Model) -> None:
    half = vlm_core.load("demo", "cuda", "auto")
    assert half.dtype == torch.bfloat16
    moved = []
    for image in pictures(10):
        signs = [model.segment(image, PHRASES).logits.cpu() > 0 for model in (half, cpu)]
        moved.append(float((signs[0] != signs[1]).float().mean()))
    assert np.mean(moved) < 0.01


def test_a_server_on_the_gpu_answers_as_one_on_the_cpu() -> None:
    found = []
    for device in ("cuda", "cpu"):
        with running_backend("demo", VLM_DEVICE=device, VLM_DTYPE="float32") as (client, _):
            body = client.post("/predict", json=predict_body(tasks(1_800_000, 4))).raise_for_status().json()
        found.append(body["results"])
    for one, other in zip(*found, strict=True):
        names = [
            sorted(tuple(region["value"].get("brushlabels", ())) for region in item["result"]) for item in (one, other)
        ]
        assert names[0] == names[1]
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


# Learning ---------------------------------------------------------------------------------------------------
def corrected(model: Model, count: int) -> tuple[list[Example], PromptTable]:
    """Scenes with the true masks of their shapes, at the model's grid."""
    assert model.decoder is not None
    found = []
    for number in range(count):
        scene = generate_scene(1_900_000 + number, shapes=("circle", "square", "star"), size=(96, 96))
        seen = model.encode_image(scene.image)
        side = seen.grid_hw[0] * model.decoder.config.upsampling
        masks = [Image.fromarray(scene.mask_of(shape)).resize((side, side)) for shape in ("circle", "square", "star")]
        target = np.stack([np.asarray(mask, dtype=np.uint8) * 255 for mask in masks])
        features = dataclasses.replace(seen, taps=tuple(tap.clone().cpu().half() for tap in seen.taps))
        found.append(Example(f"{number:064d}", (features,), (0, 1, 2), (target,)))
    table = model.encode_text(("circle", "square", "star")).clone().float().cpu()
    return found, PromptTable(table, ((0,), (1,), (2,)))


SHORT = FinetuneConfig(steps=20)


def learn(model: Model, parts: MicroBatches | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Both fits on what the CPU has encoded: weights, and the losses of all steps."""
    assert model.decoder is not None
    losses: list[float] = []

    def tick(share: float, loss: float) -> None:
        losses.append(loss)

    examples, prompts = corrected(vlm_core.load("demo", "cpu", "float32"), 12)
    conditions = tune(model.decoder, examples, prompts, [2], ConditionsConfig(steps=20), SHORT, tick, parts)
    state = fit(model.decoder, examples, prompts, SHORT, tick, parts)
    return {**state, "conditions": conditions}, losses


def test_fits_learn_what_they_learn_on_the_cpu(cpu: Model, gpu: Model) -> None:
    (found, found_losses), (expected, losses) = learn(gpu), learn(cpu)
    assert found_losses == pytest.approx(losses, rel=1e-2)
    assert losses[19] < 0.9 * losses[0]
    assert relative(found["conditions"], expected["conditions"]) < 1e-2


def learn_head(model: Model, parts: MicroBatches | None = None, blocks: Sequence[nn.Module] = ()) -> list[float]:
    """The losses of a head on what the CPU has encoded."""
    assert model.decoder is not None
    losses: list[float] = []
    examples, prompts = corrected(vlm_core.load("demo", "cpu", "float32"), 12)
    state = fit_mask_head(
        model.decoder.config,
        examples,
        prompts,
        MaskHeadConfig(steps=20, batch_images=6),
        SHORT,
        lambda share, loss: losses.append(loss),
        parts,
        model.device,
        blocks,
    )
    assert all(value.device.type == "cpu" for value in state.values())
    return losses


def test_a_head_learns_what_it_learns_on_the_cpu(cpu: Model, gpu: Model) -> None:
    eager = MicroBatches()
    eager.most = 6
    found = [learn_head(cpu), learn_head(gpu, eager), learn_head(gpu)]
    assert found[0][19] < 0.9 * found[0][0]
    assert found[1] == pytest.approx(found[0], rel=5e-2)
    assert found[2] == pytest.approx(found[1], rel=1e-2)


def test_blocks_of_the_encoder_learn_what_they_learn_on_the_cpu(cpu: Model, gpu: Model) -> None:
    found = [learn_head(model, blocks=model.adaptable_blocks) for model in (cpu, gpu)]
    assert found[0][19] < 0.9 * found[0][0]
    assert found[1] == pytest.approx(found[0], rel=5e-2)


def test_fits_side_by_side_learn_what_one_after_the_other_learns(gpu: Model) -> None:
    """Every GPU that there is takes part, the first one twice: each with a recording of its own."""
    devices = [torch.device("cuda", 0), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    assert gpu.decoder is not None
    examples, prompts = corrected(vlm_core.load("demo", "cpu", "float32"), 24)
    labels = Labels(("circle", "square", "star"), (("circle",), ("square",), ("star",)))
    config = RecipeConfig(conditions=ConditionsConfig(steps=20), head=MaskHeadConfig(steps=20), decoder_from=400)
    one, several = (
        Climb(gpu.decoder, examples, prompts, labels, config, lambda phase, share, loss: None, devices=some).learn()
        for some in ([], devices)
    )
    assert one.state.keys() == several.state.keys()
    assert all(relative(several.state[name], value) < 5e-2 for name, value in one.state.items() if value.any())


def test_recorded_steps_are_those_that_are_not_recorded(gpu: Model) -> None:
    recorded, losses = learn(gpu)
    parts = MicroBatches()
    parts.most = 6  # a whole batch, but not as a graph
    eager, expected = learn(gpu, parts)
    assert losses == pytest.approx(expected, rel=1e-3)
    assert relative(recorded["conditions"], eager["conditions"]) < 1e-3


def test_a_gpu_that_is_really_full_takes_fewer_images_at_once(
    gpu: Model, all_memory: None, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = learn(gpu)
    eager = MicroBatches()
    eager.most = 6  # a whole batch, but not as a graph, which needs more
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    learn(gpu, eager)
    needed = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * needed) / whole)
    parts = MicroBatches()
    with caplog.at_level(logging.WARNING):
        _, losses = learn(gpu, parts)
    assert parts.most in (1, 3)
    assert "memory is short for 6 images at once" in caplog.text
    assert losses == pytest.approx(expected, rel=1e-2)


def test_a_gpu_without_any_room_is_told_with_the_remedy(gpu: Model, all_memory: None) -> None:
    whole = torch.cuda.get_device_properties(0).total_memory
    examples, prompts = corrected(gpu, 6)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / whole)
    hoard = filled()
    assert hoard
    assert gpu.decoder is not None
    with pytest.raises(MemoryShortError, match="VLM_GPU_MEMORY_FRACTION"), short_memory_told():
        fit(gpu.decoder, examples, prompts, SHORT, lambda share, loss: None)


def filled() -> list[torch.Tensor]:
    """All that torch may still take."""
    hoard: list[torch.Tensor] = []
    with contextlib.suppress(torch.OutOfMemoryError):
        while True:
            hoard.append(torch.empty(1 << 18, dtype=torch.uint8, device="cuda"))
    return hoard


def test_the_setting_bounds_what_torch_takes(all_memory: None) -> None:
    whole = torch.cuda.get_device_properties(0).total_memory
    bound_gpu_memory(Settings(device="cuda", gpu_memory_fraction=0.05))
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(int(0.06 * whole), dtype=torch.uint8, device="cuda")
    torch.empty(int(0.04 * whole), dtype=torch.uint8, device="cuda")


def test_a_whole_training_on_the_gpu_publishes_a_version_that_a_cpu_serves(tmp_path: Path) -> None:
    settings = Settings(checkpoint="demo", data_dir=tmp_path, device="cuda", label_studio_url=None)
    with serve(scenes_project(40)) as label_studio:
        result = train(label_studio, settings, RecipeConfig(most_absent_rise=0.5))
    assert result.version == 1, result.reason
    version = VersionStore(tmp_path).get(7, 1)
    star = version.metrics()["verdict"]["labels"]["star"]["iou"]
    assert star["new"] > star["old"] + 0.1
    learned = vlm_core.load("demo", "cpu", "float32").with_learned(version.load_weights())
    assert learned.segment(pictures(1)[0], ["star"]).logits.isfinite().all()


def test_contrastive_training_in_half_precision_learns(tmp_path: Path) -> None:
    settings = dataclasses.replace(CONTRASTIVE, steps=30, precision="auto", device="cuda", patience=None)
    train_clip(settings, SceneSource(range(64), 32), None, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])

"""Both recipes on tiny models: they learn, resume exactly, and refuse what cannot work before any work."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import vlm_core
from backend.cli import app
from tests.core.towers import pretrained_towers
from vlm_core.data import JsonlPairs, JsonlPhrases, PhraseSample
from vlm_core.demo.scenes import generate_scene
from vlm_core.demo.source import SceneSource
from vlm_core.errors import CheckpointMismatchError, CheckpointNotFoundError, DataError
from vlm_core.image_encoder import ImageEncoder
from vlm_core.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vlm_core.recipes.chart import draw_chart
from vlm_core.recipes.common import SettingsError, learning_rate, parameter_groups
from vlm_core.recipes.encoders import make_image_encoder
from vlm_core.recipes.train_clip import TrainClipSettings, train_clip
from vlm_core.recipes.train_clipseg import PAPER, TrainClipsegSettings, _mixed, _text_weights, train_clipseg
from vlm_core.text_encoder import TextEncoder
from vlm_core.vocabulary import build_tokenizer, words_of

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
TEXT = {"dim": 24, "hidden_dim": 48, "n_layers": 1, "n_heads": 2}

CLIP = TrainClipSettings(
    image_encoder="scratch:vit_tiny_patch16_224",
    image_args=VIT,
    text_encoder="scratch:distilbert",
    text_args=TEXT,
    image_size=32,
    crop=False,
    max_tokens=24,
    projection_dim=16,
    steps=6,
    batch_size=8,
    evaluate_every=2,
    device="cpu",
)


def clipseg(clip: Path, **changes: object) -> TrainClipsegSettings:
    settings = TrainClipsegSettings(
        clip=str(clip),
        reduce_dim=16,
        num_heads=2,
        mlp_width=32,
        phrases_per_image=3,
        steps=6,
        batch_size=4,
        evaluate_every=2,
        save_every=2,
        device="cpu",
    )
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]  # values of many types


class Interrupted(SceneSource):
    """Scenes that stop coming, as when a machine is switched off."""

    left = 10**9

    def image(self, index: int) -> Image.Image:
        self._count()
        return super().image(index)

    def sample(self, index: int, rng: np.random.Generator, count: int) -> PhraseSample:
        self._count()
        return super().sample(index, rng, count)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "weights.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def scenes() -> SceneSource:
    return SceneSource(range(40), 32)


@pytest.fixture(scope="module")
def base(scenes: SceneSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in our own layout."""
    return train_clip(CLIP, scenes, scenes, tmp_path_factory.mktemp("clip") / "run", quiet=True)


@pytest.fixture(scope="module")
def phrase_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes as a user's JSONL file with images and masks."""
    folder = tmp_path_factory.mktemp("phrases")
    lines = []
    for seed in range(8):
        scene = generate_scene(seed, size=48)
        scene.image.save(folder / f"{seed}.png")
        for slot, (phrase, mask) in enumerate(scene.phrases(limit=2)):
            Image.fromarray(mask).convert("L").save(folder / f"{seed}-{slot}.png")
            lines.append({"image": f"{seed}.png", "phrase": phrase, "mask": f"{seed}-{slot}.png"})
        lines.append({"image": f"{seed}.png", "phrase": scene.absent_phrases(1)[0], "mask": None})
    path = folder / "phrases.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# --- train clip ----------------------------------------------------------------------------------------------


def test_train_clip_writes_a_checkpoint_that_loads_and_what_it_measured(base: Path) -> None:
    model = vlm_core.load(base, device="cpu")
    assert not model.can_segment
    scores = model.rank(generate_scene(3).image, ["a red circle", "a blue square"])
    assert sum(score.probability for score in scores) == pytest.approx(1.0)
    measured = rows(base.parent)
    assert [row["step"] for row in measured] == [0, 2, 4, 6]
    assert all(0 <= row["one_of_four"] <= 1 for row in measured)
    assert Image.open(base.parent / "metrics.png").size[0] > 100
    about = json.loads((base / "manifest.json").read_text())["about"]
    assert about["settings"]["steps"] == 6


def test_train_clip_learns(scenes: SceneSource, tmp_path: Path) -> None:
    few = SceneSource(range(8), 32)
    settings = dataclasses.replace(CLIP, steps=60, evaluate_every=20, learning_rate=4e-3)
    train_clip(settings, few, few, tmp_path / "run", quiet=True)
    measured = rows(tmp_path / "run")
    assert measured[-1]["loss"] < 0.6 * measured[1]["loss"]
    assert measured[-1]["one_of_four"] >= 0.6  # chance is 0.25


def test_train_clip_resumed_equals_uninterrupted(base: Path, scenes: SceneSource, tmp_path: Path) -> None:
    source = Interrupted(range(40), 32)
    source.left = 8 * 4 + 3  # images of four steps and a part of the fifth
    with pytest.raises(KeyboardInterrupt):
        train_clip(CLIP, source, scenes, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "checkpoint").exists()
    source.left = 10**9
    resumed = train_clip(CLIP, source, scenes, tmp_path / "run", resume=True, quiet=True)
    assert same(weights(resumed), weights(base))
    assert rows(tmp_path / "run") == rows(base.parent)


def test_another_seed_gives_another_model(base: Path, scenes: SceneSource, tmp_path: Path) -> None:
    other = train_clip(dataclasses.replace(CLIP, seed=1), scenes, None, tmp_path / "run", quiet=True)
    assert not same(weights(other), weights(base))


def test_a_text_tower_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    _, text = pretrained_towers(tmp_path)
    tensors = load_file(text / "model.safetensors")
    whole = dict(tensors)
    name = next(key for key in tensors if "attention.self.query.weight" in key)
    save_file({k: v for k, v in tensors.items() if k != name}, text / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointMismatchError, match=r"lack .*query\.weight"):
        TextEncoder.pretrained(str(text))
    save_file(whole, text / "model.safetensors", {"format": "pt"})
    assert TextEncoder.pretrained(str(text)).width == 24
    (text / "model.safetensors").write_bytes((text / "model.safetensors").read_bytes()[:500])
    with pytest.raises(CheckpointNotFoundError, match="cannot be loaded"):
        TextEncoder.pretrained(str(text))


def test_a_run_killed_between_its_last_state_and_its_checkpoint_is_completed(
    base: Path, scenes: SceneSource, tmp_path: Path
) -> None:
    settings = clipseg(base, steps=2)
    written = train_clipseg(settings, scenes, None, tmp_path / "run", quiet=True)
    expected = weights(written)
    shutil.rmtree(written)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')  # cut off in the middle of a line
    assert same(weights(train_clipseg(settings, scenes, None, tmp_path / "run", resume=True, quiet=True)), expected)
    assert [row["step"] for row in rows(tmp_path / "run")] == [2]


@pytest.mark.parametrize("image_size", [None, 48])
def test_a_tower_whose_config_changes_the_model_can_be_built_again(tmp_path: Path, image_size: int | None) -> None:
    image, _ = pretrained_towers(tmp_path)
    found = ImageEncoder.pretrained(str(image), image_size)
    again = ImageEncoder(found.architecture, json.loads(json.dumps(found.model_args)))
    again.load_state_dict(found.state_dict())
    pixels = torch.rand(1, 3, 48, 48)
    assert torch.equal(again.eval()(pixels).pooled, found.eval()(pixels).pooled)


def test_pretrained_towers_stay_as_they_are_and_the_projections_learn(tmp_path: Path, scenes: SceneSource) -> None:
    image, text = pretrained_towers(tmp_path)
    settings = TrainClipSettings(
        image_encoder=str(image), text_encoder=str(text), projection_dim=16, steps=4, batch_size=8, device="cpu"
    )
    trained = weights(train_clip(settings, scenes, None, tmp_path / "run", quiet=True))
    tower = load_file(image / "model.safetensors")
    assert all(torch.equal(trained[f"clip.image_encoder.vit.{key}"], value) for key, value in tower.items())
    bert = load_file(text / "model.safetensors")
    assert all(torch.equal(trained[f"clip.text_encoder.model.{key}"], value) for key, value in bert.items())
    untrained = weights(
        train_clip(dataclasses.replace(settings, steps=1, learning_rate=1e-9), scenes, None, tmp_path / "0", quiet=True)
    )
    for name in ("clip.visual_projection.weight", "clip.text_projection.weight", "clip.logit_scale"):
        assert not torch.allclose(trained[name], untrained[name], atol=1e-5)
    manifest = json.loads((tmp_path / "run" / "checkpoint" / "manifest.json").read_text())
    assert manifest["tag_transform"]["mean"] == [0.5, 0.5, 0.5]


def test_a_frozen_tower_sees_each_image_once(tmp_path: Path) -> None:
    image, text = pretrained_towers(tmp_path)
    source = Interrupted(range(16), 32)
    source.left = 16
    settings = TrainClipSettings(
        image_encoder=str(image), text_encoder=str(text), projection_dim=16, steps=8, batch_size=8, device="cpu"
    )
    train_clip(settings, source, None, tmp_path / "run", quiet=True)
    assert source.left == 0


# --- train clipseg -------------------------------------------------------------------------------------------


def test_train_clipseg_from_a_file_leaves_the_clip_alone(base: Path, phrase_file: Path, tmp_path: Path) -> None:
    source = JsonlPhrases(phrase_file)
    built = train_clipseg(clipseg(base), source, source.every_sample, tmp_path / "run", quiet=True)
    before, after = weights(base), weights(built)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    model = vlm_core.load(built, device="cpu")
    image = generate_scene(3).image
    assert model.segment(image, ["circle", "left square"]).logits.shape == (2, image.height, image.width)
    last = rows(tmp_path / "run")[-1]
    assert {"step", "mask_loss", "mean_iou", "foreground_iou", "absent_marked"} <= last.keys()
    assert "match_loss" not in last


def test_train_clipseg_learns_a_phrase(base: Path, phrase_file: Path, tmp_path: Path) -> None:
    source = JsonlPhrases(phrase_file, absent=0.0)
    settings = clipseg(
        base, steps=200, batch_size=8, learning_rate=3e-3, dropout=0.0, evaluate_every=200, save_every=20
    )
    settings = dataclasses.replace(settings, train_encoders=True)
    train_clipseg(settings, source, source.every_sample, tmp_path / "run", quiet=True)
    measured = rows(tmp_path / "run")
    assert measured[-1]["mask_loss"] < 0.85 * measured[0]["mask_loss"]
    assert measured[-1]["mean_iou"] > 0.1


def test_the_word_loss_keeps_apart_what_masks_do_not_tell(base: Path, phrase_file: Path, tmp_path: Path) -> None:
    source = JsonlPhrases(phrase_file)

    def angle(word_weight: float) -> float:
        settings = clipseg(
            base, train_encoders=True, word_weight=word_weight, steps=40, learning_rate=3e-3, dropout=0.0,
            evaluate_every=40, save_every=40,
        )  # fmt: skip
        run = tmp_path / str(word_weight)
        model = vlm_core.load(train_clipseg(settings, source, None, run, quiet=True), device="cpu")
        told = {"word_loss"} if word_weight else set()
        assert told == {"word_loss"} & rows(run)[-1].keys()
        left, right = model.encode_text(["left circle", "right circle"])
        return float(torch.cosine_similarity(left, right, dim=0))

    assert angle(1.0) < angle(0.0) - 0.1


def shown_file(folder: Path, words: tuple[str, ...] = ("circle", "square")) -> Path:
    """Scenes with one shape of each name, so that each phrase is shown in several images."""
    lines = []
    for seed in range(16):
        scene = generate_scene(seed, size=64, shapes=words, must_have=words, distractors=False)
        scene.image.save(folder / f"{seed}.png")
        for word in words:
            Image.fromarray(scene.mask_of(word)).convert("L").save(folder / f"{seed}-{word}.png")
            lines.append({"image": f"{seed}.png", "phrase": word, "mask": f"{seed}-{word}.png"})
    path = folder / "shown.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_train_clipseg_mixes_texts_and_pictures_as_drawn(base: Path, tmp_path: Path) -> None:
    """Resumed equals uninterrupted with all that is drawn; pictures matter; without them nothing else is drawn."""
    source = JsonlPhrases(shown_file(tmp_path), crop=True, exemplars=True)
    settings = clipseg(base, templates=("a photo of a {}.", "{}."), text_weight=(0.2, 0.7))
    whole = weights(train_clipseg(settings, source, None, tmp_path / "whole", quiet=True))
    again = weights(train_clipseg(settings, source, None, tmp_path / "again", quiet=True))
    assert same(whole, again)
    for name, other in (
        ("text", dataclasses.replace(settings, text_weight=(1.0, 1.0))),
        ("plain", dataclasses.replace(settings, templates=("{}",))),
    ):
        assert not same(weights(train_clipseg(other, source, None, tmp_path / name, quiet=True)), whole)
    # Weights of 1 are text alone, whatever is shown.
    one = train_clipseg(clipseg(base, text_weight=(1.0, 1.0)), source, None, tmp_path / "one", quiet=True)
    none = train_clipseg(clipseg(base), source, None, tmp_path / "none", quiet=True)
    assert same(weights(one), weights(none))


def test_conditions_are_mixed_by_the_weights_that_were_drawn() -> None:
    model = vlm_core.load("demo", device="cpu")
    assert model.mask_transform is not None
    shown = [(generate_scene(seed, size=64).image, (5.0, 5.0, 40.0, 50.0)) for seed in range(2)]
    masks = np.zeros((2, 8, 8), dtype=np.float32)
    samples = [
        PhraseSample(shown[0][0], ("circle", "square"), masks, None, (shown[1], None)),
        PhraseSample(shown[1][0], ("heart", "cross"), masks, None, (shown[0], shown[0])),
    ]
    drawn = [_text_weights(sample, (0.25, 0.75), np.random.default_rng(n)) for n, sample in enumerate(samples)]
    assert drawn[0][1] == 1.0  # no other image shows it
    assert all(0.25 <= weight <= 0.75 for weight in (drawn[0][0], *drawn[1]))
    assert drawn[1][0] != drawn[1][1]
    weights = [*drawn[0], *drawn[1]]
    text = model.encode_text(["circle", "square", "heart", "cross"]).clone()
    with torch.no_grad():
        mixed = _mixed(model.clip, model.mask_transform, text, samples, weights)
    one, zero = model.encode_exemplars([shown[1]])[0], model.encode_exemplars([shown[0]])[0]
    for row, visual in ((0, one), (1, text[1]), (2, zero), (3, zero)):
        torch.testing.assert_close(mixed[row], weights[row] * text[row] + (1 - weights[row]) * visual)


def test_train_clipseg_learns_from_pictures_alone(base: Path, tmp_path: Path) -> None:
    source = JsonlPhrases(shown_file(tmp_path), absent=0.0, exemplars=True)
    settings = clipseg(
        base, text_weight=(0.0, 0.0), train_encoders=True, normalise_inputs=True, steps=120, batch_size=8,
        phrases_per_image=2, learning_rate=3e-3, dropout=0.0, evaluate_every=20, save_every=20, image_size=64,
    )  # fmt: skip
    train_clipseg(settings, source, None, tmp_path / "run", quiet=True)
    measured = rows(tmp_path / "run")
    assert measured[-1]["mask_loss"] < 0.8 * measured[0]["mask_loss"]


def test_text_weights_need_data_that_shows_something(base: Path, phrase_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exemplars=True"):
        train_clipseg(clipseg(base, text_weight=(0.0, 0.5)), JsonlPhrases(phrase_file), None, tmp_path / "run")


def test_the_papers_settings_can_be_used_and_repeat_its_schedule() -> None:
    settings = TrainClipsegSettings(clip="any", **PAPER)
    assert settings.problems() == []
    rates = [
        learning_rate(step, settings.steps, settings.learning_rate, warmup=settings.warmup, final=settings.final_rate)
        for step in range(settings.steps)
    ]
    assert rates[0] == 1e-3
    assert rates[10_000] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-3)
    assert rates == sorted(rates, reverse=True)
    assert len(settings.templates) == 9
    assert (settings.batch_size, settings.dice_weight, settings.text_weight) == (64, 0.0, (0.0, 0.5))


def test_a_decoders_colours_can_be_imagenets(base: Path, phrase_file: Path, tmp_path: Path) -> None:
    settings = clipseg(base, imagenet_colours=True, steps=2)
    built = train_clipseg(settings, JsonlPhrases(phrase_file), None, tmp_path / "run", quiet=True)
    transform = vlm_core.load(built, device="cpu").mask_transform
    assert transform is not None
    assert (transform.mean, transform.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("train_encoders", [False, True])
def test_train_clipseg_resumed_equals_uninterrupted(
    base: Path, scenes: SceneSource, tmp_path: Path, train_encoders: bool
) -> None:
    weights_of = {"contrastive_weight": 0.3, "word_weight": 0.2} if train_encoders else {}
    settings = clipseg(base, train_encoders=train_encoders, normalise_inputs=train_encoders, **weights_of)
    whole = train_clipseg(settings, scenes, None, tmp_path / "whole", quiet=True)
    source = Interrupted(range(40), 32)
    source.left = 4 * 3 + 1  # three steps and a part of the fourth; the state of step 2 is saved
    with pytest.raises(KeyboardInterrupt):
        train_clipseg(settings, source, None, tmp_path / "run", quiet=True)
    source.left = 10**9
    resumed = train_clipseg(settings, source, None, tmp_path / "run", resume=True, quiet=True)
    assert same(weights(resumed), weights(whole))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert same(weights(whole), weights(base)) is False
    moved = any(not torch.equal(weights(whole)[key], value) for key, value in weights(base).items())
    assert moved == train_encoders


def test_a_decoder_is_kept_where_asked_for(base: Path, scenes: SceneSource, tmp_path: Path) -> None:
    first = train_clipseg(clipseg(base), scenes, None, tmp_path / "first", quiet=True)
    still = clipseg(first, keep_decoder=True, steps=2, learning_rate=1e-9)
    kept = weights(train_clipseg(still, scenes, None, tmp_path / "kept", quiet=True))
    assert all(torch.allclose(kept[key], value, atol=1e-6) for key, value in weights(first).items())
    new = weights(
        train_clipseg(dataclasses.replace(still, keep_decoder=False), scenes, None, tmp_path / "new", quiet=True)
    )
    assert not torch.allclose(new["decoder.film_mul.weight"], kept["decoder.film_mul.weight"], atol=1e-3)
    with pytest.raises(SettingsError, match="has no decoder: leave it out"):
        train_clipseg(clipseg(base, keep_decoder=True), scenes, None, tmp_path / "none", quiet=True)


def test_a_stem_of_convolutions_trains_and_loads(scenes: SceneSource, tmp_path: Path) -> None:
    settings = dataclasses.replace(CLIP, image_args={**VIT, "stem_widths": [8, 8, 16]}, steps=2)
    built = train_clip(settings, scenes, None, tmp_path / "run", quiet=True)
    model = vlm_core.load(built, device="cpu")
    assert model.clip.image_encoder.vit.patch_embed.proj(torch.zeros(1, 3, 32, 32)).shape == (1, 24, 4, 4)
    assert len(model.rank(generate_scene(1).image, ["a", "b"])) == 2
    with pytest.raises(CheckpointMismatchError, match="halve 2 times, which gives patches of 4 px, not 8"):
        ImageEncoder("vit_tiny_patch16_224", {**VIT, "stem_widths": [8, 16]})


def test_a_tower_from_scratch_knows_where_its_patches_are() -> None:
    encoder = make_image_encoder("scratch:vit_tiny_patch16_224", VIT, None)
    grid = encoder.vit.pos_embed[0, 1:].unflatten(0, (4, 4))
    noise = ImageEncoder("vit_tiny_patch16_224", VIT).vit.pos_embed
    assert grid.std() > 10 * noise.std()
    # Half of the width tells the column, the other half the row.
    assert torch.equal(grid[0, :, :12], grid[3, :, :12])
    assert torch.equal(grid[:, 0, 12:], grid[:, 3, 12:])
    assert not torch.allclose(grid[0, 0], grid[0, 1])
    assert not torch.allclose(grid[0, 0], grid[1, 0])


def test_a_finished_run_resumed_changes_nothing(base: Path, scenes: SceneSource, tmp_path: Path) -> None:
    built = train_clipseg(clipseg(base), scenes, None, tmp_path / "run", quiet=True)
    before = weights(built)
    again = train_clipseg(clipseg(base), scenes, None, tmp_path / "run", resume=True, quiet=True)
    assert same(before, weights(again))


def test_bf16_and_stored_halves_and_the_refined_head(base: Path, scenes: SceneSource, tmp_path: Path) -> None:
    settings = clipseg(base, precision="bf16", store="float16", refined_head=True, taps=(0, 2))
    built = train_clipseg(settings, scenes, None, tmp_path / "run", quiet=True)
    assert {value.dtype for value in weights(built).values()} == {torch.float16}
    model = vlm_core.load(built, device="cpu")
    assert model.decoder is not None
    assert model.decoder.config.taps == (0, 2)
    assert len(model.decoder.config.head_kernels) == 2
    assert np.isfinite(rows(tmp_path / "run")[-1]["mask_loss"])


# --- what is refused -----------------------------------------------------------------------------------------


def test_all_problems_are_listed_before_anything_is_loaded(scenes: SceneSource, tmp_path: Path) -> None:
    bad = TrainClipSettings(
        image_encoder="no-such-model",
        text_encoder="no-such-model",
        image_args={"depth": 2},
        steps=0,
        learning_rate=-1,
        pooling="max",
        precision="fp8",
        batch_size=500,
    )
    with pytest.raises(SettingsError) as caught:
        train_clip(bad, scenes, None, tmp_path / "run")
    message = str(caught.value)
    for words in ("steps 0", "learning_rate -1", "'max'", "'fp8'", "image_args", "40 training images"):
        assert words in message
    assert not (tmp_path / "run").exists()


def test_validation_texts_that_are_all_right_are_refused_before_the_training(
    scenes: SceneSource, tmp_path: Path
) -> None:
    lines = []
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        lines += [json.dumps({"image": f"{number}.png", "text": text}) for text in "abcd"]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(SettingsError, match="no validation image has three texts that are not its own"):
        train_clip(CLIP, scenes, JsonlPairs(tmp_path / "pairs.jsonl"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_clipseg_lists_its_problems(scenes: SceneSource, tmp_path: Path) -> None:
    bad = clipseg(
        tmp_path,
        contrastive_weight=0.5,
        word_weight=0.1,
        store="int8",
        phrases_per_image=0,
        evaluate_every=3,
        save_every=2,
        templates=("a photo",),
        text_weight=(0.5, 0.2),
        warmup=1.5,
    )
    with pytest.raises(SettingsError) as caught:
        train_clipseg(bad, scenes, None, tmp_path / "run")
    for words in (
        "contrastive_weight has no effect",
        "word_weight has no effect",
        "'int8'",
        "phrases_per_image is 0",
        "multiple of save_every 2",
        "'a photo'",
        "(0.5, 0.2)",
        "warmup 1.5",
    ):
        assert words in str(caught.value)


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(
    base: Path, scenes: SceneSource, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="holds a run already: resume it"):
        train_clip(CLIP, scenes, None, base.parent)
    other = dataclasses.replace(CLIP, learning_rate=0.5, seed=3)
    with pytest.raises(SettingsError, match=r"other settings \(learning_rate, seed\)"):
        train_clip(other, scenes, None, base.parent, resume=True, quiet=True)
    with pytest.raises(SettingsError, match="no run that could be resumed"):
        train_clip(CLIP, scenes, None, tmp_path / "nothing", resume=True)


# --- parts ---------------------------------------------------------------------------------------------------


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert int(np.argmax(rates)) == 10
    assert rates[55] == pytest.approx(0.01 + 0.99 * 0.5, abs=0.01)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, 100, 1.0, warmup=0.0) == 1.0


def test_weight_decay_spares_embeddings_norms_biases_and_the_temperature(base: Path) -> None:
    clip = vlm_core.load(base, device="cpu").clip.requires_grad_(True)
    names = {id(parameter): name for name, parameter in clip.named_parameters()}
    decayed, kept = ([names[id(p)] for p in group["params"]] for group in parameter_groups([clip], 0.1))
    assert len(decayed) + len(kept) == len(names)
    assert "logit_scale" in kept
    assert "visual_projection.weight" in decayed
    assert {"image_encoder.vit.pos_embed", "image_encoder.vit.cls_token"} <= set(kept)
    assert not any("embeddings.weight" in name or name.endswith("bias") or "norm" in name for name in decayed)


def test_a_vocabulary_knows_its_words_and_spells_the_others() -> None:
    tokenizer = build_tokenizer(words_of(["A red star, red!"]), 8).tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.tokenize("Red stars") == ["red", "star", "##s"]
    assert tokenizer.tokenize("cab") == ["c", "##a", "##b"]
    assert tokenizer("red star")["input_ids"][0] == tokenizer.cls_token_id
    ids, mask = build_tokenizer(["red"], 4)(["red red red red red", "red"])
    assert ids.shape == (2, 4)
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_chart_shows_every_series() -> None:
    flat = [(0.0, 1.0), (10.0, 1.0)]
    one, three = draw_chart({"loss": flat}), draw_chart({"loss": flat, "iou": flat, "single": [(5.0, 0.5)]})
    assert three.size == (one.width, 2 * one.height)
    blue = (np.asarray(three) == (31, 90, 170)).all(axis=-1)
    half_w, half_h = three.width // 2, three.height // 2
    assert blue[:half_h, :half_w].any()
    assert blue[:half_h, half_w:].any()
    assert blue[half_h:, :half_w].any()


# --- the commands --------------------------------------------------------------------------------------------


def test_the_commands_train_and_evaluate_from_files(base: Path, phrase_file: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = []
    for seed in range(6):
        scene = generate_scene(seed, size=48)
        scene.image.save(tmp_path / f"{seed}.png")
        lines.append(json.dumps({"image": f"{seed}.png", "text": scene.captions[0]}))
    pairs.write_text("\n".join(lines))
    run = CliRunner()
    arguments = ["train", "clip", "--train", str(pairs), "--validation", str(pairs), "--out", str(tmp_path / "clip")]
    image, text = pretrained_towers(tmp_path)
    arguments += ["--image-encoder", str(image), "--text-encoder", str(text), "--batch-size", "4", "--steps", "2"]
    result = run.invoke(app, [*arguments, "--device", "cpu", "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0
    assert str(tmp_path / "clip" / "checkpoint") in result.output.replace("\n", "")

    arguments = ["train", "clipseg", "--train", str(phrase_file), "--clip", str(base), "--out", str(tmp_path / "seg")]
    arguments += ["--steps", "2", "--batch-size", "4", "--evaluate-every", "1", "--device", "cpu", "--quiet"]
    assert run.invoke(app, arguments, catch_exceptions=False).exit_code == 0

    arguments = ["train", "clipseg", "--paper", "--train", str(shown_file(tmp_path)), "--clip", str(base)]
    arguments += ["--steps", "2", "--batch-size", "4", "--evaluate-every", "1", "--image-size", "32", "--quiet"]
    arguments += ["--text-weight", "0.1", "0.4", "--out", str(tmp_path / "paper"), "--device", "cpu"]
    assert run.invoke(app, arguments, catch_exceptions=False).exit_code == 0
    about = json.loads((tmp_path / "paper" / "checkpoint" / "manifest.json").read_text())["about"]["settings"]
    assert (about["text_weight"], about["steps"], about["final_rate"]) == ([0.1, 0.4], 2, 0.1)
    assert "a photograph of a {}." in about["templates"]

    arguments = ["evaluate", "--checkpoint", str(tmp_path / "seg" / "checkpoint"), "--phrases", str(phrase_file)]
    result = run.invoke(app, [*arguments, "--pairs", str(pairs), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    measured = json.loads(result.stdout)
    assert 0 <= measured["phrases"]["mean_iou"] <= 1
    assert measured["phrases"]["absent"] == 8
    assert measured["pairs"]["images"] == 6


def test_evaluate_needs_something_to_measure_on() -> None:
    result = CliRunner().invoke(app, ["evaluate", "--checkpoint", "demo"])
    assert result.exit_code == 2


def test_a_jsonl_file_trains_a_clip(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    scenes = [generate_scene(seed, size=48) for seed in range(8)]
    for number, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{number}.png")
    path.write_text(
        "".join(
            json.dumps({"image": f"{number}.png", "text": text}) + "\n"
            for number, scene in enumerate(scenes)
            for text in scene.captions
        )
    )
    source = JsonlPairs(path)
    built = train_clip(CLIP, source, source, tmp_path / "run", quiet=True)
    assert vlm_core.load(built, device="cpu").rank(scenes[0].image, list(scenes[0].captions[:2]))

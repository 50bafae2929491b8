"""Our towers, decoder and preprocessing against transformers, on the same weights, in float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, CLIPModel, CLIPSegForImageSegmentation, ViTImageProcessor

import vlm_core
from tests.core.factories import PHRASES, make_clip_directory, make_clipseg_directory
from vlm_core import image_encoder, projection
from vlm_core.model import Model
from vlm_core.preprocess import ImageTransform

TOLERANCE = 1e-4
"""Logits have deviation near 1; float32 sums in another order differ by a few 1e-6."""


def picture(width: int = 640, height: int = 427, seed: int = 0) -> Image.Image:
    """Smooth colours with edges, not square."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    coarse.paste((250, 20, 30), (width // 5, height // 4, width // 2, height // 2))
    return coarse


@pytest.fixture(scope="module", params=[True, False], ids=["refined", "plain"])
def clipseg(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clipseg") / "tiny"
    make_clipseg_directory(directory, refined=request.param)
    return directory


def reference_logits(directory: Path, pixel_values: Tensor, phrases: Sequence[str]) -> Tensor:
    """(P, 352, 352) as transformers computes them, its lone prompt's axis put back."""
    model = CLIPSegForImageSegmentation.from_pretrained(directory).eval()
    tokenizer = AutoProcessor.from_pretrained(directory).tokenizer
    batch = tokenizer(list(phrases), padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixel_values.expand(len(phrases), -1, -1, -1), **batch).logits
    return logits.reshape(len(phrases), *logits.shape[-2:])


def our_logits(model: Model, phrases: Sequence[str]) -> Tensor:
    return model.decode(model.encode_image(picture()), model.encode_text(phrases)).logits


@pytest.mark.parametrize("count", [1, 3])
def test_mask_logits_equal_transformers(clipseg: Path, count: int) -> None:
    model = vlm_core.load(clipseg, device="cpu")
    assert model.mask_transform is not None
    expected = reference_logits(clipseg, model.mask_transform(picture())[None], PHRASES[:count])
    ours = our_logits(model, PHRASES[:count])
    assert ours.shape == (count, 352, 352)
    assert 0.5 < float(expected.std()) < 2
    if count > 1:  # the comparison would say nothing about the text if the text did not matter
        assert (expected[0] - expected[1]).abs().mean() > 0.1
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def _wrong_taps(model: Model, patch: pytest.MonkeyPatch) -> None:
    assert model.decoder is not None
    model.decoder.config = replace(model.decoder.config, taps=(0, 1, 2))


def _wrong_gelu(model: Model, patch: pytest.MonkeyPatch) -> None:
    for block in model.clip.image_encoder.vit.blocks:
        block.mlp.act = torch.nn.GELU()


def _antialiased_grid(model: Model, patch: pytest.MonkeyPatch) -> None:
    def resample(positions: Tensor, old: tuple[int, int], new: tuple[int, int], n_prefix: int) -> Tensor:
        return timm.layers.resample_abs_pos_embed(positions, list(new), list(old), n_prefix, antialias=True)

    patch.setattr(image_encoder, "resample_positions", resample)


def _normalised_condition(model: Model, patch: pytest.MonkeyPatch) -> None:
    plain = model.clip.conditions
    patch.setattr(model.clip, "conditions", lambda ids, mask: projection.normalised(plain(ids, mask)))


@pytest.mark.parametrize("fault", [_wrong_taps, _wrong_gelu, _antialiased_grid, _normalised_condition])
def test_the_comparison_sees_each_known_mistake(
    clipseg: Path, fault: Callable[[Model, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vlm_core.load(clipseg, device="cpu")
    fault(model, monkeypatch)
    assert model.mask_transform is not None
    expected = reference_logits(clipseg, model.mask_transform(picture())[None], PHRASES)
    assert (our_logits(model, PHRASES) - expected).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("size", [160, 224])
def test_smaller_inputs_equal_transformers(clipseg: Path, size: int) -> None:
    """A grid smaller than, and equal to, the one that positions were made for."""
    model = vlm_core.load(clipseg, device="cpu")
    assert model.mask_transform is not None
    model.mask_transform = replace(model.mask_transform, size_hw=(size, size))
    expected = reference_logits(clipseg, model.mask_transform(picture())[None], PHRASES)
    torch.testing.assert_close(our_logits(model, PHRASES), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("taps", "conditional_layer", "patch_size", "mask_size"),
    [
        ((0, 2, 4), 1, 16, 96),
        ((3, 1), 1, 8, 96),
        ((2,), 0, 32, 96),
        ((4, 0, 2, 1), 2, 16, 96),
        ((1, 3), 0, 14, 100),  # patches that do not divide the input: the rest is not seen
    ],
)
def test_unusual_configurations_equal_transformers(
    tmp_path: Path, taps: tuple[int, ...], conditional_layer: int, patch_size: int, mask_size: int
) -> None:
    make_clipseg_directory(
        tmp_path,
        taps=taps,
        conditional_layer=conditional_layer,
        patch_size=patch_size,
        image_size=64,
        mask_size=mask_size,
    )
    model = vlm_core.load(tmp_path, device="cpu")
    assert model.mask_transform is not None
    expected = reference_logits(tmp_path, model.mask_transform(picture())[None], PHRASES)
    torch.testing.assert_close(our_logits(model, PHRASES), expected, atol=TOLERANCE, rtol=0)


def test_logits_per_image_equal_transformers(tmp_path: Path) -> None:
    reference = make_clip_directory(tmp_path)
    model = vlm_core.load(tmp_path, device="cpu")
    pixel_values = torch.stack([model.tag_transform(picture(seed=s)) for s in range(3)])
    ids, mask = model.tokenizer(PHRASES)
    padded = AutoProcessor.from_pretrained(tmp_path).tokenizer(
        list(PHRASES), padding="max_length", max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        expected = reference(pixel_values=pixel_values, **padded).logits_per_image
        ours = model.clip(pixel_values, ids, mask)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_logits_per_image_equal_transformers_above_the_training_limit_of_the_temperature(tmp_path: Path) -> None:
    reference = make_clip_directory(tmp_path)
    with torch.no_grad():
        reference.logit_scale.fill_(6.0)
    reference.save_pretrained(tmp_path)
    model = vlm_core.load(tmp_path, device="cpu")
    pixel_values = model.tag_transform(picture())[None]
    ids, mask = model.tokenizer(PHRASES)
    with torch.no_grad():
        expected = reference(pixel_values=pixel_values, input_ids=ids, attention_mask=mask).logits_per_image
        ours = model.clip(pixel_values, ids, mask)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)  # logits here reach hundreds


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish"])
def test_activations_equal_transformers(tmp_path: Path, activation: str) -> None:
    make_clipseg_directory(tmp_path, image_size=32, mask_size=64)
    config = json.loads((tmp_path / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower]["hidden_act"] = activation
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = vlm_core.load(tmp_path, device="cpu")
    assert model.mask_transform is not None
    expected = reference_logits(tmp_path, model.mask_transform(picture())[None], PHRASES)
    torch.testing.assert_close(our_logits(model, PHRASES), expected, atol=TOLERANCE, rtol=0)


def test_tags_of_a_clipseg_checkpoint_use_its_clip(clipseg: Path) -> None:
    model = vlm_core.load(clipseg, device="cpu")
    reference = CLIPSegForImageSegmentation.from_pretrained(clipseg).eval().clip
    pixel_values = model.tag_transform(picture())[None]
    batch = AutoProcessor.from_pretrained(clipseg).tokenizer(list(PHRASES), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = reference(pixel_values=pixel_values, **batch).logits_per_image.softmax(-1)[0]
    ours = {s.tag: s.probability for s in model.rank(picture(), PHRASES)}
    torch.testing.assert_close(torch.tensor([ours[p] for p in PHRASES]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(640, 427), (200, 333), (352, 352), (1, 50), (900, 30), (30, 901)])
def test_preprocessing_equals_transformers(clipseg: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """Within one grey level: transformers resizes with torchvision, we with Pillow."""
    make_clip_directory(tmp_path)
    for directory in (clipseg, tmp_path):
        model = vlm_core.load(directory, device="cpu")
        transform = model.mask_transform or model.tag_transform
        processor = AutoProcessor.from_pretrained(directory).image_processor
        expected = processor(picture(*size), return_tensors="pt").pixel_values[0]
        ours = transform(picture(*size))
        assert ours.shape == expected.shape
        one_level = 1 / 255 / min(transform.std)
        assert (ours - expected).abs().max() <= 1.01 * one_level


def test_a_very_long_picture_is_not_scaled_whole(tmp_path: Path) -> None:
    """Scaled whole, this one would have 224 x 14.7 million pixels."""
    transform = ImageTransform((224, 224), crop=True, shortest_edge=224, resample=3)
    middle = Image.new("RGB", (65_500, 1), (0, 0, 0))
    middle.paste((255, 0, 0), (32_700, 0, 32_800, 1))
    red = transform(middle)[0]
    assert float(red.min()) == float(red.max()) == pytest.approx((1 - transform.mean[0]) / transform.std[0])


@pytest.mark.parametrize(
    "settings", [{"do_rescale": False, "do_normalize": False}, {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}]
)
def test_other_rescaling_equals_transformers(settings: dict[str, Any]) -> None:
    values: dict[str, Any] = {
        "size": {"height": 40, "width": 40},
        "image_std": [0.5] * 3,
        "image_mean": [0.5] * 3,
        **settings,
    }
    image = picture(40, 40)
    expected = ViTImageProcessor(**values)(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(ImageTransform.from_processor(values)(image), expected.float(), atol=1e-4, rtol=0)


def test_a_reference_model_is_what_the_name_says(tmp_path: Path) -> None:
    """The factory's CLIP is transformers' own class: a parity test against ourselves would prove nothing."""
    assert isinstance(make_clip_directory(tmp_path), CLIPModel)
    assert ImageTransform.from_processor({"size": 352}).size_hw == (352, 352)

"""SigLIP's layout against transformers on the same weights, its tokenizer, and clear errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SiglipImageProcessor, SiglipModel

import vlm_core
from tests.core.factories import PHRASES, make_siglip_directory, siglip_tokenizer
from vlm_core import checkpoint, errors
from vlm_core.preprocess import TextTokenizer

PICTURE = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
TOLERANCE = 1e-4
"""Logits have deviation near 1; float32 sums in another order differ by a few 1e-6."""


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("siglip") / "tiny-siglip"
    make_siglip_directory(directory)
    return directory


@pytest.fixture
def copy(siglip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip, tmp_path / "tiny-siglip"))


def reference(directory: Path, pixel_values: torch.Tensor, texts: tuple[str, ...] = PHRASES) -> Any:
    """What transformers gives, with texts padded as SigLIP's were for training."""
    model = SiglipModel.from_pretrained(directory).eval()
    ids = siglip_tokenizer()(
        [text.lower() for text in texts], padding="max_length", max_length=32, truncation=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixel_values)


@pytest.mark.parametrize(("patch_size", "image_size"), [(16, 64), (14, 64), (32, 96)])
def test_embeddings_and_logits_equal_transformers(tmp_path: Path, patch_size: int, image_size: int) -> None:
    make_siglip_directory(tmp_path, patch_size=patch_size, image_size=image_size)
    model = vlm_core.load(tmp_path, device="cpu")
    pixel_values = torch.stack([model.tag_transform(p) for p in (PICTURE, PICTURE.rotate(90, expand=True))])
    ids, mask = model.tokenizer(PHRASES)
    expected = reference(tmp_path, pixel_values)
    with torch.no_grad():
        image, text = model.clip.image_embeds(pixel_values), model.clip.text_embeds(ids, mask)
        logits = model.clip(pixel_values, ids, mask)
    assert float(expected.logits_per_image.std()) > 0.1
    assert (expected.image_embeds[0] - expected.image_embeds[1]).abs().max() > 0.01
    torch.testing.assert_close(image, expected.image_embeds, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(text, expected.text_embeds, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(logits, expected.logits_per_image, atol=TOLERANCE, rtol=0)


def test_another_input_size_equals_transformers(copy: Path) -> None:
    """Positions are resampled as transformers resamples them: bicubic, without antialiasing."""
    model = vlm_core.load(copy, device="cpu")
    pixel_values = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        tower = SiglipModel.from_pretrained(copy).eval().vision_model
        expected = tower(pixel_values, interpolate_pos_encoding=True).pooler_output
        ours = model.clip.image_encoder(pixel_values).pooled
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_pictures_are_squashed_as_transformers_does(siglip: Path) -> None:
    """Within one grey level: transformers resizes with torchvision, we with Pillow."""
    model = vlm_core.load(siglip, device="cpu")
    expected = SiglipImageProcessor.from_pretrained(siglip)(PICTURE, return_tensors="pt").pixel_values[0]
    assert (model.tag_transform(PICTURE) - expected).abs().max() <= 1.01 / 255 / 0.5


def test_texts_are_padded_to_full_length_and_do_not_depend_on_each_other(siglip: Path) -> None:
    model = vlm_core.load(siglip, device="cpu")
    assert model.tokenizer(["x"])[0].shape == (1, 32)
    alone = model.text_embeds(["x"])
    torch.testing.assert_close(alone, model.text_embeds(["x", "a longer phrase"])[:1], atol=1e-6, rtol=0)
    short = TextTokenizer(model.tokenizer.tokenizer, 32)
    with pytest.raises(errors.InputError, match="2 tokens: SigLIP's texts are padded to all 32"):
        model.clip.text_embeds(*short(["x"]))


def test_long_texts_are_cut(siglip: Path) -> None:
    model = vlm_core.load(siglip, device="cpu")
    assert model.tokenizer(["x" * 100])[0].shape == (1, 32)


@pytest.mark.parametrize(
    ("tokenizer_class", "texts", "same"),
    [
        ("GemmaTokenizer", ("A Dog, running!", "a dog, running!"), True),  # SigLIP 2: lower case
        ("GemmaTokenizer", ("a dog, running!", "a dog running"), False),
        ("SiglipTokenizer", (" A Dog,  running!", "a dog running"), True),  # SigLIP: no punctuation either
        ("SiglipTokenizer", ("a dog", "a cat"), False),
    ],
)
def test_texts_are_normalised_as_for_training(
    copy: Path, tmp_path: Path, tokenizer_class: str, texts: tuple[str, str], same: bool
) -> None:
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": tokenizer_class}))
    model = vlm_core.load(copy, device="cpu")
    first, second = (model.tokenizer([text])[0].tolist() for text in texts)
    assert (first == second) == same
    own = tmp_path / "own"
    checkpoint.save(own, clip=model.clip, tokenizer=model.tokenizer, tag_transform=model.tag_transform, name="own")
    again = vlm_core.load(own, device="cpu")
    assert [again.tokenizer([text])[0].tolist() for text in texts] == [first, second]


def test_an_end_token_that_the_settings_ask_for_is_added(copy: Path) -> None:
    expected = vlm_core.load(copy, device="cpu").tokenizer(["a dog"])[0]
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    assert not torch.equal(vlm_core.load(copy, device="cpu").tokenizer(["a dog"])[0], expected)
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_eos_token": True}))
    torch.testing.assert_close(vlm_core.load(copy, device="cpu").tokenizer(["a dog"])[0], expected)


def test_our_own_layout_gives_back_what_was_saved(siglip: Path, tmp_path: Path) -> None:
    model = vlm_core.load(siglip, device="cpu")
    checkpoint.save(
        tmp_path / "own", clip=model.clip, tokenizer=model.tokenizer, tag_transform=model.tag_transform, name="own"
    )
    again = vlm_core.load(tmp_path / "own", device="cpu")
    assert again.clip.logit_bias is not None
    assert float(again.clip.logit_bias) == -0.5
    assert again.rank(PICTURE, PHRASES) == model.rank(PICTURE, PHRASES)


def test_it_gives_no_masks_and_says_what_would(siglip: Path) -> None:
    model = vlm_core.load(siglip, device="cpu")
    assert not model.can_segment
    with pytest.raises(errors.CapabilityError, match="CIDAS/clipseg-rd64-refined"):
        model.segment(PICTURE, ["x"])


def _config(*path: str, value: object) -> Callable[[Path], None]:
    def edit(d: Path) -> None:
        values = json.loads((d / "config.json").read_text())
        part = values
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        (d / "config.json").write_text(json.dumps(values))

    return edit


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(d: Path) -> None:
        weights = load_file(d / "model.safetensors")
        change(weights)
        save_file(weights, d / "model.safetensors")

    return edit


def _sentencepiece_alone(d: Path) -> None:
    (d / "tokenizer.json").unlink()
    (d / "spiece.model").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), errors.CheckpointIncompleteError, r"no tokenizer\.json in .*copy"),
        (_sentencepiece_alone, errors.CheckpointIncompleteError, r"spiece\.model alone is not read.*sentencepiece"),
        (lambda d: (d / "preprocessor_config.json").unlink(), errors.CheckpointIncompleteError, "preprocessor_config"),
        (lambda d: (d / "model.safetensors").unlink(), errors.CheckpointIncompleteError, r"no model\.safetensors"),
        (_weights(lambda w: w.pop("logit_bias")), errors.CheckpointIncompleteError, "lack logit_bias"),
        (_weights(lambda w: w.update(what=torch.zeros(1))), errors.CheckpointMismatchError, "hold what"),
        (
            _weights(lambda w: w.pop("vision_model.head.layernorm.bias")),
            errors.CheckpointIncompleteError,
            r"lack vision_model\.head\.layernorm\.bias",
        ),
        (
            _weights(lambda w: w.pop("vision_model.head.attention.in_proj_bias")),
            errors.CheckpointIncompleteError,
            r"lack vision_model\.head\.attention\.in_proj_bias",
        ),
        (_config("model_type", value="siglip2"), errors.CheckpointMismatchError, "SigLIP 2 those with a fixed"),
        (_config("vision_config", "vision_use_head", value=False), errors.CheckpointMismatchError, "pooling head"),
        (_config("vision_config", "num_attention_heads", value=0), errors.CheckpointMismatchError, "heads"),
        (_config("vision_config", "hidden_act", value="what"), errors.CheckpointMismatchError, "activation 'what'"),
        (_config("text_config", "projection_size", value=32), errors.CheckpointMismatchError, "one width.*48.*32"),
        (_config("text_config", "vocab_size", value=7), errors.CheckpointMismatchError, "instead of"),
    ],
)
def test_a_damaged_checkpoint_names_what_is_wrong(
    copy: Path, damage: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    damage(copy)
    with pytest.raises(kind, match=message):
        vlm_core.load(copy, device="cpu")

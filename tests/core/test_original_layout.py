"""The original decoder files: the same logits as transformers' layout of the same weights, and clear errors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPSegForImageSegmentation,
    CLIPTextConfig,
    CLIPVisionConfig,
)

import vlm_core
from tests.core.factories import PHRASES, make_clipseg_directory, spread, tiny_tokenizer
from vlm_core import checkpoint, errors, original_layout

PICTURE = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
TOLERANCE = 1e-5
"""The very same tensors go through the very same operations; only how they were stored differs."""


def original_names(model: CLIPSegForImageSegmentation) -> dict[str, Tensor]:
    """The decoder's weights as the first authors' code names them, the unused `reduce` included."""
    ours = model.decoder.state_dict()
    out = {"reduce.weight": torch.zeros(16, 48), "reduce.bias": torch.zeros(16)}
    for key, value in ours.items():
        if "self_attn." in key and "out_proj" not in key:
            continue
        for old, new in (
            ("layers.", "blocks."),
            ("mlp.fc", "linear"),
            ("layer_norm", "norm"),
            ("transposed_convolution", "trans_conv"),
        ):
            key = key.replace(old, new)
        out[key] = value
    for block in range(3):
        for part in ("weight", "bias"):
            rows = [ours[f"layers.{block}.self_attn.{letter}_proj.{part}"] for letter in "qkv"]
            out[f"blocks.{block}.self_attn.in_proj_{part}"] = torch.cat(rows)
    return {key: value.clone() for key, value in out.items()}


def save_clip_of(model: CLIPSegForImageSegmentation, directory: Path) -> None:
    """The CLIP inside a CLIPSeg, in the layout of `openai/clip-vit-base-patch16`."""
    config = model.config
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    clip = CLIPModel(
        CLIPConfig(
            text_config={k: v for k, v in text.items() if k != "model_type"},
            vision_config={k: v for k, v in vision.items() if k != "model_type"},
            projection_dim=config.projection_dim,
        )
    )
    clip.load_state_dict(model.clip.state_dict())
    clip.save_pretrained(directory)
    images = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    CLIPProcessor(images, tiny_tokenizer(directory / "_tokenizer")).save_pretrained(directory)


@dataclass(frozen=True)
class Pair:
    """The same weights twice: as transformers saves them, and as the original file beside a CLIP."""

    transformers: Path
    original: Path


@pytest.fixture(scope="module", params=["refined", "plain", "wide"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp(request.param)
    model = make_clipseg_directory(
        root / "hub",
        refined=request.param != "plain",
        depth=10,
        taps=(3, 6, 9),
        reduce_dim=64 if request.param == "wide" else 16,
    )
    save_clip_of(model, root / "clip")
    torch.save(original_names(model), root / "clip" / "rd-uni.pth")
    return Pair(root / "hub", root / "clip")


@pytest.fixture
def copy(pair: Pair, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair.original, tmp_path / "clip"))


def test_logits_equal_those_of_transformers_layout(pair: Pair) -> None:
    expected = vlm_core.load(pair.transformers, device="cpu").segment(PICTURE, PHRASES).logits
    model = vlm_core.load(pair.original, device="cpu")
    ours = model.segment(PICTURE, PHRASES).logits
    assert 0.3 < float(expected.std()) < 3
    assert (expected[0] - expected[1]).abs().mean() > 0.1  # the text matters, so the comparison says something
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_queries_keys_and_values_are_told_apart(pair: Pair, copy: Path) -> None:
    """The comparison above would see a mistake in the order of the three."""
    tensors = torch.load(copy / "rd-uni.pth", weights_only=True)
    for name in [key for key in tensors if "in_proj_" in key]:
        q, k, v = tensors[name].chunk(3)
        tensors[name] = torch.cat([v, k, q])
    torch.save(tensors, copy / "rd-uni.pth")
    expected = vlm_core.load(pair.original, device="cpu").segment(PICTURE, PHRASES).logits
    assert (vlm_core.load(copy, device="cpu").segment(PICTURE, PHRASES).logits - expected).abs().max() > 100 * TOLERANCE


def test_masks_see_352_px_as_clipseg_and_tags_as_their_clip(pair: Pair) -> None:
    hub, model = (vlm_core.load(directory, device="cpu") for directory in (pair.transformers, pair.original))
    assert model.mask_transform == hub.mask_transform
    assert model.mask_transform is not None
    assert model.mask_transform.size_hw == (352, 352)
    assert model.tag_transform == hub.tag_transform


def test_the_file_itself_can_be_named(pair: Pair, copy: Path) -> None:
    shutil.copy(copy / "rd-uni.pth", copy / "other.pth")
    with pytest.raises(errors.CheckpointMismatchError, match=r"2 decoders \(other\.pth, rd-uni\.pth\).*name the one"):
        vlm_core.load(copy, device="cpu")
    named = vlm_core.load(copy / "rd-uni.pth", device="cpu")
    assert named.name == "rd-uni"
    assert checkpoint.model_name(copy) == "clip"
    expected = vlm_core.load(pair.original, device="cpu")
    torch.testing.assert_close(named.segment(PICTURE, PHRASES).logits, expected.segment(PICTURE, PHRASES).logits)


def test_the_fingerprint_covers_the_decoder(pair: Pair, copy: Path) -> None:
    before = vlm_core.load(copy, device="cpu").fingerprint
    assert before == vlm_core.load(pair.original, device="cpu").fingerprint
    tensors = torch.load(copy / "rd-uni.pth", weights_only=True)
    tensors["film_mul.bias"] += 1
    torch.save(tensors, copy / "rd-uni.pth")
    assert vlm_core.load(copy, device="cpu").fingerprint != before


def test_a_file_saved_whole_is_read_without_its_encoders(pair: Pair, copy: Path) -> None:
    expected = vlm_core.load(pair.original, device="cpu").segment(PICTURE, PHRASES).logits
    tensors = torch.load(copy / "rd-uni.pth", weights_only=True)
    tensors |= {"clip_model.logit_scale": torch.zeros(()), "model.proj": torch.zeros(3, 3)}
    torch.save(tensors, copy / "rd-uni.pth")
    torch.testing.assert_close(vlm_core.load(copy, device="cpu").segment(PICTURE, PHRASES).logits, expected)


def _edit(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = torch.load(directory / "rd-uni.pth", weights_only=True)
        change(tensors)
        torch.save(tensors, directory / "rd-uni.pth")

    return edit


def _config(part: str, key: str, value: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        values = json.loads((directory / "config.json").read_text())
        values[part][key] = value
        (directory / "config.json").write_text(json.dumps(values))

    return edit


def _other_kind(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "clipseg"}')


class _Surprise:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("this-must-never-be-made",)


def _pickled_code(directory: Path) -> None:
    (directory / "rd-uni.pth").write_bytes(pickle.dumps(_Surprise()))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda d: (d / "config.json").unlink(), errors.CheckpointIncompleteError, "without its CLIP.*openai/clip"),
        (lambda d: (d / "model.safetensors").unlink(), errors.CheckpointIncompleteError, r"no model\.safetensors"),
        (lambda d: (d / "rd-uni.pth").unlink(), errors.CheckpointNotFoundError, "no decoder file.*check the path"),
        (_other_kind, errors.CheckpointMismatchError, "'clipseg'; beside the decoder"),
        (_pickled_code, errors.CheckpointMismatchError, "not unpickled.*state_dict"),
        (lambda d: (d / "rd-uni.pth").write_text("version https://git-lfs"), errors.CheckpointMismatchError, "damaged"),
        (_edit(lambda t: t.update(epoch=3)), errors.CheckpointMismatchError, "other things than named tensors"),
        (_edit(lambda t: t.clear()), errors.CheckpointMismatchError, "no CLIPSeg decoder.*has none"),
        (
            _edit(lambda t: [t.pop(k) for k in list(t) if k.startswith("trans_conv")]),
            errors.CheckpointMismatchError,
            "no CLIPSeg decoder",
        ),
        (
            _edit(lambda t: t.pop("blocks.1.linear2.bias")),
            errors.CheckpointIncompleteError,
            r"lack blocks\.1\.linear2\.bias",
        ),
        (
            _edit(lambda t: t.pop("blocks.1.self_attn.in_proj_bias")),
            errors.CheckpointIncompleteError,
            r"lack blocks\.1\.self_attn\.in_proj_bias",
        ),
        (_edit(lambda t: t.update(what=torch.zeros(1))), errors.CheckpointMismatchError, "hold what"),
        (
            _edit(lambda t: t.update({"extra_blocks.0.norm1.bias": torch.zeros(1)})),
            errors.CheckpointMismatchError,
            r"variant.*further transformer blocks \(extra_blocks\)",
        ),
        (
            _edit(lambda t: t.update({"reduces.3.weight": torch.zeros(1)})),
            errors.CheckpointMismatchError,
            r"reads 4 blocks.*\(3, 6, 9\)",
        ),
        (
            _edit(lambda t: t.update({"film_mul.weight": torch.zeros(18, 24)})),
            errors.CheckpointMismatchError,
            "18 wide, no multiple of 4 heads",
        ),
        (
            _edit(lambda t: t.update({"film_mul.weight": torch.zeros(t["film_mul.bias"].shape[0], 512)})),
            errors.CheckpointMismatchError,
            r"conditions 512 wide|film_add\.weight",
        ),
        (
            _edit(lambda t: t.update({"reduces.1.bias": t["reduces.1.bias"] * float("nan")})),
            errors.CheckpointMismatchError,
            r"not finite numbers in reduces\.1\.bias",
        ),
        (
            _config("vision_config", "hidden_act", "gelu"),
            errors.CheckpointMismatchError,
            "quick_gelu; the CLIP in .* has 16 px and gelu",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    copy: Path, damage: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    damage(copy)
    with pytest.raises(kind, match=message):
        vlm_core.load(copy / "rd-uni.pth", device="cpu")
    assert not Path("this-must-never-be-made").exists()


def test_a_clip_of_other_patches_is_refused(tmp_path: Path) -> None:
    """ViT-B/32 has the same widths as ViT-B/16: every tensor would fit, and every mask be wrong."""
    model = make_clipseg_directory(tmp_path / "hub", depth=10, taps=(3, 6, 9), patch_size=16)
    other = make_clipseg_directory(tmp_path / "other", depth=10, taps=(3, 6, 9), patch_size=32)
    save_clip_of(other, tmp_path / "clip")
    torch.save(original_names(model), tmp_path / "clip" / "rd.pth")
    with pytest.raises(errors.CheckpointMismatchError, match=r"patches of 16 px.* has 32 px"):
        vlm_core.load(tmp_path / "clip", device="cpu")


@pytest.mark.realdata
def test_the_published_file_loads(tmp_path: Path) -> None:
    """Beside a randomly initialised ViT-B/16: all tensors have their place, and the answer is finite and moves."""
    file = os.environ.get("VLM_ORIGINAL_DECODER", "")
    if not Path(file).is_file():
        pytest.skip(f"VLM_ORIGINAL_DECODER is {file!r}: not a file such as rd64-uni-refined.pth")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(tmp_path / "_tokenizer")
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **ends)
    vision = CLIPVisionConfig(patch_size=16)
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    spread(clip)
    clip.save_pretrained(tmp_path)
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(tmp_path)
    shutil.copy(file, tmp_path)
    config, tensors = original_layout.read_decoder(Path(file))
    assert config.taps == (3, 6, 9)
    assert (config.tap_width, config.condition_dim, config.mlp_width) == (768, 512, 2048)
    model = vlm_core.load(tmp_path, device="cpu")
    assert model.decoder is not None
    for name, value in model.decoder.state_dict().items():
        torch.testing.assert_close(value, tensors[name], atol=0, rtol=0)
    logits = model.decode(model.encode_image(PICTURE), model.encode_text(PHRASES)).logits
    assert logits.shape == (3, 352, 352)
    assert bool(torch.isfinite(logits).all())
    assert (logits[0] - logits[1]).abs().max() > 0.01

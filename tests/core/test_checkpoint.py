"""Loading: every layout, and a clear error for everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DistilBertConfig

import vlm_core
from tests.core.factories import PHRASES, make_clip_directory, make_clipseg_directory
from vlm_core import checkpoint, errors
from vlm_core.clip import CLIP
from vlm_core.clipseg import CLIPSegDecoder, DecoderConfig
from vlm_core.image_encoder import ImageEncoder
from vlm_core.model import Model
from vlm_core.preprocess import ImageTransform, TextTokenizer
from vlm_core.text_encoder import TextEncoder

PICTURE = Image.linear_gradient("L").resize((90, 60)).convert("RGB")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / "tiny-clipseg"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return directory


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "tiny-clipseg"))


def own_parts(tiny: Path) -> dict[str, object]:
    """A DistilBERT dual encoder with a decoder, as our recipes make them."""
    torch.manual_seed(0)
    hub = vlm_core.load(tiny, device="cpu")
    image = ImageEncoder(
        "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    )
    config = DistilBertConfig(
        vocab_size=len(hub.tokenizer.tokenizer),
        dim=16,
        n_layers=1,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=20,
    )
    clip = CLIP(image, TextEncoder(config, "mean"), 12)
    decoder = CLIPSegDecoder(
        DecoderConfig(
            taps=(0, 2), tap_width=32, condition_dim=12, reduce_dim=8, num_heads=2, mlp_width=16, head_kernels=(8,)
        )
    )
    transform = ImageTransform((32, 32))
    return {
        "clip": clip,
        "decoder": decoder,
        "tokenizer": TextTokenizer(hub.tokenizer.tokenizer, 20),
        "tag_transform": transform,
        "mask_transform": transform,
    }


def answers(model: Model) -> tuple[torch.Tensor, list[float]]:
    ranked = {s.tag: s.similarity for s in model.rank(PICTURE, PHRASES)}
    return model.segment(PICTURE, PHRASES).logits, [ranked[p] for p in PHRASES]


def test_own_layout_gives_back_what_was_saved(tiny: Path, tmp_path: Path) -> None:
    parts = own_parts(tiny)
    checkpoint.save(tmp_path / "mine", name="mine", **parts)  # type: ignore[arg-type]  # a dictionary of parts
    expected = answers(Model(name="mine", fingerprint="", **parts))  # type: ignore[arg-type]
    loaded = vlm_core.load(tmp_path / "mine", device="cpu")
    masks, tags = answers(loaded)
    assert loaded.name == "mine"
    torch.testing.assert_close(masks, expected[0], atol=1e-6, rtol=0)
    assert tags == pytest.approx(expected[1], abs=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]  # nothing half written is left


def test_saving_again_replaces_and_changes_the_fingerprint(tiny: Path, tmp_path: Path) -> None:
    parts = own_parts(tiny)
    checkpoint.save(tmp_path / "mine", name="mine", **parts)  # type: ignore[arg-type]
    before = vlm_core.load(tmp_path / "mine", device="cpu").fingerprint
    assert vlm_core.load(tmp_path / "mine", device="cpu").fingerprint == before
    with torch.no_grad():
        parts["clip"].logit_scale += 0.5  # type: ignore[attr-defined]
    checkpoint.save(tmp_path / "mine", name="mine", **parts)  # type: ignore[arg-type]
    assert vlm_core.load(tmp_path / "mine", device="cpu").fingerprint != before


def test_half_precision_storage_is_loaded_as_float32(tiny: Path, tmp_path: Path) -> None:
    parts = own_parts(tiny)
    checkpoint.save(tmp_path / "half", name="half", dtype=torch.float16, **parts)  # type: ignore[arg-type]
    weights = load_file(tmp_path / "half" / checkpoint.WEIGHTS)
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float16}
    loaded = vlm_core.load(tmp_path / "half", device="cpu")
    assert {p.dtype for p in loaded.clip.parameters()} == {torch.float32}


def test_clip_directory_ranks_tags_and_refuses_masks(tmp_path: Path) -> None:
    make_clip_directory(tmp_path / "clip")
    model = vlm_core.load(tmp_path / "clip", device="cpu")
    assert not model.can_segment
    assert sum(s.probability for s in model.rank(PICTURE, PHRASES)) == pytest.approx(1)
    with pytest.raises(errors.CapabilityError, match=r"ranks tags but gives no masks.*CLIPSeg"):
        model.segment(PICTURE, PHRASES)


def test_old_processor_files_and_shards_are_read(copy: Path) -> None:
    expected = answers(vlm_core.load(copy, device="cpu"))
    processor = json.loads((copy / "processor_config.json").read_text())["image_processor"]
    (copy / "processor_config.json").unlink()
    (copy / "preprocessor_config.json").write_text(json.dumps(processor | {"size": 64}))
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in halves.items():
        save_file({k: weights[k] for k in keys}, copy / file)
    index = {"weight_map": {k: file for file, keys in halves.items() for k in keys}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").unlink()
    masks, tags = answers(vlm_core.load(copy, device="cpu"))
    torch.testing.assert_close(masks, expected[0])
    assert tags == pytest.approx(expected[1])


def test_weights_of_the_older_binary_file_are_read_without_running_code(copy: Path) -> None:
    expected = answers(vlm_core.load(copy, device="cpu"))[0]
    weights = load_file(copy / "model.safetensors")
    weights["clip.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    torch.testing.assert_close(answers(vlm_core.load(copy, device="cpu"))[0], expected)
    torch.save({"weights": Path("code")}, copy / "pytorch_model.bin")
    with pytest.raises(errors.CheckpointMismatchError, match=r"pytorch_model\.bin is damaged or holds more"):
        vlm_core.load(copy, device="cpu")


def _no_tokenizer(d: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (d / name).unlink()


def _rename_tensor(d: Path) -> None:
    weights = load_file(d / "model.safetensors")
    weights["decoder.surprise"] = weights.pop("decoder.film_mul.bias")
    save_file(weights, d / "model.safetensors")


def _extra_tensor(d: Path) -> None:
    save_file(load_file(d / "model.safetensors") | {"clip.surprise": torch.zeros(1)}, d / "model.safetensors")


def _other_shape(d: Path) -> None:
    save_file(load_file(d / "model.safetensors") | {"clip.logit_scale": torch.zeros(2)}, d / "model.safetensors")


def _not_finite(d: Path) -> None:
    save_file(
        load_file(d / "model.safetensors") | {"clip.logit_scale": torch.tensor(float("nan"))}, d / "model.safetensors"
    )


def _missing_block(d: Path) -> None:
    weights = load_file(d / "model.safetensors")
    save_file({k: v for k, v in weights.items() if ".layers.2.self_attn.k_proj" not in k}, d / "model.safetensors")


def _bigger_vocabulary(d: Path) -> None:
    tokenizer = json.loads((d / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zzzz"] = 5000
    tokenizer["added_tokens"].append(
        dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        | {"id": 5001, "content": "<more>", "special": True}
    )
    (d / "tokenizer.json").write_text(json.dumps(tokenizer))


def _edit(name: str, text: str) -> Callable[[Path], None]:
    def edit(d: Path) -> None:
        (d / name).write_text(text)

    return edit


def _truncated(d: Path) -> None:
    data = (d / "model.safetensors").read_bytes()
    (d / "model.safetensors").write_bytes(data[: len(data) // 2])


def _pointer(d: Path) -> None:
    (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda d: (d / "config.json").unlink(), errors.CheckpointIncompleteError, r"has no config\.json"),
        (_edit("config.json", "{"), errors.CheckpointMismatchError, r"config\.json is not readable JSON"),
        (_edit("config.json", "[]"), errors.CheckpointMismatchError, "not a JSON object"),
        (_edit("config.json", '{"model_type": "bert"}'), errors.CheckpointMismatchError, "type 'bert'"),
        (lambda d: (d / "model.safetensors").unlink(), errors.CheckpointIncompleteError, r"no model\.safetensors"),
        (_truncated, errors.CheckpointMismatchError, "damaged"),
        (_pointer, errors.CheckpointMismatchError, "damaged"),
        (lambda d: (d / "processor_config.json").unlink(), errors.CheckpointIncompleteError, "save_pretrained"),
        (_no_tokenizer, errors.CheckpointIncompleteError, r"no tokenizer in .*save_pretrained"),
        (_edit("tokenizer.json", "{}"), errors.CheckpointMismatchError, "cannot be read"),
        (_bigger_vocabulary, errors.CheckpointMismatchError, "different models"),
        (_rename_tensor, errors.CheckpointIncompleteError, r"lack film_mul\.bias"),
        (_extra_tensor, errors.CheckpointMismatchError, "surprise"),
        (_other_shape, errors.CheckpointMismatchError, r"logit_scale \(2,\) instead of \(\)"),
        (_not_finite, errors.CheckpointMismatchError, "not finite"),
        (_missing_block, errors.CheckpointIncompleteError, r"qkv|k_proj"),
    ],
)
def test_a_damaged_checkpoint_names_what_is_wrong(
    copy: Path, damage: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    damage(copy)
    with pytest.raises(kind, match=message):
        vlm_core.load(copy, device="cpu")


@pytest.mark.parametrize("name", ["/no/such/directory", "./nowhere", "not-a-hub-id", "a/b/c", ""])
def test_a_missing_directory_is_not_found(name: str) -> None:
    with pytest.raises(errors.CheckpointNotFoundError):
        vlm_core.load(name if name else "missing")


def test_a_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(errors.CheckpointNotFoundError, match=r"'owner/nothing'.*could not be fetched.*VLM_CHECKPOINT"):
        vlm_core.load("owner/nothing", device="cpu")


def test_a_file_instead_of_a_directory_is_named(copy: Path) -> None:
    with pytest.raises(errors.CheckpointNotFoundError, match="is a file"):
        vlm_core.load(copy / "model.safetensors")


@pytest.mark.parametrize(("device", "dtype"), [("tpu9", "auto"), ("cuda:99", "auto"), ("cpu", "int8")])
def test_an_unknown_device_or_dtype_is_named(tiny: Path, device: str, dtype: str) -> None:
    with pytest.raises(errors.InputError, match=rf"{device if dtype == 'auto' else dtype}"):
        vlm_core.load(tiny, device=device, dtype=dtype)


def test_a_newer_schema_is_refused(tiny: Path, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "mine", name="mine", **own_parts(tiny))  # type: ignore[arg-type]
    path = tmp_path / "mine" / checkpoint.MANIFEST
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(errors.CheckpointMismatchError, match="schema 2; this version reads"):
        vlm_core.load(tmp_path / "mine", device="cpu")


def test_the_tokenizers_end_token_wins_over_a_wrong_configuration(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = answers(vlm_core.load(copy, device="cpu"))[1]
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (copy / "config.json").write_text(json.dumps(config))
    assert answers(vlm_core.load(copy, device="cpu"))[1] == pytest.approx(expected)
    assert "end token" in caplog.text


def test_fingerprints_tell_weights_apart(tiny: Path, tmp_path: Path) -> None:
    make_clipseg_directory(tmp_path / "other", mask_size=64, image_size=32, seed=1)
    prints = {vlm_core.load(d, device="cpu").fingerprint for d in (tiny, tmp_path / "other")}
    assert len(prints) == 2
    assert all(len(p) == 64 for p in prints)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("CIDAS/clipseg-rd64-refined", "clipseg-rd64-refined"),
        ("demo", "demo"),
        ("a/b_c d", "b-c-d"),
        ("x/---", "model"),
    ],
)
def test_model_names_are_fit_for_version_names(given: str, name: str) -> None:
    assert checkpoint.model_name(given) == name

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
    with pytest.raises(errors.CheckpointMismatchError, match=r"pytorch_model\.bin is damaged, or holds more"):
        vlm_core.load(copy, device="cpu")


def test_a_sharded_binary_file_is_read(copy: Path) -> None:
    expected = answers(vlm_core.load(copy, device="cpu"))[0]
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    files = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, keys in files.items():
        torch.save({k: weights[k] for k in keys}, copy / file)
    index = {"weight_map": {k: file for file, keys in files.items() for k in keys}}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").unlink()
    torch.testing.assert_close(answers(vlm_core.load(copy, device="cpu"))[0], expected)
    (copy / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(errors.CheckpointIncompleteError, match=r"no pytorch_model-00002-of-00002\.bin"):
        vlm_core.load(copy, device="cpu")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": torch.zeros(1)}}, torch.zeros(2)])
def test_a_binary_file_of_another_kind_is_refused(copy: Path, content: object) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(content, copy / "pytorch_model.bin")
    with pytest.raises(errors.CheckpointMismatchError, match="other things than named tensors"):
        vlm_core.load(copy, device="cpu")


def test_masks_see_the_whole_image_whatever_the_processor_cuts(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = answers(vlm_core.load(copy, device="cpu"))[0]
    path = copy / "processor_config.json"
    processor = json.loads(path.read_text())
    processor["image_processor"] |= {"size": {"shortest_edge": 64}, "crop_size": 64, "do_center_crop": True}
    path.write_text(json.dumps(processor))
    torch.testing.assert_close(answers(vlm_core.load(copy, device="cpu"))[0], expected)
    assert "cuts the centre out" in caplog.text


def test_padding_never_moves_a_texts_tokens(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    model = vlm_core.load(copy, device="cpu")
    alone = model.encode_text(["x"])
    together = vlm_core.load(copy, device="cpu").encode_text(["x", "a much longer phrase"])[:1]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_a_tokenizer_of_slow_files_alone_is_read(copy: Path) -> None:
    expected = answers(vlm_core.load(copy, device="cpu"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(copy / "_tokenizer" / name, copy / name)
    masks, tags = answers(vlm_core.load(copy, device="cpu"))
    torch.testing.assert_close(masks, expected[0])
    assert tags == pytest.approx(expected[1])
    (copy / "merges.txt").unlink()
    with pytest.raises(errors.CheckpointIncompleteError, match=r"vocab\.json but no merges\.txt"):
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


def _extra_tensor_beside(d: Path) -> None:
    save_file(load_file(d / "model.safetensors") | {"head.weight": torch.zeros(1)}, d / "model.safetensors")


def _without_decoder(d: Path) -> None:
    weights = load_file(d / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("decoder.")}, d / "model.safetensors")


def _uneven_attention(d: Path) -> None:
    key = "clip.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    save_file(load_file(d / "model.safetensors") | {key: torch.zeros(3, 5)}, d / "model.safetensors")


def _config(*path: str, value: object) -> Callable[[Path], None]:
    def edit(d: Path) -> None:
        values = json.loads((d / "config.json").read_text())
        part = values
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        (d / "config.json").write_text(json.dumps(values))

    return edit


def _processor(**values: object) -> Callable[[Path], None]:
    def edit(d: Path) -> None:
        whole = json.loads((d / "processor_config.json").read_text())
        whole["image_processor"] |= values
        (d / "processor_config.json").write_text(json.dumps(whole))

    return edit


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
        (_rename_tensor, errors.CheckpointIncompleteError, r"lack decoder\.film_mul\.bias"),
        (_extra_tensor, errors.CheckpointMismatchError, "surprise"),
        (_other_shape, errors.CheckpointMismatchError, r"logit_scale \(2,\) instead of \(\)"),
        (_not_finite, errors.CheckpointMismatchError, "not finite"),
        (_extra_tensor_beside, errors.CheckpointMismatchError, r"hold head\.weight"),
        (_without_decoder, errors.CheckpointIncompleteError, r"lack decoder\.film_add\.bias"),
        (_uneven_attention, errors.CheckpointMismatchError, r"differ in shape.*\(3, 5\)"),
        (_config("extract_layers", value=[3, 6, 9]), errors.CheckpointMismatchError, r"\(3, 6, 9\).*which has 5"),
        (_config("conditional_layer", value=3), errors.CheckpointMismatchError, "conditional_layer 3 is none of 3"),
        (_config("text_config", "hidden_act", value="what"), errors.CheckpointMismatchError, "what"),
        (_config("vision_config", "hidden_act", value="what"), errors.CheckpointMismatchError, "activation 'what'"),
        (_config("vision_config", "hidden_size", value=0), errors.CheckpointMismatchError, "cannot be"),
        (_config("vision_config", "patch_size", value=0), errors.CheckpointMismatchError, "cannot be"),
        (_config("vision_config", "num_attention_heads", value=-3), errors.CheckpointMismatchError, "heads"),
        (_config("projection_dim", value=-3), errors.CheckpointMismatchError, "cannot be built"),
        (_processor(size={"height": "a", "width": 3}), errors.CheckpointMismatchError, "cannot be used"),
        (_processor(image_mean=None), errors.CheckpointMismatchError, "cannot be used"),
        (_processor(image_std=[0.5]), errors.CheckpointMismatchError, "cannot be used"),
        (_processor(rescale_factor=0), errors.CheckpointMismatchError, "cannot be used"),
        (_processor(size=4), errors.CheckpointMismatchError, "less than one patch"),
        (
            _missing_block,
            errors.CheckpointIncompleteError,
            r"lack clip\.vision_model\.encoder\.layers\.2\.self_attn\.\{q,k,v\}_proj\.bias",
        ),
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


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("projection_dim",), "wide"),
        (("projection_dim",), 13),
        (("decoder",), "plain"),
        (("decoder", "taps"), [0, 9]),
        (("decoder", "condition_dim"), 13),
        (("image_encoder",), []),
        (("image_encoder", "model_args"), {"embed_dim": 31, "num_heads": 2}),
        (("image_encoder", "architecture"), "resnet18"),
        (("text_encoder", "config"), {"model_type": "unheard of"}),
        (("text_encoder", "config", "n_heads"), 5),
        (("text_encoder", "max_tokens"), None),
        (("tag_transform",), {"size_hw": "large"}),
    ],
)
def test_a_damaged_manifest_is_an_error_of_ours(
    tiny: Path, tmp_path: Path, path: tuple[str, ...], value: object
) -> None:
    checkpoint.save(tmp_path / "mine", name="mine", **own_parts(tiny))  # type: ignore[arg-type]
    file = tmp_path / "mine" / checkpoint.MANIFEST
    manifest = json.loads(file.read_text())
    part = manifest
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(manifest))
    with pytest.raises(errors.CheckpointError):
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


def test_loading_draws_no_random_weights(tmp_path: Path) -> None:
    make_clipseg_directory(tmp_path)
    state = torch.random.get_rng_state()
    vlm_core.load(tmp_path, "cpu", "float32")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.empty(2, 2).normal_().std() > 0  # as ever after it

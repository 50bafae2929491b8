"""Batch equals single, cached equals fresh, permuted prompts permute results: whatever is computed together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vlm_core
from tests.core.factories import make_clipseg_directory
from vlm_core import InputError, batching, checkpoint
from vlm_core import model as model_module
from vlm_core.errors import DataError
from vlm_core.feature_bytes import dump, parse
from vlm_core.model import Model
from vlm_core.types import ImageFeatures

CLOSE = {"atol": 2e-5, "rtol": 0.0}
"""Sums of other lengths round otherwise; logits have deviation near 1."""
WORDS = ("left", "red", "a b", "player", "x", "circle in the middle")


def picture(seed: int, size: tuple[int, int] = (70, 50)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return vlm_core.load(directory, device="cpu", dtype="float32")


phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5)


@settings(deadline=None, max_examples=25)
@given(asked=st.lists(phrases, min_size=1, max_size=6), padded=st.booleans())
def test_images_decoded_together_get_the_logits_they_get_alone(
    model: Model, asked: list[list[str]], padded: bool
) -> None:
    images = [picture(seed) for seed in range(len(asked))]
    features = model.encode_image(images)
    groups = batching.group_conditions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "group_conditions", lambda counts, most, **_: groups(counts, most, padded=padded))
        together = model.decode_batch(features, [model.encode_text(own) for own in asked])
    for image, own, masks in zip(images, asked, together, strict=True):
        alone = model.decode(model.encode_image(image), model.encode_text(own))
        assert masks.logits.shape == alone.logits.shape
        torch.testing.assert_close(masks.logits, alone.logits, **CLOSE)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(WORDS))
def test_permuted_prompts_permute_the_masks(model: Model, order: list[str]) -> None:
    image = picture(3)
    expected = dict(zip(WORDS, model.segment(image, WORDS).logits, strict=True))
    for phrase, logits in zip(order, model.segment(image, order).logits, strict=True):
        torch.testing.assert_close(logits, expected[phrase], **CLOSE)


def test_groups_hold_every_condition_once_and_no_more_than_may_be_decoded_at_once() -> None:
    counts = [1, 3, 64, 65, 200, 3, 1]
    for padded in (False, True):
        groups = batching.group_conditions(counts, 64, padded=padded)
        seen = sorted((i, c) for group in groups for i, first, last, _ in group for c in range(first, last))
        assert seen == [(i, c) for i, count in enumerate(counts) for c in range(count)]
        for group in groups:
            assert len({width for *_, width in group}) == 1
            assert sum(width for *_, width in group) <= 64
            assert all(last - first <= width < 2 * (last - first) or width == 1 for _, first, last, width in group)


def test_more_images_than_a_batch_are_the_same_images(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(seed, (40 + seed, 60)) for seed in range(7)]
    monkeypatch.setattr(batching, "_SIZES", {"cpu": batching.BatchSizes(3, 8)})
    sizes = []
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda batch, **kw: sizes.append(len(batch)) or encode(batch, **kw))
    together = model.encode_image(images, tags=True)
    assert sizes == [3, 3, 1]
    for index, image in enumerate(images):
        alone = encode([image], masks=True, tags=True, shared=False)
        for one, other in zip(together[index].taps, alone.taps, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)
        torch.testing.assert_close(together[index].image_embeds, alone.image_embeds, **CLOSE)


def test_a_shared_pass_gives_the_masks_of_its_own_pass_and_tags_of_what_masks_see(model: Model) -> None:
    assert not model.one_view
    image = picture(5, (90, 40))
    shared = model.encode_image(image, tags=True, shared_pass=True)
    separate = model.encode_image(image, tags=True)
    for one, other in zip(shared.taps, separate.taps, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert model.mask_transform is not None
    expected = model.clip.image_embeds(model.mask_transform(image)[None])
    torch.testing.assert_close(shared.image_embeds, expected, **CLOSE)
    assert shared.image_embeds is not None
    assert separate.image_embeds is not None
    assert (shared.image_embeds - separate.image_embeds).abs().max() > 1e-3


def test_one_pass_serves_both_where_both_see_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = Model(
        clip=model.clip,
        decoder=model.decoder,
        tokenizer=model.tokenizer,
        mask_transform=model.mask_transform,
        tag_transform=model.mask_transform,  # type: ignore[arg-type]  # the fixture has one
        name="alike",
        fingerprint="0" * 64,
    )
    assert alike.one_view
    passes = []
    tower = alike.clip.image_encoder
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    both = alike.encode_image(picture(1), tags=True)
    assert len(passes) == 1
    tags = alike.encode_image(picture(1), masks=False, tags=True)
    torch.testing.assert_close(both.image_embeds, tags.image_embeds, **CLOSE)


def test_joined_features_are_the_images_in_order(model: Model) -> None:
    parts = [model.encode_image([picture(n) for n in some], tags=True) for some in ((0, 1), (2,))]
    joined = ImageFeatures.join(parts)
    assert len(joined) == 3
    torch.testing.assert_close(joined[2].taps[1], parts[1].taps[1])
    torch.testing.assert_close(joined[1].image_embeds, parts[0][1].image_embeds)
    with pytest.raises(InputError, match="different things"):
        ImageFeatures.join([parts[0], model.encode_image(picture(0))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_from_bytes_give_the_logits_of_fresh_ones(model: Model, dtype: torch.dtype) -> None:
    fresh = model.encode_image([picture(0), picture(1)], tags=True)
    fresh = ImageFeatures(tuple(t.to(dtype) for t in fresh.taps), fresh.grid_hw, fresh.image_embeds)
    kept = parse(dump(fresh))
    assert (len(kept), kept.grid_hw, kept.nbytes) == (2, fresh.grid_hw, fresh.nbytes)
    conditions = model.encode_text(WORDS)
    assert torch.equal(model.decode(kept[1], conditions).logits, model.decode(fresh[1], conditions).logits)
    assert kept.image_embeds is not None
    assert torch.equal(kept.image_embeds, fresh.image_embeds)  # type: ignore[arg-type]  # asked for


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_bytes_that_are_cut_short_are_an_error(model: Model, cut: int) -> None:
    with pytest.raises(DataError, match="no image features"):
        parse(dump(model.encode_image(picture(0)))[:cut])


@pytest.mark.parametrize("capability", ["amx_bf16", "avx512_bf16", ""])
def test_the_cpu_computes_in_bfloat16_where_it_can(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, capability: True})
    expected = torch.bfloat16 if capability else torch.float32
    assert checkpoint.resolve_dtype("auto", torch.device("cpu")) == expected


def test_bfloat16_moves_few_pixels_of_the_demo_checkpoints_masks() -> None:
    from vlm_core.demo.scenes import generate_scene

    models = [vlm_core.load("demo", device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")]
    overlaps, moved = [], []
    for seed in range(2_000_000, 2_000_012):
        scene = generate_scene(seed)
        phrases = [f"{item.colour} {item.shape}" for item in scene.objects if item.named]
        exact, rounded = (m.segment(scene.image, phrases).logits >= 0 for m in models)
        for one, other in zip(exact, rounded, strict=True):
            moved.append(float((one != other).float().mean()))
            if one.sum() > 50:
                overlaps.append(float((one & other).sum() / (one | other).sum()))
    assert len(overlaps) > 20
    assert np.mean(moved) < 0.002
    assert np.median(overlaps) > 0.98

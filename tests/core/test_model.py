"""Laws of the loaded model: what may not depend on what."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlm_core
from tests.core.factories import PHRASES, make_clipseg_directory
from vlm_core import CheckpointError, InputError
from vlm_core.clipseg import CLIPSegDecoder, DecoderConfig
from vlm_core.image_encoder import ImageEncoder, resample_positions
from vlm_core.learned_conditions import join_state
from vlm_core.model import Model
from vlm_core.text_encoder import TextEncoder, masked_mean


def picture(seed: int, size: tuple[int, int] = (70, 50)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return vlm_core.load(directory, device="cpu")


def test_prompts_do_not_compete(model: Model) -> None:
    together = model.segment(picture(0), PHRASES).logits
    alone = torch.cat([model.segment(picture(0), [p]).logits for p in PHRASES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    backwards = model.segment(picture(0), PHRASES[::-1]).logits
    torch.testing.assert_close(together, backwards.flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(70, 50), (50, 70), (64, 64), (1, 1), (300, 7)])
def test_masks_have_the_images_size(model: Model, size: tuple[int, int]) -> None:
    masks = model.segment(picture(0, size), PHRASES[:1])
    assert masks.logits.shape == (1, size[1], size[0])
    assert masks.logits.dtype == torch.float32
    assert masks.prompts == PHRASES[:1]


def test_a_batch_equals_its_images(model: Model) -> None:
    images = [picture(s) for s in range(3)]
    batch = model.encode_image(images, tags=True)
    conditions = model.encode_text(PHRASES)
    for i, image in enumerate(images):
        single = model.encode_image(image, tags=True)
        torch.testing.assert_close(
            model.decode(batch[i], conditions).logits, model.decode(single, conditions).logits, atol=1e-5, rtol=0
        )
        assert batch[i].image_embeds is not None
        torch.testing.assert_close(batch[i].image_embeds, single.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch[-1].taps[0], batch[2].taps[0])


def test_text_does_not_depend_on_its_neighbours_or_the_cache(model: Model) -> None:
    """A short text is padded beside a long one; padding must not reach it."""
    alone = model.encode_text(["x"])
    model._text_cache.clear()
    beside = model.encode_text(["a much longer phrase than that", "x"])[1:]
    torch.testing.assert_close(alone, beside, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.encode_text(["x"]), beside)


def test_embeds_are_normalised_and_conditions_are_not(model: Model) -> None:
    features = model.encode_image(picture(0), tags=True)
    assert features.image_embeds is not None
    torch.testing.assert_close(features.image_embeds.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(model.text_embeds(PHRASES).norm(dim=-1), torch.ones(3))
    assert (model.encode_text(PHRASES).norm(dim=-1) - 1).abs().min() > 0.01


def test_ranking_is_best_first_and_sums_to_one(model: Model) -> None:
    scores = model.rank(picture(1), PHRASES)
    assert sum(s.probability for s in scores) == pytest.approx(1)
    assert [s.similarity for s in scores] == sorted((s.similarity for s in scores), reverse=True)
    assert {s.tag for s in scores} == set(PHRASES)


def test_another_decoder_changes_masks_and_leaves_the_first_alone(model: Model) -> None:
    assert model.decoder is not None
    before = model.segment(picture(0), PHRASES).logits
    other = model.with_learned({k: v * 1.5 for k, v in model.decoder.state_dict().items()})
    assert not torch.allclose(other.segment(picture(0), PHRASES).logits, before, atol=0.1)
    torch.testing.assert_close(model.segment(picture(0), PHRASES).logits, before)
    assert other.clip is model.clip
    with pytest.raises(CheckpointError, match="do not fit"):
        model.with_learned({"film_mul.weight": torch.zeros(1)})


def test_a_learned_condition_is_what_its_phrase_asks_for_and_nothing_else_changes(model: Model) -> None:
    assert model.decoder is not None
    learned = model.encode_text([PHRASES[1]])[0]
    state = join_state(model.decoder.state_dict(), {PHRASES[0]: learned})
    other = model.with_learned(state)
    before, after = (each.segment(picture(0), PHRASES).logits for each in (model, other))
    torch.testing.assert_close(after[0], before[1])  # the first phrase means what the second does now
    torch.testing.assert_close(after[1:], before[1:])
    # What is kept in the shared cache is the text's, whoever asked first.
    assert torch.equal(model.encode_text(PHRASES), model.with_learned(model.decoder.state_dict()).encode_text(PHRASES))
    # Tags go by the text.
    torch.testing.assert_close(other.text_embeds(PHRASES), model.text_embeds(PHRASES))
    with pytest.raises(CheckpointError, match=f"condition of {PHRASES[0]!r} has shape"):
        model.with_learned(join_state(model.decoder.state_dict(), {PHRASES[0]: learned[:-1]}))


def test_threads_get_the_answers_of_one_thread(model: Model) -> None:
    expected = {s: model.segment(picture(s), PHRASES).logits for s in range(4)}
    got: dict[int, torch.Tensor] = {}

    def ask(seed: int) -> None:
        got[seed] = model.segment(picture(seed), PHRASES).logits

    threads = [threading.Thread(target=ask, args=(s,)) for s in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, logits in expected.items():
        torch.testing.assert_close(got[seed], logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompts", [[], [""], ["  "], "circle", [None]])
def test_unusable_prompts_are_named(model: Model, prompts: list[str]) -> None:
    with pytest.raises(InputError, match="prompt"):
        model.segment(picture(0), prompts)


def test_what_is_no_image_is_named(model: Model) -> None:
    with pytest.raises(InputError, match="ndarray"):
        model.segment(np.zeros((5, 5, 3)), ["x"])  # type: ignore[arg-type]  # the mistake under test


def test_grey_and_palette_images_are_converted(model: Model) -> None:
    grey = picture(0).convert("L")
    torch.testing.assert_close(
        model.segment(grey, ["x"]).logits, model.segment(grey.convert("RGB"), ["x"]).logits, atol=1e-6, rtol=0
    )


def test_bfloat16_keeps_the_masks(model: Model, tmp_path: Path) -> None:
    make_clipseg_directory(tmp_path / "tiny", mask_size=64, image_size=32)
    half = vlm_core.load(tmp_path / "tiny", device="cpu", dtype="bfloat16")
    a, b = (m.segment(picture(0), PHRASES).logits.flatten() for m in (model, half))
    assert b.dtype == torch.float32
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("architecture", "prefix"),
    [
        ("vit_tiny_patch16_224", 1),  # class token with a position of its own
        ("vit_small_patch14_reg4_dinov2", 5),  # class token and registers, positions for cells only
        ("vit_base_patch16_siglip_224", 0),  # attention pooling, no prefix at all
    ],
)
def test_the_tower_equals_timms_own_forward(architecture: str, prefix: int) -> None:
    """At its own size, our loop over the blocks is timm's `forward`, for every arrangement of prefix tokens."""
    torch.manual_seed(0)
    patch = 14 if "patch14" in architecture else 16
    size = 4 * patch
    tower = ImageEncoder(architecture, {"img_size": size, "embed_dim": 48, "depth": 3, "num_heads": 4}).eval()
    assert tower.num_prefix_tokens == prefix
    pixel_values = torch.randn(2, 3, size, size)
    with torch.no_grad():
        encoded = tower(pixel_values, taps=(0, 2))
        expected = tower.vit(pixel_values)
        shallow = tower(pixel_values, taps=(0,), pooled=False)
    torch.testing.assert_close(encoded.pooled, expected)
    assert encoded.taps[1].shape == (2, prefix + 16, 48)
    torch.testing.assert_close(shallow.taps[0], encoded.taps[0])
    assert shallow.pooled is None


def test_a_tower_takes_sizes_that_are_not_square() -> None:
    tower = ImageEncoder("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}).eval()
    encoded = tower(torch.randn(1, 3, 48, 80), taps=(1,))
    assert encoded.grid_hw == (3, 5)
    assert encoded.taps[0].shape == (1, 16, 48)
    with pytest.raises(InputError, match="48 x 15 px is smaller than one patch"):
        tower(torch.randn(1, 3, 48, 15))
    with pytest.raises(InputError, match="taps"):
        tower(torch.randn(1, 3, 48, 48), taps=(7,))


def test_positions_are_kept_at_their_own_size_and_prefix_everywhere() -> None:
    positions = torch.randn(1, 1 + 9, 5)
    assert resample_positions(positions, (3, 3), (3, 3), 1) is positions
    resampled = resample_positions(positions, (3, 3), (6, 2), 1)
    assert resampled.shape == (1, 13, 5)
    torch.testing.assert_close(resampled[:, 0], positions[:, 0])
    constant = resample_positions(torch.ones(1, 9, 5), (3, 3), (7, 7), 0)
    torch.testing.assert_close(constant, torch.ones(1, 49, 5))


def test_the_mean_is_over_real_tokens_only() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    torch.testing.assert_close(masked_mean(hidden, torch.tensor([[1, 1, 0]])), torch.tensor([[2.0]]))


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_never_changes_a_text(pooling: str) -> None:
    torch.manual_seed(0)
    config = {
        "model_type": "distilbert", "vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
    }  # fmt: skip
    encoder = TextEncoder(config, pooling).eval()  # type: ignore[arg-type]  # the parameter is one of the literals
    ids = torch.tensor([[2, 5, 6, 3]])
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids, mask[:, :4]), encoder(padded, mask), atol=1e-6, rtol=0)


def test_a_decoder_reads_grids_that_are_not_square(model: Model) -> None:
    assert model.mask_transform is not None
    wide = model.with_learned(model.decoder.state_dict())  # type: ignore[union-attr]  # it has one
    wide.mask_transform = replace(model.mask_transform, size_hw=(32, 64))
    logits = wide.decode(wide.encode_image(picture(0)), wide.encode_text(PHRASES)).logits
    assert logits.shape == (3, 32, 64)


def test_normalised_inputs_may_have_any_scale() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(
        taps=(0, 1), tap_width=12, condition_dim=8, reduce_dim=8, num_heads=2, mlp_width=16, head_kernels=(2,)
    )
    taps, conditions = [torch.randn(1, 5, 12) for _ in range(2)], torch.randn(1, 3, 8)
    for normalise in (False, True):
        decoder = CLIPSegDecoder(replace(config, normalise_inputs=normalise)).eval()
        with torch.no_grad():
            logits = decoder(taps, conditions, (2, 2))
            grown = decoder([tap * 30 for tap in taps], conditions * 30, (2, 2))
        assert torch.allclose(logits, grown, atol=1e-3) == normalise


def test_many_prompts_are_decoded_in_parts_to_the_same_logits(model: Model) -> None:
    prompts = [f"thing {number}" for number in range(70)]
    features, conditions = model.encode_image(picture(3)), model.encode_text(prompts)
    together = model.decode(features, conditions, prompts)
    assert together.prompts == tuple(prompts)
    for row in (0, 63, 64, 69):
        alone = model.decode(features, conditions[row : row + 1]).logits[0]
        torch.testing.assert_close(together.logits[row], alone, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="P >= 1"):
        model.decode(features, conditions[:0])

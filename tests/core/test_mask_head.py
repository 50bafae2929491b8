"""A head answers for its phrases, and for no other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vlm_core
from tests.core.factories import PHRASES, make_clipseg_directory
from tests.core.test_model import picture
from vlm_core import CheckpointError, InputError
from vlm_core.clipseg import DecoderConfig
from vlm_core.mask_head import MaskHead, cells_of, join_mask_head, split_mask_head
from vlm_core.model import Model
from vlm_core.prompts import Prompt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return vlm_core.load(directory, device="cpu")


def make_head(model: Model, outputs: int = 2) -> MaskHead:
    assert model.decoder is not None
    torch.manual_seed(0)
    head = MaskHead(model.decoder.config, [str(number) for number in range(outputs)], hidden=8)
    head.mean.normal_()
    head.spread.uniform_(0.5, 2.0)
    return head.eval()


def with_head(model: Model, outputs: dict[str, int]) -> tuple[Model, MaskHead]:
    assert model.decoder is not None
    head = make_head(model)
    return model.with_learned({**model.decoder.state_dict(), **join_mask_head(head, outputs)}), head


def own_answers(model: Model, head: MaskHead) -> Tensor:
    features = model.encode_image(picture(0))
    with torch.no_grad():
        return head.on_grid(head(features.taps, features.grid_hw))[0]


@pytest.mark.parametrize("never_asked", [0, 1, 2, 3])  # conditions of other widths are multiplied otherwise
def test_a_head_answers_for_its_phrases_and_all_others_stay_to_the_bit(model: Model, never_asked: int) -> None:
    other, head = with_head(model, {PHRASES[1]: 1, **{f"never asked {n}": 0 for n in range(never_asked)}})
    features = model.encode_image(picture(0))
    before, after = (each.decode(features, each.encode_text(PHRASES)).logits for each in (model, other))
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    torch.testing.assert_close(after[1], own_answers(model, head)[1])
    assert not torch.allclose(after[1], before[1], atol=0.01)
    assert model.mask_head is None
    torch.testing.assert_close(other.text_embeds(PHRASES), model.text_embeds(PHRASES))


def test_several_images_with_conditions_of_their_own_are_answered_as_alone(model: Model) -> None:
    other, _ = with_head(model, {PHRASES[0]: 0, PHRASES[2]: 1})
    features = other.encode_image([picture(number) for number in range(3)])
    asked = [other.encode_text(some) for some in (PHRASES, PHRASES[2:], PHRASES[:2])]
    for index, found in enumerate(other.decode_batch(features, asked)):
        torch.testing.assert_close(found.logits, other.decode(features[index], asked[index]).logits, atol=1e-5, rtol=0)


def test_mixes_of_prompts_mix_answers(model: Model) -> None:
    other, head = with_head(model, {PHRASES[0]: 0, PHRASES[1]: 1})
    mean = other.encode_prompts([Prompt(PHRASES[:2], combine="mean")]).conditions
    features = other.encode_image(picture(0))
    torch.testing.assert_close(other.decode(features, mean).logits[0], own_answers(model, head).mean(0))


def test_pictures_ask_the_decoder(model: Model) -> None:
    other, _ = with_head(model, {PHRASES[0]: 0})
    shown = [(picture(3), (10.0, 10.0, 40.0, 40.0))]
    expected = model.segment(picture(0), exemplars=shown).logits
    torch.testing.assert_close(other.segment(picture(0), exemplars=shown).logits, expected)
    mixed = Prompt((PHRASES[1],), exemplars=shown, text_weight=0.5)
    assert torch.equal(other.segment(picture(0), [mixed]).logits, model.segment(picture(0), [mixed]).logits)


def test_conditions_of_a_model_without_the_head_are_refused(model: Model) -> None:
    other, _ = with_head(model, {PHRASES[0]: 0})
    width = model.clip.projection_dim + 1
    with pytest.raises(InputError, match=f"need shape \\(P, {width}\\)"):
        other.decode(model.encode_image(picture(0)), model.encode_text(PHRASES))


def test_answers_depend_neither_on_the_length_nor_on_the_mean_of_tokens(model: Model) -> None:
    head = make_head(model)
    features = model.encode_image(picture(0))
    moved = [3.0 * tap + 5.0 for tap in features.taps]
    with torch.no_grad():
        torch.testing.assert_close(
            head(moved, features.grid_hw), head(features.taps, features.grid_hw), atol=1e-3, rtol=1e-3
        )


def test_what_is_kept_is_read_back(model: Model) -> None:
    assert model.decoder is not None
    head = make_head(model)
    others, read = split_mask_head({"other": torch.ones(1), **join_mask_head(head, {"b": 1, "a": 0, "A": 0})},
                                   model.decoder.config)  # fmt: skip
    assert set(others) == {"other"}
    assert read is not None
    assert read.phrases == ("A", "a", "b")
    taps, grid = model.encode_image(picture(0)).taps, model.encode_image(picture(0)).grid_hw
    with torch.no_grad():
        expected = head(taps, grid)[:, [0, 0, 1]]
        torch.testing.assert_close(read(taps, grid), expected)
    assert split_mask_head({"other": torch.ones(1)}, model.decoder.config)[1] is None


def test_a_head_that_is_not_whole_or_not_for_this_decoder_is_refused(model: Model) -> None:
    assert model.decoder is not None
    state = join_mask_head(make_head(model), {"a": 0})
    config = model.decoder.config
    for missing in state:
        with pytest.raises(CheckpointError, match="use another version"):
            split_mask_head({name: value for name, value in state.items() if name != missing}, config)
    wider = DecoderConfig.from_dict({**config.to_dict(), "tap_width": config.tap_width + 1})
    for other in (wider, None):
        with pytest.raises(CheckpointError, match=r"(?s)learned masks .* use another version"):
            split_mask_head(state, other)
    with pytest.raises(CheckpointError, match="do not fit"):
        split_mask_head({**state, "mask_head.phrase.b": torch.zeros(3)}, config)


@pytest.mark.parametrize(
    ("kernels", "cells"), [((4, 4), 4), ((8,), 4), ((14,), 2), ((7,), 1), ((3, 3), 3), ((2,), 2), ((1,), 1)]
)
def test_a_head_answers_on_an_even_part_of_the_decoders_grid(kernels: tuple[int, ...], cells: int) -> None:
    config = DecoderConfig(
        taps=(0,), tap_width=6, condition_dim=5, reduce_dim=8, num_heads=2, mlp_width=16, head_kernels=kernels
    )
    assert cells_of(config) == cells
    head = MaskHead(config, ["a"], hidden=4)
    answer = head.answer([torch.randn(2, 1 + 6, 6)], torch.ones(2, 1, 1), (2, 3))
    assert answer.shape == (2, 1, 2 * config.upsampling, 3 * config.upsampling)

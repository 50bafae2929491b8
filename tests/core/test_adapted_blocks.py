"""Changed copies of an encoder's blocks, against the blocks themselves and against peft."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

import vlm_core
from tests.core.factories import PHRASES, make_clipseg_directory
from tests.core.test_model import picture
from vlm_core import CheckpointError
from vlm_core.adapted_blocks import AdaptedBlocks, blocks_between
from vlm_core.mask_head import MaskHead, join_mask_head, split_mask_head
from vlm_core.model import Model

LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return vlm_core.load(directory, device="cpu", dtype="float32")


def taps_of(model: Model) -> tuple[int, ...]:
    assert model.decoder is not None
    return model.decoder.config.taps


def changes_of(model: Model, rank: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(3)
    found: dict[str, Tensor] = {}
    for number, block in enumerate(model.adaptable_blocks):
        for name in LINEAR:
            outputs, inputs = block.get_parameter(f"{name}.weight").shape
            found[f"{number}.{name}.A"] = 0.3 * torch.randn(rank, inputs)
            found[f"{number}.{name}.B"] = 0.3 * torch.randn(outputs, rank)
    return found


def changed_head(model: Model) -> MaskHead:
    assert model.decoder is not None
    torch.manual_seed(0)
    adapted = AdaptedBlocks(taps_of(model), model.adaptable_blocks, changes_of(model))
    return MaskHead(model.decoder.config, ["0", "1"], 8, adapted).eval()


def test_without_changes_the_blocks_say_what_the_encoder_says(model: Model) -> None:
    features = model.encode_image([picture(0), picture(1)])
    same = AdaptedBlocks(taps_of(model), model.adaptable_blocks, {})(features.taps)
    for own, found in zip(features.taps, same, strict=True):
        torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-5)


def test_changes_are_what_peft_makes_of_the_same_numbers(model: Model) -> None:
    changes = changes_of(model)
    reference = nn.Sequential(*(copy.deepcopy(block) for block in model.adaptable_blocks))
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["qkv", "proj", "fc1", "fc2"]), reference)
    with torch.no_grad():
        for name, value in changes.items():
            part = {"A": "lora_A", "B": "lora_B"}[name[-1]]
            reference.get_parameter(f"{name[:-2]}.{part}.default.weight").copy_(value)
    before = [block.state_dict() for block in copy.deepcopy(model.adaptable_blocks)]
    taps = model.encode_image(picture(0)).taps
    adapted = AdaptedBlocks(taps_of(model), model.adaptable_blocks, changes)
    with torch.no_grad():
        found, expected = adapted(taps), reference(taps[-2])
    torch.testing.assert_close(found[-1], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[-1], taps[-1], atol=0.1)
    assert all(torch.equal(one, other) for one, other in zip(found[:-1], taps[:-1], strict=True))
    for block, state in zip(model.adaptable_blocks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())


def test_taps_may_come_in_any_order(model: Model) -> None:
    taps = model.encode_image(picture(0)).taps
    changes = changes_of(model)
    forwards = AdaptedBlocks(taps_of(model), model.adaptable_blocks, changes)(taps)
    backwards = AdaptedBlocks(taps_of(model)[::-1], model.adaptable_blocks, changes)(taps[::-1])
    assert all(torch.equal(one, other) for one, other in zip(forwards, backwards[::-1], strict=True))


def test_a_decoder_of_one_tap_has_none_that_could_change(model: Model) -> None:
    assert blocks_between(model.clip.image_encoder, (1,)) == ()
    assert len(blocks_between(model.clip.image_encoder, (2, 0))) == 2


def test_a_version_with_changes_answers_its_phrases_with_them_and_all_others_as_before(model: Model) -> None:
    assert model.decoder is not None
    head = changed_head(model)
    state = {**model.decoder.state_dict(), **join_mask_head(head, {PHRASES[1]: 1})}
    served = model.with_learned(state)
    features = model.encode_image(picture(0))
    before, after = (one.decode(features, one.encode_text(PHRASES)).logits for one in (model, served))
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    with torch.no_grad():
        expected = head.on_grid(head(features.taps, features.grid_hw))[0, 1]
        head.adapted = None
        unchanged = head.on_grid(head(features.taps, features.grid_hw))[0, 1]
    torch.testing.assert_close(after[1], expected)
    assert not torch.allclose(after[1], unchanged, atol=0.01)
    # Only the low ranks are kept, not the blocks.
    kept = sum(value.numel() for name, value in state.items() if ".changes." in name)
    assert kept == sum(value.numel() for value in changes_of(model).values())
    assert not any("blocks" in name for name in state)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask_head.changes.9.attn.qkv.A": torch.zeros(2, 4), "mask_head.changes.9.attn.qkv.B": torch.zeros(4, 2)},
        {"mask_head.changes.0.attn.qkv.A": torch.zeros(2, 5)},
        {"mask_head.changes.0.attn.extra.A": torch.zeros(2, 5)},
    ],
)
def test_changes_of_another_encoder_are_refused(model: Model, wrong: dict[str, Tensor]) -> None:
    assert model.decoder is not None
    state = join_mask_head(changed_head(model), {"a": 0}) | wrong
    with pytest.raises(CheckpointError, match="use another version"):
        split_mask_head(state, model.decoder.config, model.adaptable_blocks)
    missing = {
        name: value for name, value in join_mask_head(changed_head(model), {"a": 0}).items() if name[-2:] != ".B"
    }
    with pytest.raises(CheckpointError, match="use another version"):
        split_mask_head(missing, model.decoder.config, model.adaptable_blocks)

"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vlm_core.losses import contrastive_loss, dice_loss, mask_bce, segmentation_loss, word_loss


def test_contrastive_loss_of_equal_logits_is_log_of_the_choices() -> None:
    assert contrastive_loss(torch.zeros(4, 4)).item() == pytest.approx(math.log(4))


def test_contrastive_loss_averages_both_directions() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = (math.log(math.exp(2) + 1) - 2 + math.log(math.exp(1) + math.exp(3)) - 3) / 2
    columns = (math.log(math.exp(2) + math.exp(1)) - 2 + math.log(1 + math.exp(3)) - 3) / 2
    assert contrastive_loss(logits).item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_contrastive_loss_with_more_texts_than_images_uses_them_as_wrong_choices_only() -> None:
    square = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    wider = torch.cat([square, torch.full((2, 1), -1e9)], dim=1)
    assert contrastive_loss(wider).item() == pytest.approx(contrastive_loss(square).item(), abs=1e-6)
    harder = torch.cat([square, torch.full((2, 1), 2.0)], dim=1)
    assert contrastive_loss(harder) > contrastive_loss(square)


def test_contrastive_loss_needs_a_text_for_each_image() -> None:
    with pytest.raises(ValueError, match="3 images need at least 3 texts, got 2"):
        contrastive_loss(torch.zeros(3, 2))


def test_word_loss_by_hand() -> None:
    words = torch.eye(3)
    conditions = torch.tensor([[0.0, 5.0, 0.0], [1.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    input_ids = torch.tensor([[1, 0], [0, 1], [2, 2]])
    said = torch.tensor([[1, 0], [1, 1], [0, 0]])  # the first is padded, the last has no word
    one = math.log(math.exp(2) + 2) - 2  # it points at its word; the others are at right angles
    side = 2 / math.sqrt(2)
    two = math.log(2 * math.exp(side) + 1) - side  # halfway between both of its words
    loss = word_loss(conditions, words, input_ids, said, scale=2.0)
    assert loss.item() == pytest.approx((one + two) / 2, abs=1e-6)
    longer = word_loss(conditions * 100, words * 0.01, input_ids, said, scale=2.0)
    assert longer.item() == pytest.approx(loss.item(), abs=1e-6)
    assert word_loss(conditions, words, input_ids, torch.zeros_like(said)).item() == 0.0


def test_word_loss_drives_apart_what_is_nearly_the_same() -> None:
    torch.manual_seed(0)
    common = torch.randn(8)
    conditions = (common + 0.01 * torch.randn(2, 8)).requires_grad_()
    words = torch.randn(2, 8, requires_grad=True)
    optimizer = torch.optim.SGD([conditions, words], lr=0.5)
    ids, said = torch.tensor([[0], [1]]), torch.ones(2, 1)
    assert torch.cosine_similarity(conditions[0], conditions[1], dim=0) > 0.999
    for _ in range(200):
        optimizer.zero_grad()
        word_loss(conditions, words, ids, said).backward()
        optimizer.step()
    assert word_loss(conditions, words, ids, said) < 0.01  # log 2, had it not told them apart
    assert torch.cosine_similarity(conditions[0], conditions[1], dim=0) < 0.75


def test_mask_bce_of_no_knowledge_is_log_two() -> None:
    assert mask_bce(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 1.0], [0.3, 1.0]]])).item() == pytest.approx(math.log(2))


def test_dice_loss_by_hand() -> None:
    logits = torch.tensor([[[100.0, 100.0], [-100.0, -100.0]]])  # probabilities 1, 1, 0, 0
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # overlap 1, sizes 2 and 2: 1 - (2 * 1 + 1) / (4 + 1)
    assert dice_loss(logits, target).item() == pytest.approx(1 - 3 / 5)


def test_dice_loss_is_zero_for_the_right_mask_and_for_an_empty_one_left_empty() -> None:
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert dice_loss(target * 200 - 100, target).item() == pytest.approx(0.0, abs=1e-6)


def test_dice_weighs_a_small_object_as_much_as_a_large_one() -> None:
    target = torch.zeros(2, 8, 8)
    target[0, :1, :2] = 1
    target[1, :, :] = 1
    missed_small, missed_large = torch.full((2, 8, 8), 20.0), torch.full((2, 8, 8), 20.0)
    missed_small[0] = -20.0
    missed_small[1] = 20.0
    missed_large[0] = torch.where(target[0] > 0, 20.0, -20.0)
    missed_large[1] = -20.0
    small, large = dice_loss(missed_small, target, smooth=0.0), dice_loss(missed_large, target, smooth=0.0)
    assert small.item() == pytest.approx(large.item(), abs=1e-4)
    assert mask_bce(missed_large, target) > 10 * mask_bce(missed_small, target)


def test_segmentation_loss_adds_the_weighted_dice_term() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, target = torch.randn(2, 3, 4, 4, generator=generator), torch.rand(2, 3, 4, 4, generator=generator)
    expected = mask_bce(logits, target) + 0.7 * dice_loss(logits, target)
    assert segmentation_loss(logits, target, dice_weight=0.7).item() == pytest.approx(expected.item(), abs=1e-6)
    assert segmentation_loss(logits, target, dice_weight=0).item() == pytest.approx(mask_bce(logits, target).item())

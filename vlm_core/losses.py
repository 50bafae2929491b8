"""Losses, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(logits_per_image: Tensor) -> Tensor:
    """Symmetric contrastive loss: each image must pick its text and each text its image.

    Args:
        logits_per_image: (B, N), N >= B; row i belongs to column i. Columns from B on are texts of no image
            in the batch: images must not pick them, and they pick nothing.

    Returns:
        A scalar, mean of both cross entropies.

    Raises:
        ValueError: fewer texts than images.

    Source: Radford et al., arXiv:2103.00020, figure 3.
    """
    batch, texts = logits_per_image.shape
    if texts < batch:
        raise ValueError(f"{batch} images need at least {batch} texts, got {texts}")
    target = torch.arange(batch, device=logits_per_image.device)
    image_picks = F.cross_entropy(logits_per_image, target)
    text_picks = F.cross_entropy(logits_per_image[:, :batch].T, target)
    return (image_picks + text_picks) / 2


def contrastive_loss_of_part(logits_per_image: Tensor, logits_per_text: Tensor, first: int) -> Tensor:
    """The part of `contrastive_loss` that some of a batch's images and texts have in it.

    The mean of all parts' losses, where parts are of one size, is the loss of the whole batch.

    Args:
        logits_per_image: (b, B), the part's images against all texts of the batch.
        logits_per_text: (b, B), the part's texts against all images.
        first: place of the part's first image, and of its text, in the batch; 0 to B - b.

    Returns:
        A scalar.
    """
    target = torch.arange(first, first + len(logits_per_image), device=logits_per_image.device)
    return (F.cross_entropy(logits_per_image, target) + F.cross_entropy(logits_per_text, target)) / 2


def word_loss(conditions: Tensor, words: Tensor, input_ids: Tensor, said: Tensor, *, scale: float = 16.0) -> Tensor:
    """Ask of each text's condition which words the text has: cross entropy over the vocabulary, mean over texts.

    Compared are directions, so that words which masks do not tell apart yet ("left", "right") stay apart by an
    angle, and not by a length that nothing can be learned from.

    Args:
        conditions: (N, E).
        words: (V, E), one learned direction for each token of the vocabulary.
        input_ids: int64, (N, L).
        said: (N, L), 1 for tokens that are words, 0 for padding and special tokens. Each word of a text counts alike.
        scale: what cosines are multiplied with.

    Returns:
        A scalar; texts without words do not count.
    """
    logits = scale * F.normalize(conditions.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T
    picked = logits.log_softmax(dim=-1).gather(1, input_ids)
    weight = said.to(picked.dtype)
    number = weight.sum(1)
    per_text = -(picked * weight).sum(1) / number.clamp(min=1.0)
    return per_text.sum() / (number > 0).sum().clamp(min=1)


def mask_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, mean over all pixels.

    Args:
        logits: (..., H, W).
        target: same shape, in [0, 1].
    """
    return F.binary_cross_entropy_with_logits(logits, target)


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """The mean of `dice_losses` over masks. Small objects count as much as large ones."""
    return dice_losses(logits, target, smooth=smooth).mean()


def dice_losses(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice coefficient of each mask, (...,).

    Args:
        logits: (..., H, W).
        target: same shape, in [0, 1].
        smooth: pixels added above and below, so that an empty mask is defined: with an empty target the loss
            goes to 0 as the predicted area does.

    Source: Milletari et al., V-Net, arXiv:1606.04797.
    """
    probability = torch.sigmoid(logits).flatten(-2)
    target = target.flatten(-2)
    overlap = (probability * target).sum(-1)
    total = probability.sum(-1) + target.sum(-1)
    return 1 - (2 * overlap + smooth) / (total + smooth)


def segmentation_loss(logits: Tensor, target: Tensor, *, dice_weight: float = 0.5) -> Tensor:
    """Cross entropy plus weighted Dice.

    Args:
        logits: (..., H, W).
        target: same shape, in [0, 1].
        dice_weight: 0 is the CLIPSeg paper's loss.
    """
    loss = mask_bce(logits, target)
    if dice_weight:
        loss = loss + dice_weight * dice_loss(logits, target)
    return loss

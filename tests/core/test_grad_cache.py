"""Cached gradients are those of the whole batch, whatever the parts, with and without dropout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vlm_core.clip import CLIP
from vlm_core.image_encoder import ImageEncoder
from vlm_core.losses import contrastive_loss, contrastive_loss_of_part
from vlm_core.recipes import common
from vlm_core.recipes.grad_cache import Embeds, cached_backward
from vlm_core.text_encoder import TextEncoder

CPU = torch.device("cpu")
BATCH = 7


def tiny_clip(dropout: float) -> CLIP:
    torch.manual_seed(0)
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "proj_drop_rate": dropout}
    bert = {
        "model_type": "distilbert", "vocab_size": 40, "dim": 24, "hidden_dim": 48, "n_layers": 1, "n_heads": 2,
        "max_position_embeddings": 12, "dropout": dropout, "attention_dropout": dropout,
    }  # fmt: skip
    return CLIP(ImageEncoder("vit_tiny_patch16_224", vit), TextEncoder(bert, "mean"), 16).train()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 40, (BATCH, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return torch.randn(BATCH, 3, 32, 32, generator=generator), ids, mask


def parts_of(clip: CLIP, size: int, precision: str = "fp32") -> list[Callable[[], Embeds]]:
    pixels, ids, mask = inputs()

    def embed(part: slice) -> Embeds:
        with common.computing(CPU, precision):
            image, text = clip.image_embeds(pixels[part]), clip.text_embeds(ids[part], mask[part])
        return image.float(), text.float()

    return [partial(embed, slice(start, start + size)) for start in range(0, BATCH, size)]


def loss_with(clip: CLIP) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda image, text: contrastive_loss(clip.temperature_scale * image @ text.T)


def one_graph(clip: CLIP, parts: list[Callable[[], Embeds]]) -> Tensor:
    """All parts in one graph: what the cache stands for."""
    image, text = (torch.cat(side) for side in zip(*[part() for part in parts], strict=True))
    loss = loss_with(clip)(image, text)
    loss.backward()
    return loss.detach()


def gradients(clip: CLIP) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in clip.named_parameters() if p.grad is not None}
    clip.zero_grad()
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert torch.allclose(found[name], grad, rtol=1e-4, atol=tolerance), name


@pytest.mark.parametrize("size", [1, 3, BATCH])
def test_equal_to_the_whole_batch_at_once(size: int) -> None:
    clip = tiny_clip(0.0)
    expected_loss = one_graph(clip, parts_of(clip, BATCH))
    expected = gradients(clip)
    assert {"logit_scale", "visual_projection.weight", "image_encoder.vit.patch_embed.proj.weight"} <= expected.keys()
    loss = cached_backward(parts_of(clip, size), loss_with(clip), CPU)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_equal(gradients(clip), expected, 1e-6)


def test_losses_of_parts_added_up_are_something_else() -> None:
    clip = tiny_clip(0.0)
    one_graph(clip, parts_of(clip, BATCH))
    expected = gradients(clip)["visual_projection.weight"]
    parts = parts_of(clip, 3)
    for part in parts:
        (loss_with(clip)(*part()) / len(parts)).backward()
    assert not torch.allclose(gradients(clip)["visual_projection.weight"], expected, atol=1e-2)


@pytest.mark.parametrize("size", [2, 3])
def test_the_same_units_drop_out_in_both_passes(size: int) -> None:
    clip = tiny_clip(0.3)
    torch.manual_seed(5)
    expected_loss = one_graph(clip, parts_of(clip, size))
    expected, next_number = gradients(clip), torch.rand(1)
    torch.manual_seed(5)
    loss = cached_backward(parts_of(clip, size), loss_with(clip), CPU)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_equal(gradients(clip), expected, 1e-6)
    assert torch.equal(torch.rand(1), next_number)  # the stream goes on as after one pass


def test_in_bfloat16_every_weight_gets_its_gradient() -> None:
    clip = tiny_clip(0.0)
    loss = one_graph(clip, parts_of(clip, 3, "bf16"))
    expected = gradients(clip)
    assert cached_backward(parts_of(clip, 3, "bf16"), loss_with(clip), CPU).item() == pytest.approx(loss.item())
    # The same casts in another order of additions.
    assert_equal(gradients(clip), expected, 2e-2)


def test_gradients_are_added_to_what_is_there() -> None:
    weight = nn.Parameter(torch.eye(4))
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    parts = [lambda part=part: (part @ weight, part @ weight.T) for part in torch.split(rows, 2)]
    cached_backward(parts, lambda a, b: contrastive_loss(a @ b.T), CPU)
    once = weight.grad.clone()  # type: ignore[union-attr]
    cached_backward(parts, lambda a, b: contrastive_loss(a @ b.T), CPU)
    assert torch.allclose(weight.grad, 2 * once)  # type: ignore[arg-type]


def test_losses_of_equal_parts_average_to_that_of_the_batch() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    parts = [contrastive_loss_of_part(logits[i : i + 2], logits.T[i : i + 2], i) for i in (0, 2, 4)]
    assert torch.stack(parts).mean().item() == pytest.approx(contrastive_loss(logits).item(), rel=1e-6)

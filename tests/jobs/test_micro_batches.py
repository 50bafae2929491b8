"""Memory that is short: fits go on with parts of a batch, and everything else says so in words of ours."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.failures import is_out_of_memory
from backend.settings import Settings
from backend.versions import VersionStore
from tests.jobs.handmade import QUICK, examples, for_steps, make_decoder, prompts
from tests.jobs.label_studio import corrected_project, serve
from tests.jobs.one_training import train
from tests.jobs.test_training import QUICK as WHOLE
from training_jobs.errors import MemoryShortError
from training_jobs.recipes.finetune_decoder import FinetuneConfig, corrections_loss, fit, quality
from training_jobs.recipes.fit_mask_head import MaskHeadConfig
from training_jobs.recipes.fit_mask_head import fit as fit_mask_head
from training_jobs.recipes.micro_batches import MicroBatches
from training_jobs.recipes.tune_conditions import ConditionsConfig, tune
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.mask_head import MaskHead
from vlm_core.model import Model

HOLDING = FinetuneConfig(steps=8, batch_images=6, learning_rate=2e-3, hold=30.0, pull=1.0, threads=1)
"""All terms of the loss at once."""

Steps = list[float]
Fit = Callable[[], tuple[dict[str, Tensor], Steps]]


@functools.cache
def taught() -> CLIPSegDecoder:
    """A decoder that marks both labels well enough to be held."""
    decoder = make_decoder()
    state = fit(decoder, examples(range(8)), prompts(), for_steps(QUICK, 40), lambda share, loss: None)
    decoder.load_state_dict(state)
    assert max(quality(decoder, examples(range(8)), prompts())) > 0.6
    return decoder


def fit_decoder() -> tuple[dict[str, Tensor], Steps]:
    losses: Steps = []
    state = fit(taught(), examples(range(8)), prompts(), HOLDING, lambda share, loss: losses.append(loss))
    return state, losses


def fit_conditions() -> tuple[dict[str, Tensor], Steps]:
    losses: Steps = []
    config = ConditionsConfig(steps=8, learning_rate=1e-2)
    tuned = tune(
        make_decoder(), examples(range(8)), prompts(), [1], config, HOLDING, lambda share, loss: losses.append(loss)
    )
    return {"conditions": tuned}, losses


def fit_head() -> tuple[dict[str, Tensor], Steps]:
    losses: Steps = []
    config = MaskHeadConfig(steps=8, hidden=8, batch_images=6, dropout=0.3)
    decoder = make_decoder().config
    state = fit_mask_head(
        decoder, examples(range(8)), prompts(), config, HOLDING, lambda share, loss: losses.append(loss)
    )
    return state, losses


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let decoders run out of memory where they learn from more images at once; gives the sizes that were tried."""

    taught()

    def only(most: int, *, in_backward: bool = False) -> list[int]:
        sizes: list[int] = []

        def limited(forward: Callable[..., Tensor], self: Any, taps: Any, *rest: Any) -> Tensor:
            logits = forward(self, taps, *rest)
            if not logits.requires_grad:  # it only looks
                return logits
            size = len(taps[0])
            sizes.append(size)
            if size <= most:
                return logits
            if not in_backward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none. Advice.")
            logits.register_hook(no_memory)
            return logits

        for module in (CLIPSegDecoder, MaskHead):
            forward = module.forward
            monkeypatch.setattr(module, "forward", lambda *given, forward=forward: limited(forward, *given))
        return sizes

    return only


def no_memory(gradient: Tensor) -> Tensor:
    return torch.empty(1 << 50)  # what really happens without a GPU


@pytest.mark.parametrize("learn", [fit_decoder, fit_conditions, fit_head])
@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (6, [6] * 8),
        (5, [6, *[3, 3] * 8]),
        (2, [6, 3, *[1] * 48]),
        (1, [6, 3, *[1] * 48]),
    ],
)
def test_a_fit_in_parts_learns_the_same(
    learn: Fit, in_backward: bool, most: int, sizes: list[int], room: Callable[..., list[int]]
) -> None:
    weights, losses = learn()
    tried = room(most, in_backward=in_backward)
    found, found_losses = learn()
    assert tried == sizes
    assert found.keys() == weights.keys()
    if most == 6:  # nothing was short
        assert found_losses == losses
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    # The order of additions differs, and so the last bits.
    assert found_losses == pytest.approx(losses, abs=1e-6)
    for name in weights:
        # A softmax over keys does not see what all of them share: that bias has a gradient of rounding errors alone,
        # which Adam makes as large as any other, and does nothing.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(found[name], weights[name], rtol=0, atol=2e-6)


def test_gradients_of_parts_sum_up_to_the_batchs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 4, 4, generator=generator).requires_grad_()
    target = (torch.rand(5, 3, 4, 4, generator=generator) > 0.5).float()
    target[0] = 0.0  # a part that shows nothing at all has no Dice
    target[3, :2] = 0.0
    config = FinetuneConfig(dice_weight=0.7, absent_weight=0.4)
    (whole,) = torch.autograd.grad(corrections_loss(logits, target, config), logits)
    parts = MicroBatches()
    for most in (None, 4, 2, 1):
        parts.most = most
        logits.grad = None
        asked: list[slice] = []

        def loss_of(part: slice, asked: list[slice] = asked) -> Tensor:
            asked.append(part)
            return corrections_loss(logits[part], target[part], config, of=target)

        loss = parts.backward(5, loss_of, lambda: None)
        assert [index for part in asked for index in range(part.start, part.stop)] == [0, 1, 2, 3, 4]
        assert loss == pytest.approx(float(corrections_loss(logits.detach(), target, config)), rel=1e-6)
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad, whole, rtol=1e-6, atol=1e-8)


def test_parts_before_the_one_that_had_no_room_do_not_count_twice() -> None:
    weights = torch.zeros(5, requires_grad=True)
    asked: list[slice] = []

    def loss_of(part: slice) -> Tensor:
        asked.append(part)
        if part == slice(3, 5):  # others have taken memory meanwhile
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (torch.arange(5.0)[part] * weights[part]).sum()

    def forget() -> None:
        weights.grad = None

    parts = MicroBatches()
    parts.most = 3
    parts.backward(5, loss_of, forget)
    assert asked == [slice(0, 3), slice(3, 5), *(slice(at, at + 1) for at in range(5))]
    assert weights.grad is not None
    assert weights.grad.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("learn", [fit_decoder, fit_conditions, fit_head])
def test_where_one_image_is_too_much_the_remedy_is_named(learn: Fit, room: Callable[..., list[int]]) -> None:
    sizes = room(0)
    with pytest.raises(MemoryShortError, match=r"even for one image at a time \(CUDA.* has none\)") as raised:
        learn()
    assert "VLM_GPU_MEMORY_FRACTION" in str(raised.value)
    assert "encoded_views" in str(raised.value)
    assert "VLM_CHECKPOINT" in str(raised.value)
    assert sizes == [6, 3, 1]


def test_other_errors_of_a_step_are_left_as_they_are() -> None:
    def broken(part: slice) -> Tensor:
        raise RuntimeError("The size of tensor a (3) must match")

    with pytest.raises(RuntimeError, match="must match"):
        MicroBatches().backward(6, broken, lambda: None)


def test_a_cpu_without_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"))
    assert not is_out_of_memory(RuntimeError("can't"))


# Whole trainings --------------------------------------------------------------------------------------------
@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path) -> Settings:
    return Settings(checkpoint=str(checkpoint), data_dir=tmp_path / "data", device="cpu", label_studio_url=None)


def test_a_training_goes_on_with_fewer_images_at_once_and_says_so_once(
    settings: Settings, room: Callable[..., list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = room(3)
    with serve(corrected_project(32)) as label_studio, caplog.at_level(logging.WARNING):
        result = train(label_studio, settings, WHOLE)
    assert result.outcome == "published", result.reason
    assert sizes.count(6) == 1
    assert set(sizes) == {6, 3}
    assert caplog.text.count("memory is short for 6 images at once: from here on 3") == 1


def test_an_image_that_cannot_be_encoded_for_want_of_memory_ends_in_the_same_words(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*args: object, **options: object) -> None:
        torch.empty(1 << 50)

    monkeypatch.setattr(Model, "encode_image", no_room)
    with serve(corrected_project(24)) as label_studio, pytest.raises(MemoryShortError, match="can't allocate memory"):
        train(label_studio, settings, WHOLE)
    assert VersionStore(settings.data_dir).numbers(7) == ()

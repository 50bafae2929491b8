"""Heads learned from features made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block

from tests.jobs.handmade import QUICK, examples, make_blocks, make_decoder, prompts, switched_example
from training_jobs.recipes.finetune_decoder import Example, FinetuneConfig, State
from training_jobs.recipes.fit_mask_head import MaskHeadConfig, fit, head_of
from training_jobs.recipes.micro_batches import MicroBatches

DECODER = make_decoder().config
CONFIG = MaskHeadConfig(steps=100, hidden=32, weight_decay=0.1)


def learn(some: list[Example], shared: FinetuneConfig = QUICK, parts: MicroBatches | None = None) -> State:
    return fit(DECODER, some, prompts(), CONFIG, shared, lambda share, loss: None, parts)


def ious(state: State, some: list[Example]) -> list[float]:
    """Mean IoU of each label where it is there."""
    head = head_of(DECODER, state, torch.device("cpu"))
    found: list[list[float]] = [[], []]
    for item in some:
        taps = [tap.float() for tap in item.views[0].taps]
        marked = head.on_grid(head(taps, item.views[0].grid_hw))[0].numpy() >= 0
        for label, target in enumerate(item.targets[0]):
            true = target >= 128
            if true.any():
                found[label].append(float((marked[label] & true).sum() / (marked[label] | true).sum()))
    return [float(np.mean(values)) for values in found]


def test_labels_are_learned_from_the_features_alone() -> None:
    unseen = examples(range(100, 130))
    assert min(ious(learn(examples(range(48))), unseen)) > 0.7
    shuffled = [
        replace(item, targets=other.targets)
        for item, other in zip(examples(range(48)), examples(range(50, 98)), strict=True)
    ]
    assert max(ious(learn(shuffled), unseen)) < 0.4


def test_the_order_changes_nothing_and_the_seed_does() -> None:
    some = examples(range(12))
    first, again = learn(some), learn(some[::-1])
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    other = learn(some, QUICK.model_copy(update={"seed": 1}))
    assert not torch.equal(first["reduce.weight"], other["reduce.weight"])


def test_what_images_do_not_speak_about_is_not_taken_for_absent() -> None:
    """Where only some images speak about the second label, it is learned from those as if there were no others."""
    silent = [replace(item, labels=(0,), targets=tuple(t[:1] for t in item.targets)) for item in examples(range(24))]
    speaking = examples(range(50, 58))
    found = ious(learn([*silent, *speaking]), examples(range(100, 130)))
    told_absent = [
        replace(item, targets=tuple(np.concatenate([t[:1], 0 * t[1:]]) for t in item.targets))
        for item in examples(range(24))
    ]
    wrong = ious(learn([*told_absent, *speaking]), examples(range(100, 130)))
    assert found[1] > 0.5
    assert found[1] > wrong[1] + 0.1


def test_a_channel_that_never_changes_does_no_harm() -> None:
    some = examples(range(48))
    stuck = [
        replace(
            item,
            views=tuple(
                replace(view, taps=tuple(torch.cat([tap[..., :5], 0 * tap[..., 5:]], -1) for tap in view.taps))
                for view in item.views
            ),
        )
        for item in some
    ]
    state = learn(stuck)
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert min(ious(state, examples(range(100, 130)))) > 0.65


def test_progress_is_told_and_can_give_up() -> None:
    told: list[tuple[float, float]] = []
    fit(DECODER, examples(range(8)), prompts(), CONFIG, QUICK, lambda share, loss: told.append((share, loss)))
    assert [share for share, _ in told] == pytest.approx([step / 100 for step in range(1, 101)])
    assert np.mean([loss for _, loss in told[-5:]]) < 0.7 * told[0][1]

    class GaveUpError(Exception): ...

    def stop(share: float, loss: float) -> None:
        raise GaveUpError

    with pytest.raises(GaveUpError):
        fit(DECODER, examples(range(8)), prompts(), CONFIG, QUICK, stop)


def test_blocks_that_learn_tell_what_only_they_can_see() -> None:
    blocks = make_blocks()
    before = [value.clone() for value in blocks[0].state_dict().values()]
    some, unseen = ([switched_example(n, blocks) for n in numbers] for numbers in (range(48), range(200, 240)))

    def marked(used: tuple[Block, ...]) -> tuple[float, float, State]:
        """IoU where label 0 is, share of the images without it in which it is marked, and the weights."""
        state = fit(DECODER, some, prompts(), CONFIG, QUICK, lambda share, loss: None, blocks=used)
        head = head_of(DECODER, state, torch.device("cpu"), used)
        found: dict[bool, list[float]] = {True: [], False: []}
        for item in unseen:
            taps = [tap.float() for tap in item.views[0].taps]
            there = bool(item.targets[0][0].any())
            found[there].append(float((head(taps, item.views[0].grid_hw)[0, 0] >= 0).float().mean()))
        return float(np.mean(found[True])), float(np.mean(found[False])), state

    present, absent, state = marked(blocks)
    assert present > 0.9
    assert absent < 0.1
    blind_present, blind_absent, blind = marked(())
    assert blind_absent > 0.5 * blind_present
    assert not any(name.startswith("changes.") for name in blind)
    again = marked(blocks)[2]
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    assert all(torch.equal(old, new) for old, new in zip(before, blocks[0].state_dict().values(), strict=True))


def test_all_linear_maps_of_the_blocks_learn_at_the_rank_that_is_set() -> None:
    blocks = make_blocks()
    some = [switched_example(n, blocks) for n in range(12)]
    config = CONFIG.model_copy(update={"steps": 3, "lora_rank": 2})
    state = fit(DECODER, some, prompts(), config, QUICK, lambda share, loss: None, blocks=blocks)
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        down, up = (state[f"changes.0.{name}.{part}"] for part in "AB")
        assert down.shape[0] == up.shape[1] == 2
        assert up.any(), name

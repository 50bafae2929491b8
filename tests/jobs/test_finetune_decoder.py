"""The decoder's recipe on features made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.jobs.handmade import QUICK, examples, make_decoder, prompts
from training_jobs.recipes.finetune_decoder import FinetuneConfig, corrections_loss, fit, interpolate, quality
from vlm_core.clipseg import CLIPSegDecoder


@pytest.fixture
def start() -> CLIPSegDecoder:
    return make_decoder()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_strong_pull_stays_near_the_start(start: CLIPSegDecoder) -> None:
    def moved(pull: float) -> float:
        config = QUICK.model_copy(update={"pull": pull})
        state = fit(start, examples(range(6)), prompts(), config, (40,), lambda share, loss: None)[40]
        return sum(float((state[name] - value).square().sum()) for name, value in start.state_dict().items())

    assert moved(1000.0) < 0.2 * moved(0.0)


def test_with_no_body_rate_film_alone_learns(start: CLIPSegDecoder) -> None:
    config = QUICK.model_copy(update={"body_rate": 0.0})
    state = fit(start, examples(range(6)), prompts(), config, (10,), lambda share, loss: None)[10]
    changed = {name for name, value in start.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {"film_mul.weight", "film_mul.bias", "film_add.weight", "film_add.bias"}


def test_what_was_marked_well_is_held_and_the_rest_learns(start: CLIPSegDecoder) -> None:
    taught = QUICK.model_copy(update={"body_rate": 0.0})
    # A start that knows label 0 and has never heard of label 1.
    only_first = [
        replace(item, labels=(0,), targets=tuple(t[:1] for t in item.targets)) for item in examples(range(16))
    ]
    state = fit(start, only_first, prompts(), QUICK, (60,), lambda share, loss: None)[60]
    start.load_state_dict(state)
    known = quality(start, examples(range(16)), prompts())
    assert known[0] > 0.6 > known[1]

    def film_moved(hold: float) -> list[float]:
        config = taught.model_copy(update={"hold": hold})
        decoder = make_decoder()
        decoder.load_state_dict(fit(start, examples(range(16)), prompts(), config, (60,), lambda share, loss: None)[60])
        rows = prompts().conditions
        moved = decoder.film_mul(rows) - start.film_mul(rows)
        return moved.norm(dim=-1).tolist()

    free, held = film_moved(0.0), film_moved(1000.0)
    assert held[0] < 0.2 * free[0]
    assert held[1] > held[0]


def test_quality_counts_what_is_marked_where_nothing_is(start: CLIPSegDecoder) -> None:
    for parameter in start.parameters():
        parameter.data.zero_()
    start.transposed_convolution.bias.data.fill_(1.0)  # marks everything everywhere
    some = examples(range(6))
    true = [sum(int((item.targets[0][label] >= 128).sum()) for item in some) for label in (0, 1)]
    area = sum(item.targets[0][0].size for item in some)
    assert quality(start, some, prompts()) == pytest.approx([count / area for count in true])
    start.transposed_convolution.bias.data.fill_(-1.0)  # marks nothing
    nowhere = [replace(item, targets=tuple(t * 0 for t in item.targets)) for item in some]
    assert quality(start, some, prompts()) == [0.0, 0.0]
    assert quality(start, nowhere, prompts()) == [1.0, 1.0]


def test_interpolation_ends_at_both_ends(start: CLIPSegDecoder) -> None:
    one, other = start.state_dict(), make_decoder(1).state_dict()
    assert same(interpolate(one, other, 1.0), other)
    half = interpolate(one, other, 0.5)
    assert all(torch.allclose(half[name], (one[name] + other[name]) / 2) for name in one)


def test_the_loss_by_hand() -> None:
    config = FinetuneConfig(dice_weight=0.0, absent_weight=0.5)
    logits = torch.zeros(1, 2, 2, 2)
    target = torch.zeros(1, 2, 2, 2)
    target[0, 0] = 1.0
    logits[0, 0] = 2.0
    logits[0, 1] = -1.0
    there, absent = np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))
    assert float(corrections_loss(logits, target, config)) == pytest.approx((there + 0.5 * absent) / 1.5, rel=1e-5)
    # Dice is for labels that are there; an image without any has cross entropy alone.
    weighted = config.model_copy(update={"dice_weight": 1.0})
    nothing = torch.zeros_like(target)
    assert float(corrections_loss(logits, nothing, weighted)) == pytest.approx(
        float(corrections_loss(logits, nothing, config))
    )
    assert float(corrections_loss(logits, target, weighted)) > float(corrections_loss(logits, target, config))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"learning_rate": 0}, {"interpolations": ()}, {"interpolations": (1.5,)}, {"stepz": 3}]
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FinetuneConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("images", "views"), [(1, 8), (24, 8), (60, 4), (240, 1), (5000, 1)])
def test_views_share_a_budget(images: int, views: int) -> None:
    assert FinetuneConfig().views(images) == views

"""The decoder's recipe on features made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.jobs.handmade import QUICK, examples, for_steps, make_decoder, prompts
from training_jobs.recipes.finetune_decoder import (
    FinetuneConfig,
    _Hold,
    corrections_loss,
    fit,
    interpolate,
    quality,
)
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.types import ImageFeatures


@pytest.fixture
def start() -> CLIPSegDecoder:
    return make_decoder()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_strong_pull_stays_near_the_start(start: CLIPSegDecoder) -> None:
    def moved(pull: float) -> float:
        config = QUICK.model_copy(update={"pull": pull})
        state = fit(start, examples(range(6)), prompts(), for_steps(config, 40), lambda share, loss: None)
        return sum(float((state[name] - value).square().sum()) for name, value in start.state_dict().items())

    assert moved(1000.0) < 0.2 * moved(0.0)


def test_with_no_body_rate_film_alone_learns(start: CLIPSegDecoder) -> None:
    config = QUICK.model_copy(update={"body_rate": 0.0})
    state = fit(start, examples(range(6)), prompts(), for_steps(config, 10), lambda share, loss: None)
    changed = {name for name, value in start.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {"film_mul.weight", "film_mul.bias", "film_add.weight", "film_add.bias"}


def test_answers_are_held_as_far_as_they_were_good(start: CLIPSegDecoder) -> None:
    # Label 0 was marked well, label 1 (two phrases) badly.
    hold = _Hold(start, prompts(), [0.9, 0.3], torch.device("cpu"))
    view = examples(range(1))[0].views[0]
    features = ImageFeatures(tuple(tap.float() for tap in view.taps), view.grid_hw)
    rows = torch.tensor([[0, 1, 2]])
    with torch.no_grad():
        logits = start(features.taps, prompts().conditions[rows], features.grid_hw)
    assert float(hold(features, rows, logits)) == 0.0
    moved = logits.clone()
    moved[0, 1:] += 5.0
    assert float(hold(features, rows, moved)) == 0.0  # free to learn
    moved[0, 0] = 50.0  # certain everywhere
    expected = float((1 - logits[0, 0].sigmoid()).square().mean()) / 3
    assert float(hold(features, rows, moved)) == pytest.approx(expected, rel=1e-4)
    half = _Hold(start, prompts(), [0.65, 0.3], torch.device("cpu"))  # half way between bad and good
    assert float(half(features, rows, moved)) == pytest.approx(expected / 2, rel=1e-4)


def test_what_is_known_moves_less_with_the_hold(start: CLIPSegDecoder) -> None:
    only_first = [
        replace(item, labels=(0,), targets=tuple(t[:1] for t in item.targets)) for item in examples(range(16))
    ]
    start.load_state_dict(fit(start, only_first, prompts(), for_steps(QUICK, 30), lambda share, loss: None))
    looks: list[None] = []
    known = quality(start, examples(range(16)), prompts(), lambda: looks.append(None))
    assert len(looks) == 16  # a training gives way there too
    assert known[0] > 0.6 > known[1]

    def moved(hold: float) -> float:
        """How much the probabilities of the known phrase change on other images of the same kind."""
        config = for_steps(QUICK.model_copy(update={"hold": hold, "learning_rate": 5e-3}), 30)
        decoder = make_decoder()
        decoder.load_state_dict(fit(start, examples(range(16)), prompts(), config, lambda share, loss: None))
        changes = []
        for item in examples(range(100, 110)):
            view = item.views[0]
            taps = [tap.float() for tap in view.taps]
            with torch.no_grad():
                one, other = (each(taps, prompts().conditions[None, :1], view.grid_hw)[0] for each in (start, decoder))
            changes.append(float((one.sigmoid() - other.sigmoid()).square().mean()))
        return float(np.mean(changes))

    assert moved(1000.0) < 0.5 * moved(0.0)


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

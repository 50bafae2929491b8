"""The recipe on features made by hand: one channel of a token says what is there."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from training_jobs.recipes.finetune_decoder import (
    Example,
    FinetuneConfig,
    PromptTable,
    choose,
    corrections_loss,
    fit,
    interpolate,
    quality,
    score,
    train,
)
from vlm_core.clipseg import CLIPSegDecoder, DecoderConfig
from vlm_core.types import ImageFeatures

GRID = (4, 4)
QUICK = FinetuneConfig(steps=60, learning_rate=2e-2, body_rate=1.0, hold=0.0, pull=0.0, looks=2, threads=1)


def quiet(phase: str, share: float, loss: float) -> None: ...


def make_decoder(seed: int = 0) -> CLIPSegDecoder:
    torch.manual_seed(seed)
    config = DecoderConfig(
        taps=(0, 1), tap_width=6, condition_dim=5, reduce_dim=8, num_heads=2, mlp_width=16, head_kernels=(2,)
    )
    return CLIPSegDecoder(config).eval()


@pytest.fixture
def start() -> CLIPSegDecoder:
    return make_decoder()


def prompts() -> PromptTable:
    # Two labels; the second has two phrases.
    return PromptTable(torch.eye(5)[:3] * 2, ((0,), (1, 2)))


def example(number: int, *, views: int = 2) -> Example:
    """Label 0 where channel 0 is set, label 1 where channel 1 is; label 1 is absent from every third image."""
    generator = np.random.default_rng(number)
    seen, targets = [], []
    for _ in range(views):
        cells = np.zeros((2, *GRID), dtype=bool)
        cells[0, generator.integers(4), generator.integers(4)] = True
        if number % 3:
            cells[1, :, generator.integers(4)] = True
            cells[1] &= ~cells[0]
        tokens = generator.normal(0, 0.3, size=(1, 17, 6)).astype(np.float32)
        tokens[0, 1:, 0] += 2 * cells[0].reshape(-1)
        tokens[0, 1:, 1] += 2 * cells[1].reshape(-1)
        tap = torch.from_numpy(tokens).half()
        seen.append(ImageFeatures((tap, tap), GRID))
        targets.append(np.kron(cells, np.ones((1, 2, 2), dtype=np.uint8)).astype(np.uint8) * 255)
    return Example(hashlib.sha256(str(number).encode()).hexdigest(), tuple(seen), (0, 1), tuple(targets))


def examples(numbers: range) -> list[Example]:
    return [example(number) for number in numbers]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_learns_what_carries_over_to_unseen_images(start: CLIPSegDecoder) -> None:
    state, choice = train(start, examples(range(16)), prompts(), QUICK, quiet)
    learned = make_decoder()
    learned.load_state_dict(state)
    unseen = examples(range(100, 120))
    before, after = (score(decoder, unseen, prompts(), QUICK) for decoder in (start, learned))
    assert after > 0.6 > 0.3 > before
    assert choice.score is not None
    assert choice.start_score is not None
    assert choice.score > choice.start_score


def test_the_start_is_not_changed(start: CLIPSegDecoder) -> None:
    before = copy.deepcopy(start.state_dict())
    train(start, examples(range(6)), prompts(), QUICK, quiet)
    assert same(before, start.state_dict())
    assert not any(parameter.grad is not None for parameter in start.parameters())


def test_the_result_depends_on_the_seed_and_not_on_the_order(start: CLIPSegDecoder) -> None:
    some = examples(range(14))
    first, chosen = train(start, some, prompts(), QUICK, quiet)
    again, chosen_again = train(start, some[::-1], prompts(), QUICK, quiet)
    assert same(first, again)
    assert chosen == chosen_again
    other, _ = train(start, some, prompts(), QUICK.model_copy(update={"seed": 1}), quiet)
    assert not same(first, other)


def test_nothing_is_chosen_from_few_images(start: CLIPSegDecoder) -> None:
    phases: list[str] = []
    _, choice = train(start, examples(range(11)), prompts(), QUICK, lambda phase, share, loss: phases.append(phase))
    assert set(phases) == {"training"}
    assert (choice.steps, choice.interpolation, choice.score) == (60, 1.0, None)
    choice = choose(start, examples(range(12)), prompts(), QUICK, quiet)
    assert choice.steps in (30, 60)
    assert choice.interpolation in (0.5, 0.75, 1.0)


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


def test_giving_up_stops_the_training(start: CLIPSegDecoder) -> None:
    class GaveUpError(Exception): ...

    def tick(phase: str, share: float, loss: float) -> None:
        if share > 0.1:
            raise GaveUpError

    threads = torch.get_num_threads()
    with pytest.raises(GaveUpError):
        train(start, examples(range(4)), prompts(), QUICK, tick)
    assert torch.get_num_threads() == threads


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


def test_absent_labels_that_are_marked_cost(start: CLIPSegDecoder) -> None:
    class Fixed(CLIPSegDecoder):
        value = -1.0

        def forward(self, taps: object, conditions: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
            return torch.full((1, conditions.shape[1], 8, 8), self.value)

    decoder = Fixed(start.config)
    absent = [example(0), example(3)]  # without label 1
    assert score(decoder, absent, prompts(), QUICK) == 0.0
    decoder.value = 1.0  # marks everything: some IoU for label 0, and label 1 wrongly
    everything = score(decoder, absent, prompts(), QUICK)
    assert everything == pytest.approx(1 / 16 - QUICK.absent_cost)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"learning_rate": 0}, {"interpolations": ()}, {"interpolations": (1.5,)}, {"stepz": 3}]
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FinetuneConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("images", "views"), [(1, 8), (24, 8), (60, 4), (240, 1), (5000, 1)])
def test_views_share_a_budget(images: int, views: int) -> None:
    assert FinetuneConfig().views(images) == views


def test_nothing_to_train_on_is_an_error(start: CLIPSegDecoder) -> None:
    with pytest.raises(ValueError, match="at least one corrected image"):
        train(start, [], prompts(), QUICK, quiet)

"""Heads for tags: the optimum of the stated loss, and laws of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training_jobs.recipes.fit_tags import TagExample, entropy, fit
from vlm_core.tag_head import TagHead

LABELS = ("a", "b", "c")


def start(*, multiple: bool = False, seed: int = 0, width: int = 6) -> TagHead:
    generator = torch.Generator().manual_seed(seed)
    return TagHead(LABELS, torch.randn(3, width, generator=generator), torch.zeros(3), 10.0, -1.0, multiple)


def examples(count: int, *, several: bool = False, seed: int = 1, width: int = 6) -> list[TagExample]:
    """Images in three clouds, one a label; with `several` some have the next label too."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        vector = generator.normal(size=width)
        vector[number % 3] += 2.0
        chosen = {LABELS[number % 3]} | ({LABELS[(number + 1) % 3]} if several and number % 2 else set())
        embedding = (vector / np.linalg.norm(vector)).astype(np.float32)
        found.append(TagExample(f"{number:03d}", embedding, frozenset(chosen), frozenset(LABELS)))
    return found


@pytest.mark.parametrize("multiple", [False, True])
def test_the_optimum_is_that_of_torch(multiple: bool) -> None:
    """The same loss, written with torch's own, minimised by its optimiser."""
    given, pull = examples(40, several=multiple), 0.5
    first = start(multiple=multiple)
    head = fit(given, first, pull)
    x = torch.from_numpy(np.stack([one.embedding for one in given])).double()
    target = torch.tensor([[label in one.chosen for label in LABELS] for one in given]).double()
    spread = (x - x.mean(0)).square().sum(1).mean().sqrt()
    weight, bias = first.weight.double().clone().requires_grad_(), torch.zeros(3).double().requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = x @ weight.T + bias
        if multiple:
            value = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        else:
            value = torch.nn.functional.cross_entropy(logits, target.argmax(1), reduction="sum")
        moved = (weight - first.weight.double()) * spread
        shift = bias + moved @ x.mean(0) / spread  # the intercept at the mean image
        value = value + pull / 2 * moved.square().sum() + 1e-3 / 2 * shift.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    torch.testing.assert_close(head.weight.double(), weight.detach(), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(head.bias.double(), bias.detach(), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("multiple", [False, True])
def test_a_strong_pull_leaves_the_weights_and_a_weak_one_learns_the_images(multiple: bool) -> None:
    given, first = examples(30, several=multiple), start(multiple=multiple)
    torch.testing.assert_close(fit(given, first, 1e9).weight, first.weight, atol=1e-4, rtol=0)
    surprises = [float(np.mean(entropy(fit(given, first, pull), given))) for pull in (100.0, 1.0, 0.01)]
    assert surprises == sorted(surprises, reverse=True)
    assert surprises[-1] < 0.7 * surprises[0]


@pytest.mark.parametrize("multiple", [False, True])
def test_the_order_of_images_and_of_labels_changes_nothing(multiple: bool) -> None:
    given, first = examples(20, several=multiple), start(multiple=multiple)
    one, other = fit(given, first, 0.3), fit(given[::-1], first, 0.3)
    torch.testing.assert_close(one.weight, other.weight, atol=1e-3, rtol=1e-3)
    turned = TagHead(LABELS[::-1], first.weight.flip(0), first.bias.flip(0), 10.0, -1.0, multiple)
    torch.testing.assert_close(fit(given, turned, 0.3).weight.flip(0), one.weight, atol=1e-3, rtol=1e-3)


def test_a_label_that_could_not_be_chosen_is_not_learned_to_be_absent() -> None:
    """The same images, of which half were annotated before "c" was there."""
    given, first = examples(30), start()
    before = [
        TagExample(one.image, one.embedding, one.chosen, frozenset({"a", "b"}) if number % 2 else one.about)
        for number, one in enumerate(given)
        if "c" not in one.chosen or not number % 2
    ]
    said_absent = [TagExample(one.image, one.embedding, one.chosen, frozenset(LABELS)) for one in before]
    shown = torch.from_numpy(np.stack([one.embedding for one in given if "c" in one.chosen]))
    fair, unfair = (fit(found, first, 0.3) for found in (before, said_absent))
    mean = [torch.stack([head.logits(row).softmax(0)[2] for row in shown]).mean() for head in (fair, unfair)]
    assert mean[0] > mean[1] + 0.02


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 and 1"):
        fit([], start(), 1)
    with pytest.raises(ValueError, match="got 3 and 0"):
        fit(examples(3), start(), 0)

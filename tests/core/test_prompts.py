"""Prompts: what is combined how, and what may not change for a plain phrase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import vlm_core
from tests.core.factories import make_clipseg_directory
from vlm_core import InputError, Prompt
from vlm_core.masks import upsample_logits
from vlm_core.model import Model
from vlm_core.prompts import CLIPSEG_TEMPLATES, EXCLUDED, PreparedPrompts, prepare_prompts
from vlm_core.visual_prompts import Exemplar


def picture(seed: int, size: tuple[int, int] = (70, 50)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


BOX = (10, 5, 40, 30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_clipseg_directory(directory, mask_size=64, image_size=32)
    return vlm_core.load(directory, device="cpu")


def decoded(model: Model, conditions: Tensor) -> Tensor:
    grid = model.decode(model.encode_image(picture(0)), conditions).logits
    return upsample_logits(grid, (50, 70))


def test_a_phrase_gets_the_logits_that_it_always_got(model: Model) -> None:
    phrases = ["left player", "a dog", "x"]
    answer = model.segment(picture(0), phrases)
    assert torch.equal(answer.logits, decoded(model, model.encode_text(phrases)))
    assert answer.prompts == tuple(phrases)
    assert torch.equal(model.segment(picture(0), [Prompt([p]) for p in phrases]).logits, answer.logits)


def test_other_words_are_combined_by_the_best_of_each_pixel_or_asked_as_one(model: Model) -> None:
    a, b = decoded(model, model.encode_text(["left", "right"]))
    answer = model.segment(picture(0), [Prompt(["left", "right"]), "right", Prompt(["left", "right"], combine="mean")])
    torch.testing.assert_close(answer.logits[0], torch.maximum(a, b), atol=1e-5, rtol=0)
    torch.testing.assert_close(answer.logits[1], b, atol=1e-5, rtol=0)
    middle = model.encode_text(["left", "right"]).mean(0, keepdim=True)
    torch.testing.assert_close(answer.logits[2], decoded(model, middle)[0], atol=1e-5, rtol=0)
    assert answer.prompts == ("left | right", "right", "left | right")


def test_templates_are_averaged_before_the_decoder(model: Model) -> None:
    templates = ("a photo of a {}.", "{} {{x}}")
    answer = model.segment(picture(0), [Prompt(["dog"], templates=templates)]).logits
    middle = model.encode_text(["a photo of a dog.", "dog {{x}}"]).mean(0, keepdim=True)
    torch.testing.assert_close(answer, decoded(model, middle), atol=1e-5, rtol=0)


@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_what_is_not_meant_is_left_out_at_every_threshold(seed: int, threshold: float) -> None:
    logits = 3 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed))
    plan = PreparedPrompts(("a", "b"), torch.zeros(4, 2), ((0, 1), (3,)), ((2, 3), ()))
    answer = plan.answer(logits, (5, 6))
    wanted, unwanted = logits[:2].amax(0), logits[2:].amax(0)
    expected = (wanted.sigmoid() >= threshold) & (wanted > unwanted)
    assert torch.equal(answer[0].sigmoid() >= threshold, expected)
    assert torch.equal(answer[0][wanted > unwanted], wanted[wanted > unwanted])
    assert torch.equal(answer[1], logits[3])
    assert bool(answer.isfinite().all())
    assert float(answer.min()) in (EXCLUDED, float(torch.minimum(wanted, logits[3]).min()))


def test_not_texts_of_a_real_model(model: Model) -> None:
    yes, no = decoded(model, model.encode_text(["left player", "a dog"]))
    assert 0.05 < float((yes > no).float().mean()) < 0.95  # otherwise the test would say nothing
    (answer,) = model.segment(picture(0), [Prompt(["left player"], not_texts=["a dog"])]).logits
    clear = (yes - no).abs() > 1e-4
    assert torch.equal((answer > EXCLUDED)[clear], (yes > no)[clear])


def test_text_and_exemplars_are_mixed_by_weight(model: Model) -> None:
    shown: list[Exemplar] = [(picture(1), BOX), (picture(2), BOX)]
    text, visual = model.encode_text(["dog"]), model.encode_exemplars(shown).mean(0, keepdim=True)
    assert float((text - visual).abs().mean()) > 0.1
    for weight in (0.0, 0.3, 1.0):
        answer = model.segment(picture(0), [Prompt(["dog"], exemplars=shown, text_weight=weight)]).logits
        torch.testing.assert_close(answer, decoded(model, weight * text + (1 - weight) * visual), atol=1e-5, rtol=0)
    alone = model.segment(picture(0), exemplars=shown)
    torch.testing.assert_close(alone.logits, decoded(model, visual), atol=1e-5, rtol=0)
    assert alone.prompts == ("",)
    both = model.segment(picture(0), ["dog"], exemplars=shown).logits
    torch.testing.assert_close(both, decoded(model, torch.cat([text, visual])), atol=1e-5, rtol=0)


def test_permuted_prompts_permute_the_answer(model: Model) -> None:
    prompts = ["x", Prompt(["a", "b"], not_texts=["c"]), Prompt(exemplars=[(picture(1), BOX)])]
    forth, back = (model.segment(picture(0), some).logits for some in (prompts, prompts[::-1]))
    clear = forth != EXCLUDED
    torch.testing.assert_close(forth[clear], back.flip(0)[clear], atol=1e-5, rtol=0)


def test_all_texts_are_encoded_in_one_call_and_rows_are_not_confused() -> None:
    calls: list[list[str]] = []

    def encode(texts: Sequence[str]) -> Tensor:
        calls.append(list(texts))
        return torch.tensor([[float(len(text))] for text in texts])

    def pictures(shown: Sequence[Exemplar]) -> Tensor:
        return torch.tensor([[100.0 * image.width] for image, _ in shown])

    plan = prepare_prompts(
        [
            Prompt(["a", "bb"], not_texts=["ccc"], templates=["{}", "1{}1"]),
            "dddd",
            Prompt(["eeeee"], exemplars=[(picture(0, (1, 1)), (0, 0, 1, 1))], text_weight=0.25),
            Prompt(exemplars=[(picture(0, (width, 1)), (0, 0, 1, 1)) for width in (2, 4)]),
        ],
        encode,
        pictures,
    )
    assert calls == [["a", "1a1", "bb", "1bb1", "ccc", "1ccc1", "dddd", "eeeee"]]
    assert plan.conditions[:, 0].tolist() == [2, 3, 4, 4, 0.25 * 5 + 0.75 * 100, 300]
    assert plan.wanted == ((0, 1), (3,), (4,), (5,))
    assert plan.unwanted == ((2,), (), (), ())


def test_the_nine_templates_are_nine_and_hold_the_phrase_once() -> None:
    assert len(set(CLIPSEG_TEMPLATES)) == 9
    assert Prompt(["x"], templates=CLIPSEG_TEMPLATES).templates == CLIPSEG_TEMPLATES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a text or an exemplar"),
        ({"not_texts": ["x"]}, "cannot be asked for alone"),
        ({"texts": "dog"}, r"write \['dog'\]"),
        ({"texts": ["dog", " "]}, "text 2 of 2"),
        ({"texts": ["dog"], "text_weight": 1.5}, r"text_weight 1\.5"),
        ({"texts": ["dog"], "templates": ["a photo"]}, "needs one {} for the words"),
        ({"texts": ["dog"], "templates": "a {}"}, "write"),
        ({"texts": ["dog"], "combine": "sum"}, "'sum'"),
        ({"exemplars": [picture(0)]}, "exemplar 1 must be a pair"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prompt(**arguments)  # type: ignore[arg-type]  # mistakes on purpose


@pytest.mark.parametrize("prompts", [[], "dog", ["dog", ""], [3]])
def test_lists_of_prompts_that_cannot_be_used_are_named(model: Model, prompts: list[str]) -> None:
    with pytest.raises(InputError, match="prompt"):
        model.segment(picture(0), prompts)

"""What one can ask for: phrases, other words for them, what is not meant, pictures of it, and mixes of these.

A prompt becomes one condition or several, each of which the decoder answers alone; their answers are combined pixel
by pixel. With `wanted` the largest logit over a prompt's own conditions and `unwanted` the largest over those of
`not_texts`, the prompt's logit is ::

    wanted      where wanted > unwanted
    EXCLUDED    elsewhere

so that at every threshold t > 0 a pixel belongs to the prompt exactly where its probability reaches t and the
evidence for the prompt exceeds that for what is not meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_core.errors import InputError
from vlm_core.masks import combine_alternatives, upsample_logits
from vlm_core.templates import check_templates, fill_template
from vlm_core.types import check_phrases
from vlm_core.visual_prompts import Exemplar, check_exemplars, mix_conditions

CLIPSEG_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a photograph of a {}.",
    "an image of a {}.",
    "{}.",
    "a cropped photo of a {}.",
    "a good photo of a {}.",
    "a photo of one {}.",
    "a bad photo of a {}.",
    "a photo of the {}.",
)
"""The nine that CLIPSeg's published weights were trained with, one of them drawn for each phrase."""

EXCLUDED = -1e4
"""The logit of a pixel that belongs to what is not meant: its probability is 0 in float32, and it stays finite."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One thing to look for.

    Attributes:
        texts: phrases, none blank; several mean the same thing in other words.
        not_texts: phrases for what must not be included; see the module for the exact rule.
        exemplars: (picture, mask or `xyxy` box) pairs that show the thing; their conditions are averaged.
        text_weight: with texts and exemplars, each text's condition is mixed with the exemplars' mean: so much of
            the text, 0..1, the rest of the pictures. The paper trained with mixes of both.
        templates: sentences with one `{}` where a phrase is put, for `texts` and `not_texts`; the conditions of a
            phrase in several are averaged.
        combine: "max" asks for each text and takes the best answer of each pixel; "mean" asks once, for the mean of
            their conditions, which suits words that mean nearly the same.

    Raises:
        InputError: neither texts nor exemplars, or a value that cannot be used.
    """

    texts: Sequence[str] = ()
    not_texts: Sequence[str] = ()
    exemplars: Sequence[Exemplar] = ()
    text_weight: float = 0.5
    templates: Sequence[str] = ("{}",)
    combine: Literal["max", "mean"] = "max"

    def __post_init__(self) -> None:
        # Any sequence is taken; what is kept is a tuple, which cannot be changed.
        for name in ("texts", "not_texts"):
            phrases = getattr(self, name)
            object.__setattr__(self, name, check_phrases(phrases, name.removesuffix("s")) if len(phrases) else ())
        object.__setattr__(self, "exemplars", check_exemplars(self.exemplars))
        if isinstance(self.templates, str):
            raise InputError(f"templates must be a sequence, got one string: write [{self.templates!r}]")
        object.__setattr__(self, "templates", check_templates(self.templates))
        if not self.texts and not self.exemplars:
            raise InputError("a prompt needs a text or an exemplar: what is not meant cannot be asked for alone")
        if not 0 <= self.text_weight <= 1:
            raise InputError(f"text_weight {self.text_weight} must lie between 0 (exemplars alone) and 1 (text alone)")
        if self.combine not in ("max", "mean"):
            raise InputError(f'combine {self.combine!r} must be "max" or "mean"')

    @property
    def name(self) -> str:
        """The texts, joined by `|`; empty for a prompt of exemplars alone."""
        return " | ".join(self.texts)


def named_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Templates as a command line gives them: "clipseg" stands for CLIPSeg's nine."""
    return check_templates([t for name in templates for t in (CLIPSEG_TEMPLATES if name == "clipseg" else (name,))])


@dataclass(frozen=True, slots=True)
class PreparedPrompts:
    """P prompts as C >= P conditions, and how the answers to these combine.

    Attributes:
        names: P, as `Prompt.name`.
        conditions: (C, E), projected and **not** normalised, for `Model.decode`.
        wanted: for each prompt the rows that speak for it, at least one.
        unwanted: for each prompt the rows that speak against it.
    """

    names: tuple[str, ...]
    conditions: Tensor
    wanted: tuple[tuple[int, ...], ...]
    unwanted: tuple[tuple[int, ...], ...]

    def answer(self, logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """All answers at the image's size: (C, h, w) on the decoder's grid -> (P, H, W), float32."""
        if len(self.wanted) == len(logits):  # every prompt is one condition
            return upsample_logits(logits, size_hw)
        out = torch.empty((len(self.names), *size_hw), dtype=torch.float32)
        for index in range(len(self.names)):
            out[index] = self.answer_one(index, logits, size_hw)
        return out

    def answer_one(self, index: int, logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """One prompt's answer, (H, W): all at once may not fit into the memory for a large photograph.

        Every condition's logits are upsampled before they are combined, so that the edges between what is meant and
        what is not are as fine as those of masks.
        """
        wanted, unwanted = self.wanted[index], self.unwanted[index]
        best = _largest(upsample_logits(logits[list(wanted)], size_hw))
        if not unwanted:
            return best
        against = _largest(upsample_logits(logits[list(unwanted)], size_hw))
        return torch.where(best > against, best, EXCLUDED)


def prepare_prompts(
    prompts: Sequence[str | Prompt],
    encode_text: Callable[[Sequence[str]], Tensor],
    encode_exemplars: Callable[[Sequence[Exemplar]], Tensor],
) -> PreparedPrompts:
    """Turn prompts into conditions.

    Args:
        prompts: P >= 1; a string is a prompt of one text.
        encode_text: N phrases -> (N, E), projected and not normalised; called at most once.
        encode_exemplars: N exemplars -> (N, E), likewise.

    Raises:
        InputError: no prompt, a blank one, or something that is neither a string nor a `Prompt`.
    """
    asked = as_prompts(prompts)
    if not asked:
        raise InputError("at least one prompt is needed")
    phrases = [
        fill_template(template, text)
        for prompt in asked
        for text in (*prompt.texts, *prompt.not_texts)
        for template in prompt.templates
    ]
    texts = iter(encode_text(phrases)) if phrases else iter(())
    shown = [exemplar for prompt in asked for exemplar in prompt.exemplars]
    pictures = iter(encode_exemplars(shown)) if shown else iter(())

    def mean(rows: Sequence[Tensor]) -> Tensor:
        return rows[0] if len(rows) == 1 else torch.stack(list(rows)).float().mean(0).to(rows[0].dtype)

    conditions: list[Tensor] = []
    wanted, unwanted = [], []
    for prompt in asked:
        own, others = (
            [mean([next(texts) for _ in prompt.templates]) for _ in group] for group in (prompt.texts, prompt.not_texts)
        )
        if own and prompt.combine == "mean":
            own = [mean(own)]
        if prompt.exemplars:
            visual = mean([next(pictures) for _ in prompt.exemplars])
            own = [mix_conditions(text, visual, prompt.text_weight) for text in own] or [visual]
        first, second = len(conditions), len(conditions) + len(own)
        conditions += [*own, *others]
        wanted.append(tuple(range(first, second)))
        unwanted.append(tuple(range(second, len(conditions))))
    names = tuple(prompt.name for prompt in asked)
    return PreparedPrompts(names, torch.stack(conditions), tuple(wanted), tuple(unwanted))


def as_prompts(prompts: Sequence[str | Prompt]) -> tuple[Prompt, ...]:
    """Any number of prompts, each string as a `Prompt` of one text; InputError where one cannot be used."""
    if isinstance(prompts, str):
        raise InputError(
            f"prompts must be a sequence of strings or Prompts, got the one string {prompts!r}: write [{prompts!r}]"
        )
    out = tuple(prompts)
    for number, prompt in enumerate(out, start=1):
        if not isinstance(prompt, Prompt) and not (isinstance(prompt, str) and prompt.strip()):
            raise InputError(f"prompt {number} of {len(out)} must be a non-blank string or a Prompt, got {prompt!r}")
    return tuple(prompt if isinstance(prompt, Prompt) else Prompt((prompt,)) for prompt in out)


def _largest(logits: Tensor) -> Tensor:
    """(C, H, W) -> (H, W); the sigmoid grows with its argument, so the largest logit has the largest probability."""
    return combine_alternatives(logits, [range(len(logits))])[0]

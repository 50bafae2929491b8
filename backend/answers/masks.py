"""Labels -> where they are: each question is decoded once, however many controls ask it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backend import decoding
from backend.answers.view import ImageView
from backend.decoding import LabelMask, Logits
from backend.label_studio.config import ControlPlan, LabelPrompt
from backend.versions import effective_threshold

if TYPE_CHECKING:
    from vlm_core.runs import RunMask
    from vlm_core.tiles import Tile

_MOST_GRID_BYTES = 256 * 1024 * 1024
"""Of the grids of windows, which are finer than the model's: labels are answered some at a time."""


@dataclass(frozen=True)
class MaskQuestion:
    """What decides where a label is.

    Attributes:
        wanted: phrases for it, one or more.
        unwanted: phrases for what must not be included.
        threshold, temperature, min_area_px, min_part_score: as for `backend.decoding.decode_label`.
        tile: as for `vlm_core.Model.segment`.
        within: the part of the image that is looked at; None: all of it.
    """

    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]
    threshold: float
    temperature: float
    min_area_px: int
    min_part_score: float
    tile: Tile
    within: RunMask | None = None

    @classmethod
    def of(cls, label: LabelPrompt, control: ControlPlan, view: ImageView) -> MaskQuestion:
        """What a control asks about a label: its own settings, else those of the project's version."""
        version = view.request.version
        return cls(
            wanted=label.prompts,
            unwanted=label.not_prompts,
            threshold=effective_threshold(label.label, control.threshold, version.cuts.thresholds),
            temperature=version.cuts.temperatures.get(label.label, 1.0),
            min_area_px=decoding.least_area_px(control.min_area, view.size_hw),
            min_part_score=version.cuts.part_scores.get(label.label, 0.0),
            tile=control.tile,
        )

    @property
    def phrases(self) -> tuple[str, ...]:
        """All that is asked."""
        return self.wanted + self.unwanted


def find_masks(
    questions: Iterable[MaskQuestion], view: ImageView, with_peaks: Iterable[MaskQuestion] = ()
) -> dict[MaskQuestion, LabelMask]:
    """Answer questions about one image; all share one encoding of it, and one of its windows.

    Args:
        questions: any number, repeats too.
        view: of the image.
        with_peaks: those of them for which the most certain pixels are wanted.

    Raises:
        TaskError: the time is up.
        VLMError: a tile that cannot be used, or as the model raises it.
    """
    asked, peaks = list(dict.fromkeys(questions)), set(with_peaks)
    found: dict[MaskQuestion, LabelMask] = {}
    for tile in dict.fromkeys(question.tile for question in asked):
        for some, grids in _grids([question for question in asked if question.tile == tile], tile, view):
            for question in some:
                view.request.check_time()  # hundreds of labels on a large image take their time
                with view.drawing:
                    found[question] = decoding.decode_label(
                        np.stack([grids[phrase] for phrase in question.wanted]),
                        view.size_hw,
                        threshold=question.threshold,
                        min_area_px=question.min_area_px,
                        min_part_score=question.min_part_score,
                        temperature=question.temperature,
                        unwanted=np.stack([grids[p] for p in question.unwanted]) if question.unwanted else None,
                        peaks=question in peaks,
                        within=question.within,
                    )
    return found


def _grids(
    questions: Sequence[MaskQuestion], tile: Tile, view: ImageView
) -> Iterator[tuple[Sequence[MaskQuestion], dict[str, Logits]]]:
    """Questions of one tile with the logits of their phrases, as many at a time as there is memory for."""
    from vlm_core.tiles import choose_windows

    model = view.request.model
    levels = choose_windows(view.size_hw, model.mask_input_hw, tile)
    if not levels:
        yield questions, view.grids(_phrases(questions))
        return
    finest = levels[-1].grid_hw(model.mask_input_hw)  # an answer has no more cells than its input has pixels
    most = max(1, _MOST_GRID_BYTES // (4 * finest[0] * finest[1]))
    some: list[MaskQuestion] = []
    for question in questions:
        if some and len(_phrases([*some, question])) > most:
            yield some, view.windows_grids(_phrases(some), levels)
            some = []
        some.append(question)
    yield some, view.windows_grids(_phrases(some), levels)


def _phrases(questions: Iterable[MaskQuestion]) -> list[str]:
    """Every phrase once, in order."""
    return list(dict.fromkeys(phrase for question in questions for phrase in question.phrases))

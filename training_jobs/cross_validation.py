"""What images say of answers that were learned without them: cross-validation, by image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from training_jobs import split
from training_jobs.ahead import ahead
from training_jobs.recipes.calibrate import Calibration, Tally
from training_jobs.recipes.finetune_decoder import Example, PromptTable
from vlm_core.clipseg import CLIPSegDecoder
from vlm_core.mask_head import MaskHead

Told = dict[int, list[list[Tally]]]
"""Per label and fold what images say that the fold's model has not learned from."""

Answer = tuple[int, NDArray[np.float32], NDArray[np.uint8]]
"""A label, its logits and its target, (h, w) each."""

_MOST_THREADS = 8
"""That count what images say."""


@dataclass(frozen=True)
class Fold:
    """Examples to learn from, and those that are asked afterwards."""

    fitted: list[Example]
    asked: list[Example]


def folds_of(examples: Sequence[Example], count: int) -> list[Fold]:
    """Parts of the examples, balanced over labels, each with all others to learn from."""
    left = [(example.image, example.present) for example in examples]
    found = []
    for number in range(count):
        out = split.choose_held_out(left, [], round(len(left) / (count - number)))
        left = [(image, labels) for image, labels in left if image not in out]
        fitted = [example for example in examples if example.image not in out]
        found.append(Fold(fitted, [example for example in examples if example.image in out]))
    return found


def joined(told: Sequence[Sequence[Tally]], without: Collection[int] = ()) -> list[Tally]:
    """What the images of all folds but some say."""
    return [tally for number, found in enumerate(told) if number not in without for tally in found]


def absent_marked(cuts: Mapping[int, Calibration], cases: Mapping[int, int]) -> float:
    """Share of all cases without a label in which it is marked."""
    return sum((cut.marked or 0.0) * cases[label] for label, cut in cuts.items()) / max(1, sum(cases.values()))


def mean_iou(cuts: Mapping[int, Calibration]) -> float:
    """Mean over labels of how well they are marked where they are."""
    return float(np.mean([cut.iou for cut in cuts.values() if cut.iou is not None] or [0.0]))


@torch.inference_mode()
def answers_of_decoder(
    decoder: CLIPSegDecoder, example: Example, prompts: PromptTable, labels: set[int]
) -> Iterator[Answer]:
    """What a decoder says of an example's labels, of its image as it is."""
    device = next(decoder.parameters()).device
    pairs = zip(example.labels, example.targets[0], strict=True)
    asked = [(label, target) for label, target in pairs if label in labels]
    if not asked:
        return
    taps = tuple(tap.to(device, torch.float32) for tap in example.views[0].taps)
    rows = [row for label, _ in asked for row in prompts.groups[label]]
    logits = decoder(taps, prompts.conditions[rows].to(device)[None], example.views[0].grid_hw)[0].cpu()
    start = 0
    for label, target in asked:
        alternatives = len(prompts.groups[label])
        yield label, logits[start : start + alternatives].amax(0).numpy(), target
        start += alternatives


@torch.inference_mode()
def answers_of_head(head: MaskHead, example: Example, labels: set[int]) -> Iterator[Answer]:
    """What a head says of an example's labels, of its image as it is."""
    view = example.views[0]
    taps = [tap.to(head.mean.device, torch.float32) for tap in view.taps]
    logits = head.on_grid(head(taps, view.grid_hw))[0].cpu().numpy()
    for label, target in zip(example.labels, example.targets[0], strict=True):
        if label in labels:
            yield label, logits[label], target


def _tally(label: int, logits: NDArray[np.float32], target: NDArray[np.uint8]) -> tuple[int, Tally | None]:
    return label, Tally.of(logits, target)


def told_by(
    folds: Sequence[Fold],
    answers: Sequence[Callable[[Example], Iterator[Answer]]],
    labels: Sequence[int],
    alive: Callable[[], None],
) -> Told:
    """What the images of the first folds say.

    Args:
        folds: all of them.
        answers: what answers for the images of each fold, of the first ones or of all.
        labels: that it answers for.
        alive: called between images; may raise to give up.
    """
    told: Told = {label: [[] for _ in folds] for label in labels}
    if not told:
        return told
    threads = min(_MOST_THREADS, torch.get_num_threads())
    for number, (fold, answers_of) in enumerate(zip(folds, answers, strict=False)):
        asked = (answer for example in fold.asked for answer in answers_of(example))
        with closing(ahead((partial(_tally, *answer) for answer in asked), threads)) as tallies:
            for label, tally in tallies:
                alive()
                if tally is not None:
                    told[label][number].append(tally)
    return told

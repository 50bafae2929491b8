"""Where to cut each label's answer, chosen on images that the answer was not learned from.

Three numbers decide what of an answer is marked, as `backend.decoding` applies them: the logits are divided by a
**temperature**, a pixel belongs to the label from a **threshold** of the probability on, and a connected part stays
whose mean probability is at least a **part score**. The last one tells what is there from what looks a little like it:
with thirty images of a new shape, most false marks are faint all over, and the thing itself is not.

A `Tally` is what one image says of one label's answer for each combination that is considered; tallies of many images
are small enough to keep while many answers are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training_jobs.recipes.cross_entropy import cross_entropies
from training_jobs.recipes.nested_parts import count_parts
from vlm_core.evaluate import ABSENT_AREA

CUTS: NDArray[np.float32] = np.arange(-1.5, 5.01, 0.5, dtype=np.float32)
"""Logits that are considered as thresholds; 0 is a probability of one half."""
TEMPERATURES: NDArray[np.float32] = np.array([1.0, 2.0, 4.0], dtype=np.float32)
_SCALES: NDArray[np.float32] = np.float32(1) / TEMPERATURES
PART_SCORES: NDArray[np.float32] = np.array([0.0, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95], dtype=np.float32)
_HALF = int(np.flatnonzero(CUTS == 0)[0])

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """One label of one image.

    Attributes:
        there: whether the annotator marked it.
        iou: (temperatures, cuts, part scores), 0..1; of a label that is not there 0.
        marked: likewise, whether more than 1 % of the image is marked.
        entropy: (temperatures,): mean cross entropy of the pixels, in nats.
    """

    there: bool
    iou: NDArray[np.float32]
    marked: NDArray[np.bool_]
    entropy: Floats

    @classmethod
    def of(cls, logits: NDArray[np.float32], target: NDArray[np.uint8]) -> Tally | None:
        """Count.

        Args:
            logits: (h, w).
            target: (h, w), share of each cell that is covered, 0 to 255.

        Returns:
            None where a region is too small for the grid to say whether it is there.
        """
        true = target >= 128
        if target.any() and not true.any():
            return None
        area, inside = count_parts(logits, true, _SCALES, CUTS, PART_SCORES)
        either = area + int(true.sum()) - inside
        iou = np.divide(inside, either, out=np.zeros(area.shape), where=either > 0)
        return cls(
            bool(true.any()),
            iou.astype(np.float32),
            area / true.size > ABSENT_AREA,
            cross_entropies(logits, target, _SCALES),
        )


@dataclass(frozen=True)
class Calibration:
    """How to decode one label.

    Attributes:
        threshold: probability from which a pixel belongs to it, 0..1.
        temperature: by which its logits are divided first.
        part_score: mean probability from which a connected part stays, 0..1.
        score: what the images say of it: mean IoU where it is there, less `absent_cost` times the share of other
            images in which more than 1 % is marked.
        iou: the first part; None where it is nowhere.
        marked: the second part, 0..1; None where it is everywhere.
    """

    threshold: float
    temperature: float
    part_score: float
    score: float
    iou: float | None
    marked: float | None


def measure(
    tallies: Sequence[Tally], absent_cost: float, *, temperature: int = 0, cut: int = _HALF, part_score: int = 0
) -> Calibration:
    """What tallies say of one combination, indices of the tables above; by default of decoding as it is.

    Args:
        tallies: of any number of images.
        absent_cost: see `Calibration.score`.
        temperature, cut, part_score: indices.
    """
    there, absent = _tables(tallies)
    iou = None if there is None else float(there[temperature, cut, part_score])
    marked = None if absent is None else float(absent[temperature, cut, part_score])
    divisor = float(TEMPERATURES[temperature])
    return Calibration(
        threshold=float(1 / (1 + np.exp(-float(CUTS[cut]) / divisor))),
        temperature=divisor,
        part_score=float(PART_SCORES[part_score]),
        score=(iou or 0.0) - absent_cost * (marked or 0.0),
        iou=iou,
        marked=marked,
    )


def calibrate(
    tallies: Sequence[Tally], absent_cost: float, *, least_gain: float, least_images: int, least_iou: float = 0.0
) -> Calibration:
    """Choose the three numbers.

    Args:
        tallies: of images that the answer was not learned from.
        absent_cost: see `Calibration.score`.
        least_gain: another threshold or part score must be better by so much: small sets flatter every choice.
        least_images: with fewer images that show the label nothing is chosen.
        least_iou: combinations that mark worse are used only where all do.
    """
    there, absent = _tables(tallies)
    if there is None or sum(tally.there for tally in tallies) < least_images:
        return measure(tallies, absent_cost)
    # By itself: how sure the answer is says nothing about where to cut.
    divisor = int(np.argmin(np.mean([tally.entropy for tally in tallies], axis=0)))
    table = there[divisor] - absent_cost * (0.0 if absent is None else absent[divisor])
    able = there[divisor] >= least_iou
    cut, part = _plateau(np.where(able, table, table - 1e3) if able.any() else table)
    if table[cut, part] < table[_HALF, 0] + least_gain:
        cut, part = _HALF, 0
    return measure(tallies, absent_cost, temperature=divisor, cut=cut, part_score=part)


def _plateau(table: Floats) -> tuple[int, int]:
    """Where a table is largest together with its neighbours: a peak of its own is luck."""
    smooth = cv2.blur(table, (3, 3), borderType=cv2.BORDER_REPLICATE)
    smooth[table < table.max() - 1e2] = -np.inf
    cut, part = np.unravel_index(int(np.argmax(smooth)), table.shape)
    return int(cut), int(part)


def _tables(tallies: Sequence[Tally]) -> tuple[Floats | None, Floats | None]:
    """The mean IoU where the label is there, and the share of marked images where it is not, as in `Tally`."""
    there = [tally.iou for tally in tallies if tally.there]
    absent = [tally.marked for tally in tallies if not tally.there]
    return (
        np.mean(there, axis=0, dtype=np.float64) if there else None,
        np.mean(absent, axis=0, dtype=np.float64) if absent else None,
    )

from __future__ import annotations

import numpy as np
import pytest

from backend.decoding import decode_label
from training_jobs.recipes.calibrate import CUTS, PART_SCORES, TEMPERATURES, Tally, calibrate, measure
from vlm_core.evaluate import ABSENT_AREA, iou

SIZE = (24, 24)
CHOICE = {"least_gain": 0.01, "least_images": 3}


def blob(box: tuple[int, int, int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    mask = np.zeros(SIZE, dtype=np.bool_)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


def tally(logits: np.ndarray[tuple[int, int], np.dtype[np.float32]], true: object) -> Tally:
    found = Tally.of(logits, np.asarray(true, dtype=np.uint8) * 255)
    assert found is not None
    return found


def test_every_combination_counts_what_decoding_would_mark() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1, SIZE).astype(np.float32)
    logits[4:12, 4:12] += 3
    logits[15:20, 15:20] += 1.5
    true = blob((5, 5, 13, 12))
    found = tally(logits, true)
    for t, temperature in enumerate(TEMPERATURES):
        for c, cut in enumerate(CUTS):
            for p, part in enumerate(PART_SCORES):
                decoded = decode_label(
                    logits[None],
                    SIZE,
                    threshold=float(1 / (1 + np.exp(-cut / temperature))),
                    temperature=float(temperature),
                    min_part_score=float(part),
                )
                mask = np.zeros(SIZE, dtype=bool) if decoded.mask is None else decoded.mask.to_array()
                assert found.iou[t, c, p] == pytest.approx(iou(mask, true), abs=1e-6), (temperature, cut, part)
                assert found.marked[t, c, p] == (mask.mean() > ABSENT_AREA)


def scene(*, there: bool, faint: bool, seed: int) -> Tally:
    """The thing is marked surely, something else faintly."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-3, 0.2, SIZE).astype(np.float32)
    thing, other = blob((2, 2, 10, 10)), blob((14, 14, 22, 22))
    if there:
        logits[thing] += 8
    if faint:
        logits[other] += 4
    return tally(logits, thing & there)


def test_faint_marks_are_told_from_sure_ones() -> None:
    some = [scene(there=number % 2 == 0, faint=True, seed=number) for number in range(20)]
    before, after = measure(some, 0.3), calibrate(some, 0.3, **CHOICE)
    assert before.marked == 1.0
    assert after.marked == 0.0
    assert before.iou is not None
    assert after.iou is not None
    assert after.iou > before.iou + 0.3
    assert after.iou > 0.95


def test_nothing_is_chosen_without_need_or_from_too_few() -> None:
    good = [scene(there=number % 2 == 0, faint=False, seed=number) for number in range(20)]
    chosen = calibrate(good, 0.3, **CHOICE)
    assert (chosen.threshold, chosen.part_score) == (0.5, 0.0)
    few = [scene(there=number < 2, faint=True, seed=number) for number in range(20)]
    assert calibrate(few, 0.3, **CHOICE) == measure(few, 0.3)
    assert calibrate([], 0.3, **CHOICE).score == 0.0


def test_a_higher_price_never_marks_more_of_what_is_not_there() -> None:
    generator, thing = np.random.default_rng(1), blob((2, 2, 10, 10))
    some = [
        tally((generator.normal(0, 2, SIZE) + 2 * thing).astype(np.float32), thing & bool(n % 2)) for n in range(30)
    ]
    marked = [calibrate(some, price, **CHOICE).marked or 0.0 for price in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)]
    assert marked == sorted(marked, reverse=True)
    assert marked[-1] < marked[0]


def test_the_temperature_fits_how_sure_the_answers_are() -> None:
    generator = np.random.default_rng(2)
    truth = blob((4, 4, 20, 20))
    for temperature in TEMPERATURES:
        honest = 2 * (2.0 * truth - 1) + generator.normal(0, 2, SIZE)  # log odds of what they tell, by construction
        some = [tally((temperature * honest).astype(np.float32), truth)] * 3
        assert calibrate(some, 0.3, **CHOICE).temperature == temperature


def test_a_region_too_small_for_the_grid_says_nothing() -> None:
    target = np.zeros(SIZE, dtype=np.uint8)
    target[3, 3] = 90
    assert Tally.of(np.zeros(SIZE, dtype=np.float32), target) is None

"""Drawing phrases that are true of nothing in an image."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.absent import draw_absent, phrase_words

phrases = st.lists(st.lists(st.sampled_from("abcAB"), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=8)


@given(phrases, st.data())
def test_what_is_drawn_is_no_part_of_what_is_said_of_the_image(everything: list[str], data: st.DataObject) -> None:
    own = {phrase_words(phrase) for phrase in data.draw(st.lists(st.sampled_from(everything), unique=True))}
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    found = draw_absent(everything, own, lambda _: float(rng.random()))
    possible = {phrase for phrase in everything if not any(phrase_words(phrase) <= words for words in own)}
    assert (found in possible) if possible else (found is None)


def test_every_other_phrase_is_drawn_as_often() -> None:
    rng = np.random.default_rng(0)
    own = [phrase_words("Black dog")]
    pool = ["black", "brown dog", "cat", "dog", "dog black", "the black dog"]
    counts = Counter(draw_absent(pool, own, lambda _: float(rng.random())) for _ in range(3000))
    assert set(counts) == {"brown dog", "cat", "the black dog"}
    for count in counts.values():
        assert count == pytest.approx(1000, abs=110)  # more than four deviations of the binomial


def test_the_attempt_decides_where_it_looks() -> None:
    own = [phrase_words("a")]
    assert draw_absent(["a", "b", "c"], own, lambda attempt: attempt / 3) == "b"
    assert draw_absent(["a", "b", "c"], own, lambda attempt: 0.0) is None

"""Phrases that are true of nothing in an image, drawn from what is said of other images.

Nobody has looked whether they are true: a phrase counts as absent unless the image's own phrases say otherwise. One
whose words are all in one of those is never drawn: where there is a "black dog", "dog" is true.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

Words = frozenset[str]

_MOST_DRAWS = 100


def phrase_words(phrase: str) -> Words:
    """The words of a phrase, in whatever order and case."""
    return frozenset(phrase.casefold().split())


def draw_absent(phrases: Sequence[str], own: Collection[Words], place: Callable[[int], float]) -> str | None:
    """Draw a phrase that nothing in an image makes true.

    Args:
        phrases: to draw from, at least one, the image's own among them.
        own: the words of each phrase of the image.
        place: where in `phrases` to look at an attempt (0, 1, ...), in [0, 1).

    Returns:
        The phrase; None where a hundred attempts found only true ones: the image has nearly all phrases there are.
    """
    for attempt in range(_MOST_DRAWS):
        phrase = phrases[int(place(attempt) * len(phrases))]
        words = phrase_words(phrase)
        if not any(words <= true for true in own):
            return phrase
    return None

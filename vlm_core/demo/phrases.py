"""What a phrase means in a demo scene.

One rule holds for every phrase: **it means all objects that it is true of**. "circle" is the union of all
circles, "red shape" everything red, "left circle" the one circle that is clearly left. A phrase that is true
of nothing means an empty mask. Where two people could disagree (a circle near the middle, is it "left"?),
:meth:`Description.matches` answers None, and such a phrase is neither asked nor taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlm_core.demo.drawing import COLOURS, PATTERNS

SIZES: tuple[str, ...] = ("small", "medium", "large")
"""Size classes; no phrase says "medium"."""
POSITIONS: tuple[str, ...] = ("left", "right", "top", "bottom")
"""Sides of the picture, as the viewer sees them."""

_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
_MIDDLE = (0.43, 0.57)
"""Between these parts of the width or height an object is neither left nor right, top nor bottom."""
_CLEARLY_FURTHER = 0.15
"""How much further out (part of the width or height) the meant object must lie than the next candidate."""

_WORDS = {
    "small": ("small", "little"),
    "large": ("large", "big"),
    "left": ("left", "leftmost"),
    "right": ("right", "rightmost"),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
}
_AT = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_WITH = {"striped": "with stripes", "dotted": "with dots"}
_ANYTHING = ("shape", "object")


@dataclass(frozen=True)
class Attributes:
    """What can be said of an object. `centre_xy` is in parts of the scene's width and height, 0 to 1."""

    shape: str
    colour: str
    pattern: str
    size: str
    centre_xy: tuple[float, float]
    named: bool = True


@dataclass(frozen=True)
class Description:
    """A referring phrase as meaning, not as words; None leaves an attribute open.

    `shape` None means any object, also one whose shape has no name.
    """

    shape: str | None = None
    colour: str | None = None
    pattern: str | None = None
    size: str | None = None
    position: str | None = None

    def matches(self, objects: Sequence[Attributes]) -> tuple[int, ...] | None:
        """Indices of the objects that the phrase means: empty if there are none, None if it is not clear."""
        candidates = [
            index
            for index, item in enumerate(objects)
            if (self.shape is None or (item.named and item.shape == self.shape))
            and self.colour in (None, item.colour)
            and self.pattern in (None, item.pattern)
            and self.size in (None, item.size)
        ]
        if self.position is None or not candidates:
            return tuple(candidates)
        axis = 0 if self.position in ("left", "right") else 1
        # How far towards the named side, 0 to 1.
        outwards = [objects[index].centre_xy[axis] for index in candidates]
        if self.position in ("left", "top"):
            outwards = [1.0 - value for value in outwards]
        order = np.argsort(outwards)[::-1]
        first = outwards[order[0]]
        if first < _MIDDLE[0]:
            # Everything lies on the other side. Of several, one is still "the leftmost": unclear.
            return () if len(candidates) == 1 else None
        if first < _MIDDLE[1]:
            return None
        if len(candidates) > 1:
            second = outwards[order[1]]
            if second > _MIDDLE[0] or first - second < _CLEARLY_FURTHER:
                return None
        return (candidates[order[0]],)

    def attributes(self) -> int:
        """How many attributes are given, the shape not counted."""
        return sum(value is not None for value in (self.colour, self.pattern, self.size, self.position))

    def words(self, rng: np.random.Generator | None = None) -> str:
        """Say it: the plainest way without `rng` ("left red circle"), else one of its paraphrases."""

        def vary(word: str) -> str:
            choices = _WORDS.get(word, (word,))
            return choices[int(rng.integers(len(choices)))] if rng is not None else choices[0]

        def chance(probability: float) -> bool:
            return rng is not None and bool(rng.random() < probability)

        noun = self.shape or (_ANYTHING[int(rng.integers(2))] if rng is not None else _ANYTHING[0])
        after: list[str] = []
        position = self.position
        if position is not None and chance(0.35):
            after.append(_AT[position])
            position = None
        pattern = self.pattern
        if pattern in _WITH and chance(0.25):
            after.insert(0, _WITH[pattern])
            pattern = None
        before = [word for word in (position, self.size) if word]
        adjectives = [word for word in (self.colour, pattern) if word]
        if chance(0.3):
            adjectives.reverse()
        before += adjectives
        if self.attributes() == 0 and chance(0.2):
            noun = plural(noun)
        elif chance(0.3):
            first = vary(before[0]) if before else noun
            unique = self.position is not None
            article = "the" if unique or chance(0.4) else ("an" if first[0] in "aeiou" else "a")
            before = [article, *before]
        return " ".join([*(vary(word) for word in before), noun, *after])


def plural(noun: str) -> str:
    """ "cross" -> "crosses", "star" -> "stars"."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def true_descriptions(objects: Sequence[Attributes]) -> list[tuple[Description, tuple[int, ...]]]:
    """Every description of this module's kinds that is clearly true of something, with the objects it means."""
    found: dict[Description, tuple[int, ...]] = {}
    for item in objects:
        shapes: tuple[str | None, ...] = (item.shape, None) if item.named else (None,)
        colours = (None, item.colour)
        patterns = (None, item.pattern)
        sizes = (None, item.size) if item.size != "medium" else (None,)
        for shape in shapes:
            for colour in colours:
                for pattern in patterns:
                    for size in sizes:
                        for position in (None, *POSITIONS):
                            description = Description(shape, colour, pattern, size, position)
                            if description.attributes() > 3 or (shape is None and description.attributes() > 2):
                                continue
                            if description in found:
                                continue
                            meant = description.matches(objects)
                            if meant:
                                found[description] = meant
    return list(found.items())


def false_descriptions(
    objects: Sequence[Attributes],
    true: Sequence[Description],
    shapes: Sequence[str],
    rng: np.random.Generator,
    count: int,
) -> list[Description]:
    """Up to `count` descriptions that are clearly true of nothing in the scene.

    Most are *nearly* true: one attribute of a true one exchanged (same shape in another colour, right
    shape on the wrong side). The others name a shape that is not there.
    """
    found: dict[Description, None] = {}
    missing = [shape for shape in shapes if all(item.shape != shape for item in objects)]
    for _ in range(count * 12):
        if len(found) >= count:
            break
        if missing and rng.random() < 0.35:
            candidate = Description(shape=str(rng.choice(missing)))
            if rng.random() < 0.5 and objects:
                item = objects[int(rng.integers(len(objects)))]
                candidate = replace(candidate, colour=item.colour)
        else:
            candidate = _exchange_one(true[int(rng.integers(len(true)))], shapes, rng)
        if candidate.matches(objects) == ():
            found[candidate] = None
    return list(found)


def _exchange_one(description: Description, shapes: Sequence[str], rng: np.random.Generator) -> Description:
    given = [
        name for name in ("shape", "colour", "pattern", "size", "position") if getattr(description, name) is not None
    ]
    name = str(rng.choice(given)) if given else "colour"
    if name == "position":
        return replace(description, position=_OPPOSITE[str(description.position)])
    if name == "size":
        return replace(description, size="small" if description.size == "large" else "large")
    choices: Sequence[str] = shapes
    if name == "colour":
        choices = tuple(COLOURS)
    elif name == "pattern":
        choices = PATTERNS
    return replace(description, **{name: str(rng.choice(np.array(choices)))})


def caption(objects: Sequence[Attributes], rng: np.random.Generator) -> str:
    """Describe a scene in a sentence that names two or more of its objects and where they are.

    Only objects whose shape has a name are spoken of; there must be at least one.
    """
    named = [item for item in objects if item.named]
    order = rng.permutation(len(named))
    picked = [named[index] for index in order]

    def noun_phrase(item: Attributes, details: float) -> str:
        description = Description(
            shape=item.shape,
            colour=item.colour,
            pattern=item.pattern if item.pattern != "plain" and rng.random() < details else None,
            size=item.size if item.size != "medium" and rng.random() < details else None,
        )
        text = description.words()
        return f"an {text}" if text[0] in "aeiou" else f"a {text}"

    if len(picked) == 1:
        return noun_phrase(picked[0], 1.0)
    first, second = picked[:2]
    dx = first.centre_xy[0] - second.centre_xy[0]
    dy = first.centre_xy[1] - second.centre_xy[1]
    if rng.random() < 0.5 and max(abs(dx), abs(dy)) > 0.2:
        if abs(dx) > abs(dy):
            left = ("to the left of", "left of")[int(rng.integers(2))]
            right = ("to the right of", "right of")[int(rng.integers(2))]
            relation = left if dx < 0 else right
        else:
            relation = "above" if dy < 0 else "below"
        return f"{noun_phrase(first, 0.5)} {relation} {noun_phrase(second, 0.5)}"
    parts = [noun_phrase(item, 0.4) for item in picked[: max(2, min(len(picked), 3))]]
    listed = ", ".join(parts[:-1]) + " and " + parts[-1]
    return listed if rng.random() < 0.7 else f"a picture of {listed}"

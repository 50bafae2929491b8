"""Generated scenes of coloured shapes on textured backgrounds, with phrases, masks and captions.

A scene is a pure function of its seed and arguments: the same everywhere, drawn at any size. Seeds are
shared out so that nothing is ever judged on what it has learned:

======================  =====================================================
0 to 999,999            training
1,000,000 to 1,999,999  choices: validation, early stopping, looking
2,000,000 to 2,999,999  final evaluation of the demo checkpoint
3,000,000 to 3,999,999  images of the demo project
4,000,000 and up        evaluation of the demo's round trip
======================  =====================================================

What a phrase means is defined in :mod:`vlm_core.demo.phrases`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from vlm_core.demo import drawing
from vlm_core.demo.drawing import COLOURS, PATTERNS, BoolArray
from vlm_core.demo.phrases import (
    Attributes,
    Description,
    caption,
    false_descriptions,
    true_descriptions,
)

KNOWN_SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "heart")
"""Shapes that the demo checkpoint was taught by name. "star" can be drawn too, and was never shown to it."""

DEFAULT_SIZES: tuple[tuple[int, int], ...] = ((256, 256), (320, 240), (240, 320), (384, 288), (192, 192))
"""Width and height in pixels that scenes have when none is asked for; the seed chooses."""

_DIAMETERS = {"small": (0.20, 0.24), "medium": (0.29, 0.34), "large": (0.41, 0.48)}
"""Diameter of each size class in parts of the scene's shorter side; the gaps keep the classes apart."""
_GAP = 0.02


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a drawn scene.

    Attributes:
        shape: its name; of an unnamed shape a word that no phrase uses.
        colour: a key of ``COLOURS``.
        pattern: one of ``PATTERNS``.
        size: "small", "medium" or "large", relative to the scene's shorter side.
        mask: bool (H, W): pixels of which at least half is covered.
        box: x0, y0, x1, y1 in pixels around the mask, right and bottom edge exclusive.
        named: whether phrases may name its shape.
    """

    shape: str
    colour: str
    pattern: str
    size: str
    mask: BoolArray
    box: tuple[int, int, int, int]
    named: bool = True


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn scene. `size` is (width, height) in pixels, as in PIL."""

    seed: int
    size: tuple[int, int]
    image: Image.Image
    objects: tuple[SceneObject, ...]
    attributes: tuple[Attributes, ...]
    captions: tuple[str, ...]
    shapes: tuple[str, ...]

    @cached_property
    def true_descriptions(self) -> list[tuple[Description, tuple[int, ...]]]:
        """Every meaning that is clearly there, with the indices of the objects it means."""
        return true_descriptions(self.attributes)

    def union(self, indices: Sequence[int]) -> BoolArray:
        """Mask of several objects together, bool (H, W); all False for none."""
        mask = np.zeros((self.size[1], self.size[0]), dtype=np.bool_)
        for index in indices:
            mask |= self.objects[index].mask
        return mask

    def mask_of(self, shape: str) -> BoolArray:
        """All objects of one shape together, bool (H, W)."""
        return self.union([i for i, item in enumerate(self.objects) if item.named and item.shape == shape])

    def phrases(self, limit: int = 6) -> list[tuple[str, BoolArray]]:
        """Phrases whose object is there, with their masks (never empty); the same on every call.

        Every named shape of the scene is asked for by its bare name; the others, up to `limit`, are
        drawn from all that is true, in various wordings.
        """
        rng = np.random.default_rng([self.seed, 1])
        bare = {Description(shape=item.shape) for item in self.attributes if item.named}
        chosen = [pair for pair in self.true_descriptions if pair[0] in bare][:limit]
        chosen += sample_true(self, rng, limit - len(chosen), without=bare)
        return [(description.words(rng), self.union(meant)) for description, meant in chosen]

    def absent_phrases(self, limit: int = 4) -> list[str]:
        """Phrases that are true of nothing in the scene, most of them nearly true; the same on every call."""
        rng = np.random.default_rng([self.seed, 2])
        true = [description for description, _ in self.true_descriptions]
        absent = false_descriptions(self.attributes, true, KNOWN_SHAPES, rng, limit)
        return [description.words(rng) for description in absent]


def sample_true(
    scene: Scene, rng: np.random.Generator, count: int, *, without: set[Description] | None = None
) -> list[tuple[Description, tuple[int, ...]]]:
    """Draw up to `count` different true descriptions: short ones more often, objects by name more often."""
    pool = [pair for pair in scene.true_descriptions if pair[0] not in (without or set())]
    if not pool or count <= 0:
        return []
    kinds: dict[tuple[bool, int, bool], int] = {}
    keys = []
    for description, _ in pool:
        key = (description.shape is None, description.attributes(), description.position is not None)
        keys.append(key)
        kinds[key] = kinds.get(key, 0) + 1
    # First the kind by how often people would say it, then evenly within the kind.
    share = {0: 5.0, 1: 3.0, 2: 2.0, 3: 0.7}
    weights = np.array([share[k[1]] * (0.3 if k[0] else 1.0) / kinds[k] for k in keys])
    picked = rng.choice(len(pool), size=min(count, len(pool)), replace=False, p=weights / weights.sum())
    return [pool[int(index)] for index in picked]


@dataclass(frozen=True)
class _Placed:
    """An object before it is drawn; centre and radius in scene units."""

    attributes: Attributes
    figure: drawing.Figure
    fill: drawing.Fill
    centre: tuple[float, float]
    radius: float


def generate_scene(
    seed: int,
    *,
    size: int | tuple[int, int] | None = None,
    shapes: Sequence[str] = KNOWN_SHAPES,
    must_have: Sequence[str] = (),
    patterned: str | None = None,
    distractors: bool = True,
    draw_size: tuple[int, int] | None = None,
    diameter: float | None = None,
) -> Scene:
    """Make the scene of a seed.

    Args:
        seed: >= 0; see the module's table for which seeds are for what.
        size: (width, height) or side in pixels, 32 to 4096, aspect at most 2:1; the seed chooses if None.
        shapes: named shapes to draw from.
        must_have: shapes that occur at least once, added to `shapes`; here shapes without a name are allowed too.
        patterned: a pattern that one of the other objects is filled with, such as ``NEW_PATTERN``.
        distractors: whether shapes without a name may occur too.
        draw_size: draw the scene of `size` squashed to this width and height (as a model with a square
            input sees it) instead of drawing it large and shrinking it; masks have this size then.
        diameter: of every object, in parts of the shorter side, instead of the size classes' own: for small things
            in large pictures. Words for sizes mean nothing in such a scene.

    Returns:
        A scene with two to four named objects (more if `must_have` names more) that do not touch, at least two
        of them different.

    Raises:
        ValueError: an unknown shape, or a size that cannot be drawn.
    """
    shapes = tuple(dict.fromkeys([*shapes, *must_have]))
    known = (*drawing.named_shapes(), *(shape for shape in must_have if shape in drawing.UNNAMED_SHAPES))
    unknown = [shape for shape in shapes if shape not in known]
    if unknown or not shapes:
        raise ValueError(f"unknown shapes {unknown}: choose from {', '.join(drawing.named_shapes())}")
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must be 0 or more")
    rng = np.random.default_rng([seed, 0])
    chosen = DEFAULT_SIZES[int(rng.integers(len(DEFAULT_SIZES)))]
    if size is not None:
        chosen = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if diameter is not None and not 0 < diameter <= _DIAMETERS["large"][1]:
        raise ValueError(f"diameter {diameter} cannot be drawn: above 0, at most {_DIAMETERS['large'][1]}")
    if not (min(chosen) >= 32 and max(chosen) <= 4096 and max(chosen) <= 2 * min(chosen)):
        raise ValueError(f"size {chosen} cannot be drawn: 32 to 4096 px, the longer side at most twice the shorter")
    extent = (chosen[0] / min(chosen), chosen[1] / min(chosen))
    placed = _place(rng, extent, shapes, tuple(must_have), distractors, diameter)
    if patterned is not None:
        _fill_one(placed, tuple(must_have), patterned)
    background = drawing.make_background(rng)
    attributes = tuple(item.attributes for item in placed)
    captions = tuple(dict.fromkeys(caption(attributes, rng) for _ in range(4)))
    drawn = draw_size or chosen
    image, objects = _draw(placed, background, extent, drawn)
    return Scene(seed, drawn, image, objects, attributes, captions, shapes)


def _place(
    rng: np.random.Generator,
    extent: tuple[float, float],
    shapes: tuple[str, ...],
    must_have: tuple[str, ...],
    distractors: bool,
    diameter: float | None,
) -> list[_Placed]:
    """Choose the objects and find room for them."""
    named = int(rng.choice([2, 3, 4], p=[0.3, 0.45, 0.25]))
    unnamed = int(rng.choice([0, 1, 2], p=[0.5, 0.4, 0.1])) if distractors else 0
    wanted: list[Attributes] = []
    for number in range(max(named, len(must_have)) + unnamed):
        is_named = number < max(named, len(must_have))
        wanted.append(_attributes(rng, wanted, shapes, must_have, number, is_named))
    # Large objects first: they need the room. The sort is stable, so it depends on nothing but the seed.
    order = sorted(range(len(wanted)), key=lambda i: -_DIAMETERS[wanted[i].size][0])
    placed: list[_Placed] = []
    for index in order:
        item = wanted[index]
        figure = drawing.make_figure(item.shape, rng)
        fill = drawing.make_fill(item.colour, item.pattern, rng)
        radius = float(rng.uniform(*_DIAMETERS[item.size])) / 2 if diameter is None else diameter / 2
        tries = rng.random((80, 2))
        reach = radius * float(np.linalg.norm(figure.points, axis=1).max())
        for u, v in tries:
            x = reach + u * (extent[0] - 2 * reach)
            y = reach + v * (extent[1] - 2 * reach)
            if all(np.hypot(x - o.centre[0], y - o.centre[1]) > reach + _reach(o) + _GAP for o in placed):
                centre = (float(x), float(y))
                at = (centre[0] / extent[0], centre[1] / extent[1])
                item = Attributes(item.shape, item.colour, item.pattern, item.size, at, item.named)
                placed.append(_Placed(item, figure, fill, centre, radius))
                break
    missing = set(must_have) - {item.attributes.shape for item in placed}
    kinds = {(item.attributes.shape, item.attributes.colour) for item in placed if item.attributes.named}
    if missing or len(kinds) < 2:
        return _place(rng, extent, shapes, must_have, distractors, diameter)
    return placed


def _fill_one(placed: list[_Placed], must_have: tuple[str, ...], pattern: str) -> None:
    """Give one object another pattern: the first that was not asked for by its shape, where there is one."""
    free = [index for index, item in enumerate(placed) if item.attributes.shape not in must_have]
    index = free[0] if free else 0
    item = placed[index]
    placed[index] = replace(
        item, attributes=replace(item.attributes, pattern=pattern), fill=replace(item.fill, pattern=pattern)
    )


def _reach(item: _Placed) -> float:
    return item.radius * float(np.linalg.norm(item.figure.points, axis=1).max())


def _attributes(
    rng: np.random.Generator,
    earlier: Sequence[Attributes],
    shapes: tuple[str, ...],
    must_have: tuple[str, ...],
    number: int,
    is_named: bool,
) -> Attributes:
    colours = tuple(COLOURS)
    if is_named:
        shape = must_have[number] if number < len(must_have) else shapes[int(rng.integers(len(shapes)))]
    else:
        shape = drawing.UNNAMED_SHAPES[int(rng.integers(len(drawing.UNNAMED_SHAPES)))]
    colour = colours[int(rng.integers(len(colours)))]
    pattern = PATTERNS[int(rng.choice(3, p=[0.5, 0.25, 0.25]))]
    size = str(rng.choice(["small", "medium", "large"], p=[0.25, 0.4, 0.35]))
    # Objects that share a shape or a colour with another make the other words of a phrase matter.
    if earlier and rng.random() < 0.5:
        other = earlier[int(rng.integers(len(earlier)))]
        if is_named and number >= len(must_have) and other.named and rng.random() < 0.6:
            shape = other.shape
        else:
            colour = other.colour
    return Attributes(shape, colour, pattern, size, (0.0, 0.0), is_named)


def _draw(
    placed: Sequence[_Placed],
    background: drawing.Background,
    extent: tuple[float, float],
    size: tuple[int, int],
) -> tuple[Image.Image, tuple[SceneObject, ...]]:
    width, height = size
    canvas = np.array(drawing.draw_background(background, (height, width), extent))
    scale = (width / extent[0], height / extent[1])
    objects = []
    for item in placed:
        centre = (item.centre[0] * scale[0], item.centre[1] * scale[1])
        radius = (item.radius * scale[0], item.radius * scale[1])
        cover, (y, x) = drawing.coverage(item.figure, centre, radius, (height, width))
        colours = drawing.paint(item.fill, (cover.shape[0], cover.shape[1]), (y, x), centre, radius)
        window = canvas[y : y + cover.shape[0], x : x + cover.shape[1]]
        window += (colours - window) * cover[..., None]
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[y : y + cover.shape[0], x : x + cover.shape[1]] = cover >= 0.5
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        a = item.attributes
        objects.append(SceneObject(a.shape, a.colour, a.pattern, a.size, mask, box, a.named))
    pixels = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), tuple(objects)

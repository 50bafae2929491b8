"""Draw shapes, patterns and textured backgrounds of demo scenes, at any size.

Everything is described in *scene units* (the shorter side of a scene is 1) and random numbers are drawn
before any pixel is, so that one scene looks the same at 96 px and at 960 px. Edges are anti-aliased.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

SUPERSAMPLING = 4
"""Samples per pixel and axis for edges."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 42),
    "green": (42, 158, 64),
    "blue": (42, 82, 214),
    "yellow": (244, 214, 40),
    "orange": (246, 134, 20),
    "purple": (142, 54, 186),
    "white": (246, 246, 246),
    "black": (24, 24, 26),
}
"""Nominal sRGB value, 0 to 255, of every colour name."""

PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted")
"""How an object is filled. Stripes and dots are a shade of the object's own colour."""
NEW_PATTERN = "checkered"
"""Can be drawn, and is in no scene unless it is asked for: something to learn."""


def _regular(corners: int, *, turn: float = 0.0, radius: float = 1.0) -> Points:
    angles = np.arange(corners) * (2 * np.pi / corners) + turn
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17.0, -(y + 2.5) / 16.0], axis=1)


def _cross() -> Points:
    arm, half = 0.95, 0.34
    corners = [(-half, -arm), (half, -arm), (half, -half), (arm, -half), (arm, half), (half, half)]
    corners += [(half, arm), (-half, arm), (-half, half), (-arm, half), (-arm, -half), (-half, -half)]
    return np.array(corners, dtype=np.float64)


def _star() -> Points:
    points = _regular(10)
    points[1::2] *= 0.45
    return points


def _crescent() -> Points:
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 40)
    inner = outer[::-1]
    outside = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    inside = np.stack([0.42 + 0.72 * np.cos(inner), 0.98 * np.sin(inner) * 0.72 / 0.7], axis=1)
    return np.concatenate([outside, inside * np.array([1.0, 0.98])])


def _blob(rng: np.random.Generator) -> Points:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = np.full_like(t, 0.78)
    for k in (2, 3, 4):
        radius += rng.uniform(0.04, 0.16) * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.35, 1.0)
    return np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1)


def _polygon(rng: np.random.Generator) -> Points:
    corners = int(rng.integers(5, 9))
    angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * np.pi / corners)
    radius = rng.uniform(0.5, 1.0, corners)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _bar(rng: np.random.Generator) -> Points:
    half = rng.uniform(0.2, 0.32)
    return np.array([(-0.97, -half), (0.97, -half), (0.97, half), (-0.97, half)])


def _corner(rng: np.random.Generator) -> Points:
    w = rng.uniform(0.4, 0.6)
    return np.array([(-0.8, -0.8), (-0.8 + w, -0.8), (-0.8 + w, 0.8 - w), (0.8, 0.8 - w), (0.8, 0.8), (-0.8, 0.8)])


def _arrow(rng: np.random.Generator) -> Points:
    half = rng.uniform(0.18, 0.3)
    return np.array([(-1, -half), (0.1, -half), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, half), (-1, half)])


def _hourglass(rng: np.random.Generator) -> Points:
    waist = rng.uniform(0.12, 0.3)
    return np.array([(-0.75, -0.85), (0.75, -0.85), (waist, 0), (0.75, 0.85), (-0.75, 0.85), (-waist, 0)])


def _crown(rng: np.random.Generator) -> Points:
    dip = rng.uniform(-0.1, 0.2)
    return np.array([(-0.9, -0.6), (-0.45, dip), (0, -0.8), (0.45, dip), (0.9, -0.6), (0.8, 0.7), (-0.8, 0.7)])


_NAMED: dict[str, Points] = {
    "circle": _regular(64, radius=0.93),
    "square": _regular(4, turn=np.pi / 4, radius=1.16),
    "triangle": _regular(3, radius=1.16) + np.array([0.0, 0.24]),
    "cross": _cross(),
    "heart": _heart(),
    "star": _star(),
}
UNNAMED_SHAPES = ("blob", "polygon", "bar", "corner", "arrow", "hourglass", "crown", "crescent", "ring")
"""Shapes that no phrase ever names: they teach a model what is *not* meant, and to see shapes in general."""

_FREE_TURN = {"blob", "polygon", "bar", "corner", "arrow", "hourglass", "crescent", "ring", "circle"}


def named_shapes() -> tuple[str, ...]:
    """All shapes that can be asked for by name."""
    return tuple(_NAMED)


@dataclass(frozen=True)
class Figure:
    """An outline to be filled: a polygon around the origin, nominal radius 1, y downwards, with or without a hole."""

    points: Points
    hole: Points | None = None


def make_figure(shape: str, rng: np.random.Generator) -> Figure:
    """An instance of a shape, turned a little (or freely, where a turn does not change the name).

    Args:
        shape: a name of :func:`named_shapes` or of ``UNNAMED_SHAPES``.
        rng: source of the variation.
    """
    makers = {
        "blob": _blob,
        "polygon": _polygon,
        "bar": _bar,
        "corner": _corner,
        "arrow": _arrow,
        "hourglass": _hourglass,
        "crown": _crown,
    }
    turn = rng.uniform(-np.pi, np.pi) if shape in _FREE_TURN else rng.uniform(-0.17, 0.17)
    hole = None
    if shape in _NAMED:
        points = _NAMED[shape]
    elif shape == "crescent":
        points = _crescent()
    elif shape == "ring":
        points = _regular(64, radius=0.95)
        hole = _regular(64, radius=float(rng.uniform(0.45, 0.65)))
    else:
        points = makers[shape](rng)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return Figure(points @ rotation, None if hole is None else hole @ rotation)


@dataclass(frozen=True)
class Fill:
    """How an object is painted: two colours (sRGB 0 to 255) and a pattern with its angle and phase in radians."""

    pattern: str
    rgb: tuple[float, float, float]
    shade: tuple[float, float, float]
    angle: float
    phase: float


def make_fill(colour: str, pattern: str, rng: np.random.Generator) -> Fill:
    """Paint of a named colour, varied a little, with stripes or dots in a shade of the same colour."""
    base = np.clip(np.array(COLOURS[colour], dtype=np.float64) + rng.uniform(-14, 14, 3), 0, 255)
    # A shade must be seen and must leave the colour's name alone; white can only get darker, black only lighter.
    lighter = colour == "black" or (colour not in ("white", "yellow") and rng.random() < 0.5)
    shade = base + (255.0 - base) * 0.5 if lighter else base * (0.62 if colour in ("white", "yellow") else 0.42)
    if colour == "black":
        shade = base + 92.0
    red, green, blue = (float(v) for v in base)
    red2, green2, blue2 = (float(v) for v in shade)
    angle, phase = float(rng.uniform(0, np.pi)), float(rng.uniform(0, 2 * np.pi))
    return Fill(pattern, (red, green, blue), (red2, green2, blue2), angle, phase)


def coverage(
    figure: Figure, centre_px: tuple[float, float], radius_px: tuple[float, float], size_hw: tuple[int, int]
) -> tuple[FloatArray, tuple[int, int]]:
    """How much of each pixel a figure covers.

    Args:
        figure: the outline.
        centre_px: x, y of its centre, pixels.
        radius_px: horizontal and vertical length of its nominal radius, pixels.
        size_hw: height and width of the canvas, pixels.

    Returns:
        A tile float32 (h, w) in 0 to 1, and the (y, x) of the tile's corner on the canvas. The tile is the
        figure's bounding box cut at the canvas.
    """
    points = figure.points * np.array(radius_px) + np.array(centre_px)
    x0, y0 = np.floor(points.min(axis=0)).astype(int) - 1
    x1, y1 = np.ceil(points.max(axis=0)).astype(int) + 1
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, size_hw[1]), min(y1, size_hw[0])
    tile = Image.new("L", ((x1 - x0) * SUPERSAMPLING, (y1 - y0) * SUPERSAMPLING))
    draw = ImageDraw.Draw(tile)

    def corners(outline: Points) -> list[tuple[float, float]]:
        placed = (outline * np.array(radius_px) + np.array(centre_px) - np.array([x0, y0])) * SUPERSAMPLING - 0.5
        return [(float(x), float(y)) for x, y in placed]

    draw.polygon(corners(figure.points), fill=255)
    if figure.hole is not None:
        draw.polygon(corners(figure.hole), fill=0)
    small = tile.reduce(SUPERSAMPLING)
    return np.asarray(small, dtype=np.float32) / np.float32(255.0), (int(y0), int(x0))


def paint(
    fill: Fill,
    tile_hw: tuple[int, int],
    corner_yx: tuple[int, int],
    centre_px: tuple[float, float],
    radius_px: tuple[float, float],
) -> FloatArray:
    """Colours of a tile: float32 (h, w, 3), 0 to 255. The pattern's scale follows the object's radius."""
    base = np.array(fill.rgb, dtype=np.float32)
    if fill.pattern == "plain":
        return np.broadcast_to(base, (*tile_hw, 3))
    u = (np.arange(tile_hw[1], dtype=np.float32) + 0.5 + corner_yx[1] - centre_px[0]) / radius_px[0]
    v = (np.arange(tile_hw[0], dtype=np.float32) + 0.5 + corner_yx[0] - centre_px[1]) / radius_px[1]
    cos, sin = np.float32(np.cos(fill.angle)), np.float32(np.sin(fill.angle))
    along = u[None, :] * cos + v[:, None] * sin
    if fill.pattern == NEW_PATTERN:
        across = v[:, None] * cos - u[None, :] * sin
        half = np.float32(np.pi / 0.5)
        signal = np.sin(along * half + np.float32(fill.phase)) * np.sin(across * half + np.float32(fill.phase)) * 3
    elif fill.pattern == "striped":
        signal = np.sin(along * np.float32(2 * np.pi / 0.62) + np.float32(fill.phase))
    else:
        across = v[:, None] * cos - u[None, :] * sin
        pitch = np.float32(2 * np.pi / 0.66)
        phase = np.float32(fill.phase)
        signal = (np.sin(along * pitch + phase) + np.sin(across * pitch + phase)) * np.float32(0.9) - np.float32(0.45)
    # The pattern's edges are blurred over about a pixel: 1 / (signal change per pixel).
    sharpness = np.float32(max(1.0, min(radius_px) / 10.0 * 2.0))
    weight = np.clip(signal * sharpness + np.float32(0.5), 0, 1)[..., None]
    colours: FloatArray = base * (1 - weight) + np.array(fill.shade, dtype=np.float32) * weight
    return colours


@dataclass(frozen=True)
class Background:
    """A muted, textured background; all its random numbers, none of its pixels."""

    kind: str
    rgb: tuple[float, float, float]
    contrast: float
    slope: tuple[float, float]
    angle: float
    frequency: float
    coarse: FloatArray
    fine: FloatArray


BACKGROUNDS = ("cloudy", "grainy", "woven", "boards", "tiles")
"""Kinds of background texture."""


def make_background(rng: np.random.Generator) -> Background:
    """A muted background: greyish, of middle brightness, so that black and white objects are both seen."""
    level = rng.uniform(90, 190)
    tint = rng.uniform(-22, 22, 3)
    red, green, blue = (float(v) for v in np.clip(level + tint - tint.mean(), 60, 215))
    return Background(
        kind=BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))],
        rgb=(red, green, blue),
        contrast=float(rng.uniform(7, 20)),
        slope=(float(rng.uniform(-24, 24)), float(rng.uniform(-24, 24))),
        angle=float(rng.uniform(0, np.pi)),
        frequency=float(rng.uniform(5, 16)),
        coarse=rng.uniform(-1, 1, (7, 7)).astype(np.float32),
        fine=rng.uniform(-1, 1, (48, 48)).astype(np.float32),
    )


def draw_background(background: Background, size_hw: tuple[int, int], extent: tuple[float, float]) -> FloatArray:
    """Paint a background.

    Args:
        background: what to paint.
        size_hw: height and width, pixels.
        extent: width and height of the scene in scene units.

    Returns:
        float32 (H, W, 3), 0 to 255.
    """
    height, width = size_hw
    x = (np.arange(width, dtype=np.float32) + 0.5)[None, :] / width * np.float32(extent[0])
    y = (np.arange(height, dtype=np.float32) + 0.5)[:, None] / height * np.float32(extent[1])
    cos, sin = np.float32(np.cos(background.angle)), np.float32(np.sin(background.angle))
    turn = np.float32(2 * np.pi * background.frequency)
    along, across = (x * cos + y * sin) * turn, (y * cos - x * sin) * turn

    def noise(grid: FloatArray) -> FloatArray:
        return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)

    if background.kind == "cloudy":
        texture = noise(background.coarse) * np.float32(1.3)
    elif background.kind == "grainy":
        texture = noise(background.fine)
    elif background.kind == "woven":
        texture = np.sin(along) * np.sin(across) + np.float32(0.3) * noise(background.fine)
    elif background.kind == "boards":
        texture = np.sin(along) + np.float32(0.3) * noise(background.fine)
    else:
        texture = np.clip(4 * np.sin(along / 2) * np.sin(across / 2), -1, 1) * np.float32(0.8)
    light = x * np.float32(background.slope[0]) + y * np.float32(background.slope[1])
    lightness = texture * np.float32(background.contrast) + light
    pixels: FloatArray = (lightness[..., None] + np.array(background.rgb, dtype=np.float32)).astype(np.float32)
    return pixels

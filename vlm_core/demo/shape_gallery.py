"""One mask in every form that this package gives it: the picture of docs/masks.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm_core.demo.scenes import Scene, generate_scene
from vlm_core.masks import binarise
from vlm_core.model import Model
from vlm_core.polygons import DEFAULT_TOLERANCE_PX, polygons
from vlm_core.rasterise import Points
from vlm_core.runs import RunMask
from vlm_core.shapes import RotatedBox, ellipse, rotated_box

MIN_AREA_PX = 64
_MOST_SCENES = 1000
_WIDTH = 340
_FINE = 4  # drawn so many times as large, then shrunk: smooth lines
_GAP = 16
_HEAD = 48
_INK, _SOFT, _PAPER = (31, 35, 40), (101, 109, 118), (255, 255, 255)
_MASK, _HOLE = (255, 0, 128), (0, 90, 181)
_PARTS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0))  # of Okabe & Ito's palette

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Marked:
    """A phrase that the model has marked in a scene."""

    scene: Scene
    phrase: str
    mask: RunMask


def mark_parts_and_holes(model: Model, *, first_seed: int) -> Marked:
    """The first scene, and phrase in it, whose mask has several parts and a hole: all forms differ there.

    Args:
        model: one that gives masks and knows the scenes' words.
        first_seed: where the search begins.

    Raises:
        ValueError: none of a thousand scenes has one.
    """
    for seed in range(first_seed, first_seed + _MOST_SCENES):
        scene = generate_scene(seed)
        # In an order of their own: the scene's follows the hashes of words, which differ from run to run.
        for description, meant in sorted(scene.true_descriptions, key=lambda item: item[0].words()):
            ring = any(scene.attributes[index].shape == "ring" for index in meant)
            if not ring or len(meant) < 2 or description.attributes() != 1:
                continue
            phrase = description.words()
            probability = model.segment(scene.image, [phrase]).probabilities()[0]
            mask = RunMask.from_array(binarise(probability, 0.5, MIN_AREA_PX))
            parts = polygons(mask)
            if len(parts) == len(meant) and any(part.holes for part in parts):
                return Marked(scene, phrase, mask)
    raise ValueError(f"no scene from seed {first_seed} on is marked in several parts with a hole")


def draw_shapes(marked: Marked) -> Image.Image:
    """Six panels: brush mask, parts, polygons, boxes, turned boxes, ellipses."""
    mask, size_hw = marked.mask, marked.mask.size_hw
    parts = mask.instances()
    outlines = polygons(mask)
    holes = sum(len(outline.holes) for outline in outlines)
    points = sum(len(ring) for outline in outlines for ring in (outline.outer, *outline.holes))
    upright = [RotatedBox.upright(found) for part in parts if (found := part.box_xyxy_px)]
    turned = [box for box in map(rotated_box, parts) if box]
    ovals = [oval for oval in map(ellipse, parts) if oval]

    def paint_polygons(canvas: _Canvas) -> None:
        canvas.tint(mask, _MASK, 0.25)
        for outline in outlines:
            canvas.ring(outline.outer, _MASK, dots=True)
            for hole in outline.holes:
                canvas.ring(hole, _HOLE, dots=True)

    def paint_rings(rings: Sequence[Points]) -> Callable[[_Canvas], None]:
        def paint(canvas: _Canvas) -> None:
            canvas.tint(mask, _MASK, 0.25)
            for ring in rings:
                canvas.ring(ring, _MASK)

        return paint

    def paint_parts(canvas: _Canvas) -> None:
        for number, part in enumerate(parts):
            canvas.tint(part, _PARTS[number % len(_PARTS)], 0.75)

    straight, tilted = upright[0].to_percent(size_hw), turned[0].to_percent(size_hw)
    radii = ovals[0].to_percent(size_hw)
    areas = [f"{part.area_px:,}" for part in parts]
    panels: list[tuple[str, str, Callable[[_Canvas], None]]] = [
        ("Brush mask", f"{mask.area_px:,} px in {len(mask)} runs", lambda c: c.tint(mask, _MASK, 0.75)),
        ("Components", f"{len(parts)} parts: {', '.join(areas[:-1])} and {areas[-1]} px", paint_parts),
        (
            "Polygons",
            f"{points} points, tolerance {DEFAULT_TOLERANCE_PX:g} px; in blue: {holes} hole{'s' * (holes != 1)}",
            paint_polygons,
        ),
        (
            "Boxes",
            f"the largest: {straight.width:.1f} % x {straight.height:.1f} % at {straight.x:.1f} %, {straight.y:.1f} %",
            paint_rings([one.corners_xy_px() for one in upright]),
        ),
        (
            "Rotated boxes",
            f"{tilted.width:.1f} % x {tilted.height:.1f} %, turned by {_degrees(tilted.rotation)}",
            paint_rings([one.corners_xy_px() for one in turned]),
        ),
        (
            "Ellipses",
            f"radii {radii.radius_x:.1f} % and {radii.radius_y:.1f} %, turned by {_degrees(radii.rotation)}",
            paint_rings([_oval(one.centre_xy_px, one.radii_px, one.angle_deg) for one in ovals]),
        ),
    ]
    height = round(_WIDTH * size_hw[0] / size_hw[1])
    columns = 3
    page = Image.new("RGB", (_GAP + columns * (_WIDTH + _GAP), _HEAD // 2 + 2 * (_HEAD + height + _GAP)), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, 8), f"“{marked.phrase}”", fill=_INK, font=ImageFont.load_default(15))
    for number, (title, note, paint) in enumerate(panels):
        x = _GAP + (number % columns) * (_WIDTH + _GAP)
        y = _HEAD // 2 + (number // columns) * (_HEAD + height + _GAP) + 10
        draw.text((x, y), title, fill=_INK, font=ImageFont.load_default(15))
        draw.text((x, y + 18), note, fill=_SOFT, font=ImageFont.load_default(12))
        canvas = _Canvas(marked.scene.image, (_WIDTH, height))
        paint(canvas)
        page.paste(canvas.finished(), (x, y + _HEAD - 8))
    return page


class _Canvas:
    """The scene in grey, drawn upon in its own pixel coordinates."""

    def __init__(self, image: Image.Image, size: tuple[int, int]) -> None:
        self._size = size
        self._fine = (size[0] * _FINE, size[1] * _FINE)
        self._scale = np.array(self._fine) / image.size
        self._original = image.size
        grey = image.convert("L").convert("RGB").resize(self._fine, Image.Resampling.BICUBIC)
        self._picture = Image.blend(grey, Image.new("RGB", self._fine, _PAPER), 0.35)

    def tint(self, mask: RunMask, colour: Colour, strength: float) -> None:
        """Colour a mask's pixels; their stairs stay to be seen."""
        alpha = Image.fromarray((mask.to_array() * round(255 * strength)).astype(np.uint8))
        fine = alpha.resize(self._fine, Image.Resampling.NEAREST)
        self._picture.paste(Image.new("RGB", self._fine, colour), (0, 0), fine)

    def ring(self, ring: Points, colour: Colour, *, dots: bool = False) -> None:
        """Draw a closed line, with its points where asked for."""
        points = [(float(x), float(y)) for x, y in ring * self._scale]
        draw = ImageDraw.Draw(self._picture)
        draw.line([*points, points[0]], fill=colour, width=2 * _FINE, joint="curve")
        for x, y in points if dots else ():
            reach = 2.4 * _FINE
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=_PAPER, outline=colour, width=_FINE)

    def finished(self) -> Image.Image:
        return self._picture.resize(self._size, Image.Resampling.LANCZOS)


def _oval(centre: tuple[float, float], radii: tuple[float, float], angle_deg: float) -> Points:
    around = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    own = np.stack((radii[0] * np.cos(around), radii[1] * np.sin(around)))
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    points: Points = (np.array([[cos, -sin], [sin, cos]]) @ own).T + centre
    return points


def _degrees(angle: float) -> str:
    return f"{angle:.0f}°"

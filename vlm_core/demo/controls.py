"""A picture of what each control tag of a labelling config shows: `python -m vlm_core.demo.controls --out DIR`.

Made with the demo checkpoint on the first scenes of those kept for the final evaluation: nothing is picked. Masks take
the threshold 0.5, parts of less than `_LEAST_PX` are dropped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

import vlm_core
from vlm_core.demo.drawing import COLOURS
from vlm_core.demo.gallery import BAR, FIRST_SEED, GAP, INK, PAPER, TILE, Colour, fitted, font, save
from vlm_core.demo.scenes import Scene, generate_scene
from vlm_core.masks import upsample_logits
from vlm_core.model import Model
from vlm_core.polygons import polygons
from vlm_core.prompts import Prompt
from vlm_core.runs import RunMask
from vlm_core.shapes import ellipse, rotated_box

Logits = npt.NDArray[np.float32]
Draw = Callable[[ImageDraw.ImageDraw, RunMask, Logits, Colour], None]
Answers = Sequence[tuple[str, float]]

_LEAST_PX = 64
_LINE = 3
_LABELS: Mapping[str, Colour] = {"heart": (255, 20, 147), "square": (0, 170, 220), "triangle": (60, 170, 0)}
_KINDS = {"a square": ("angular", "a square"), "a circle": ("round", "a circle"), "a heart": ("round", "a heart")}


def draw_pictures(model: Model, scenes: Sequence[Scene]) -> Iterator[tuple[str, Image.Image]]:
    """The name and the picture of each control, one column a scene.

    Args:
        model: one that can segment and rank, and knows the scenes' words.
        scenes: at least one.
    """
    for name, draw in _SHAPES.items():
        yield name, _row([_drawn(model, scene, _prompts(), draw) for scene in scenes], caption=tuple(_LABELS))
    yield "not-prompt", _with_and_without(model, scenes)
    yield "prompt-from", _with_phrases(model, scenes)
    for name, answer in _ANSWERS.items():
        yield name, _row([_answered(scene.image, answer(model, scene)) for scene in scenes])
    yield "per-region", _row([_per_region(model, scene) for scene in scenes])


# Regions --------------------------------------------------------------------------------------------------------------
def _prompts() -> list[Prompt]:
    return [Prompt([label]) for label in _LABELS]


def _drawn(model: Model, scene: Scene, prompts: Sequence[Prompt], draw: Draw) -> Image.Image:
    """The scene with every region of every prompt, each prompt in its colour."""
    picture = scene.image.copy()
    for logits, colour in zip(_logits(model, scene, prompts), _LABELS.values(), strict=False):
        for part in RunMask.from_array(logits > 0).instances(_LEAST_PX):
            draw(ImageDraw.Draw(picture, "RGBA"), part, logits, colour)
    return fitted(picture)


def _logits(model: Model, scene: Scene, prompts: Sequence[Prompt]) -> Logits:
    found = model.segment(scene.image, prompts).logits
    return np.asarray(upsample_logits(found, (scene.size[1], scene.size[0])), dtype=np.float32)


def _paint(draw: ImageDraw.ImageDraw, part: RunMask, _: Logits, colour: Colour) -> None:
    draw.bitmap((0, 0), Image.fromarray(part.to_array().astype(np.uint8) * 170), fill=colour)


def _stamp(draw: ImageDraw.ImageDraw, part: RunMask, _: Logits, colour: Colour) -> None:
    draw.bitmap((0, 0), Image.fromarray(part.to_array().astype(np.uint8) * 255), fill=tuple(c // 2 for c in colour))


def _outline(draw: ImageDraw.ImageDraw, part: RunMask, _: Logits, colour: Colour) -> None:
    for polygon in polygons(part):
        points = [(float(x), float(y)) for x, y in polygon.outer]
        draw.polygon(points, fill=(*colour, 60))
        draw.line([*points, points[0]], fill=colour, width=_LINE, joint="curve")
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=PAPER, outline=colour)


def _box(draw: ImageDraw.ImageDraw, part: RunMask, _: Logits, colour: Colour) -> None:
    draw.rectangle(_upright(part), outline=colour, width=_LINE)


def _turned(draw: ImageDraw.ImageDraw, part: RunMask, _: Logits, colour: Colour) -> None:
    found = rotated_box(part)
    if found is not None:
        corners = [(float(x), float(y)) for x, y in found.corners_xy_px()]
        draw.line([*corners, corners[0], corners[1]], fill=colour, width=_LINE)


def _oval(draw: ImageDraw.ImageDraw, part: RunMask, _: Logits, colour: Colour) -> None:
    found = ellipse(part)
    if found is not None:
        turns, angle = np.linspace(0, 2 * np.pi, 90), np.radians(found.angle_deg)
        x, y = found.radii_px[0] * np.cos(turns), found.radii_px[1] * np.sin(turns)
        x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
        points = np.stack((x, y), axis=1) + found.centre_xy_px
        draw.line([(float(x), float(y)) for x, y in points], fill=colour, width=_LINE)


def _point(draw: ImageDraw.ImageDraw, part: RunMask, logits: Logits, colour: Colour) -> None:
    """The part's most certain point."""
    best = int(np.where(part.to_array(), logits, -np.inf).argmax())
    y, x = divmod(best, logits.shape[1])
    draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour, outline=PAPER, width=2)


def _upright(part: RunMask) -> tuple[int, int, int, int]:
    left, top, right, bottom = part.box_xyxy_px or (0, 0, 1, 1)
    return left, top, right - 1, bottom - 1


_SHAPES: Mapping[str, Draw] = {
    "brush": _paint,
    "bitmask": _stamp,
    "polygon": _outline,
    "rectangle": _box,
    "rotated-rectangle": _turned,
    "ellipse": _oval,
    "keypoint": _point,
}


def _with_and_without(model: Model, scenes: Sequence[Scene]) -> Image.Image:
    """The first and the last scene, each with a label and with less of it."""
    asked = {"square": Prompt(["square"]), "but not dotted square": Prompt(["square"], not_texts=["dotted square"])}
    shown = [(title, scene, prompt) for scene in (scenes[0], scenes[-1]) for title, prompt in asked.items()]
    return _titled([(title, _drawn(model, scene, [prompt], _paint)) for title, scene, prompt in shown])


def _with_phrases(model: Model, scenes: Sequence[Scene]) -> Image.Image:
    """Each scene with the mask of a phrase of its own."""
    phrases = [max(scene.phrases(), key=lambda pair: len(pair[0].split()))[0] for scene in scenes]
    shown = zip(phrases, scenes, strict=True)
    return _titled([(phrase, _drawn(model, scene, [Prompt([phrase])], _paint)) for phrase, scene in shown])


# Answers --------------------------------------------------------------------------------------------------------------
def _choices(model: Model, scene: Scene) -> Answers:
    return _ranked(model, scene.image, ["a circle", "a square", "a triangle", "a heart"])[:1]


def _tree(model: Model, scene: Scene) -> Answers:
    return [(" / ".join(_KINDS[tag]), share) for tag, share in _ranked(model, scene.image, list(_KINDS))[:1]]


def _texts(model: Model, scene: Scene) -> Answers:
    return _ranked(model, scene.image, [f"something {colour}" for colour in COLOURS])[:3]


def _items(model: Model, scene: Scene) -> Answers:
    others = [generate_scene(scene.seed + number).captions[0] for number in range(3)]
    return _ranked(model, scene.image, sorted(others))


def _ranked(model: Model, image: Image.Image, tags: Sequence[str]) -> Answers:
    return [(score.tag, score.probability) for score in model.rank(image, tags)]


_ANSWERS: Mapping[str, Callable[[Model, Scene], Answers]] = {
    "choices": _choices,
    "taxonomy": _tree,
    "textarea": _texts,
    "ranker": _items,
}


def _answered(image: Image.Image, answers: Answers) -> Image.Image:
    """The scene and what is said of it, with the probabilities as bars."""
    page = Image.new("RGB", (TILE, TILE + 34 * len(answers)), PAPER)
    page.paste(fitted(image), (0, 0))
    draw = ImageDraw.Draw(page)
    for index, (text, share) in enumerate(answers):
        top = TILE + 4 + 34 * index
        draw.rectangle((0, top, round((TILE - 1) * share), top + 29), fill=BAR)
        words, lines = text.split(), [""]
        for word in words:
            if lines[-1] and len(lines[-1]) + len(word) > 26:
                lines.append(word)
            else:
                lines[-1] = f"{lines[-1]} {word}".strip()
        for number, line in enumerate(lines[:2]):
            draw.text((3, top + 2 + 13 * number), line, fill=INK, font=font(11))
    return page


def _per_region(model: Model, scene: Scene) -> Image.Image:
    """The boxes of the labels, each with the colour that is said of its part of the picture."""
    picture = scene.image.copy()
    draw = ImageDraw.Draw(picture)
    for logits, colour in zip(_logits(model, scene, _prompts()), _LABELS.values(), strict=True):
        for part in RunMask.from_array(logits > 0).instances(_LEAST_PX):
            left, top, right, bottom = _upright(part)
            draw.rectangle((left, top, right, bottom), outline=colour, width=_LINE)
            said = _ranked(model, scene.image.crop((left, top, right + 1, bottom + 1)), list(COLOURS))[0][0]
            draw.rectangle((left, top, left + 7 * len(said) + 8, top + 18), fill=colour)
            draw.text((left + 4, top + 1), said, fill=PAPER, font=font(14))
    return fitted(picture)


# Pages ----------------------------------------------------------------------------------------------------------------
def _row(tiles: Sequence[Image.Image], caption: Sequence[str] = ()) -> Image.Image:
    """Tiles side by side, under the names of the colours."""
    head = 22 if caption else 0
    page = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, head + max(tile.height for tile in tiles)), PAPER)
    draw = ImageDraw.Draw(page)
    for index, name in enumerate(caption):
        draw.rectangle((index * 90, 4, index * 90 + 10, 14), fill=_LABELS[name])
        draw.text((index * 90 + 16, 1), name, fill=INK, font=font(13))
    for index, tile in enumerate(tiles):
        page.paste(tile, (index * (TILE + GAP), head))
    return page


def _titled(tiles: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Tiles side by side, each under its own title."""
    page = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TILE + 22), PAPER)
    page.paste(_row([tile for _, tile in tiles]), (0, 22))
    for index, (title, _) in enumerate(tiles):
        ImageDraw.Draw(page).text((index * (TILE + GAP), 2), title, fill=INK, font=font(13))
    return page


def main() -> None:
    """Command line of `python -m vlm_core.demo.controls`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the pictures")
    parser.add_argument("--scenes", type=int, default=4, help="scenes on each picture")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scenes = [generate_scene(FIRST_SEED + index) for index in range(arguments.scenes)]
    for name, page in draw_pictures(vlm_core.load("demo"), scenes):
        save(page, arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()

"""Pictures of what the demo checkpoint does: `python -m vlm_core.demo.gallery --out docs/pictures`.

Descriptions matched with scenes, and phrases with predicted and true masks: the scenes are the first ones of the seeds
kept for the final evaluation, good and bad answers alike, and nothing is picked. A third picture shows one mask in all
its forms, on the first of these scenes whose mask has several parts and a hole.

The same checkpoint makes the same pictures on the same machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import vlm_core
from vlm_core.demo.scenes import Scene, generate_scene
from vlm_core.demo.shape_gallery import draw_shapes, mark_parts_and_holes
from vlm_core.evaluate import iou
from vlm_core.model import Model
from vlm_core.runs import BoolMask

FIRST_SEED = 2_000_000
PICTURES = ("matching.png", "referring.png", "shapes.png")
TILE = 170
GAP = 14
INK, _SOFT, PAPER = (31, 35, 40), (101, 109, 118), (255, 255, 255)
_RIGHT, _WRONG, BAR = (26, 127, 55), (207, 34, 46), (221, 244, 255)
_MASK = (255, 0, 128)
_THRESHOLD = 0.5

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Matching:
    """One scene with its four descriptions.

    Attributes:
        scene: the scene.
        ranked: (description, probability), best first.
        right: the one that is true of it.
    """

    scene: Scene
    ranked: tuple[tuple[str, float], ...]
    right: str


@dataclass(frozen=True)
class Referring:
    """One phrase on one scene with the predicted and the true mask."""

    scene: Scene
    phrase: str
    predicted: BoolMask
    true: BoolMask


def match_descriptions(model: Model, number: int, *, first_seed: int = FIRST_SEED) -> list[Matching]:
    """Rank, for each scene, its own description and those of the three scenes after it.

    Args:
        model: a model that can rank.
        number: how many scenes, at least one.
        first_seed: the scenes' first seed.
    """
    scenes = [generate_scene(first_seed + index) for index in range(number + 3)]
    found = []
    for index, scene in enumerate(scenes[:number]):
        descriptions = [other.captions[0] for other in scenes[index : index + 4]]
        ranked = tuple((score.tag, score.probability) for score in model.rank(scene.image, descriptions))
        found.append(Matching(scene, ranked, descriptions[0]))
    return found


def refer(model: Model, number: int, *, first_seed: int = FIRST_SEED) -> list[Referring]:
    """Mark one phrase in each scene; every fourth phrase is true of nothing there.

    Args:
        model: a model that can segment.
        number: how many scenes, at least one.
        first_seed: the scenes' first seed.
    """
    found = []
    for index in range(number):
        scene = generate_scene(first_seed + index)
        if index % 4 == 3:
            phrase, true = scene.absent_phrases()[0], scene.union([])
        else:
            # The longest says most: the bare names are the easy ones.
            phrase, true = max(scene.phrases(), key=lambda pair: len(pair[0].split()))
        logits = np.asarray(model.segment(scene.image, [phrase]).logits)[0]
        found.append(Referring(scene, phrase, logits > np.log(_THRESHOLD / (1 - _THRESHOLD)), true))
    return found


def draw_matching(cards: Sequence[Matching]) -> Image.Image:
    """Two columns of cards: the picture, and its descriptions by rank with their probabilities."""
    text_width, columns = 400, 2
    width, height = TILE + text_width + 3 * GAP, TILE + GAP
    rows = -(-len(cards) // columns)
    page = Image.new("RGB", (columns * width, rows * height + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for index, card in enumerate(cards):
        x, y = (index % columns) * width + GAP, (index // columns) * height + GAP
        page.paste(fitted(card.scene.image), (x, y))
        left = x + TILE + GAP
        for rank, (description, probability) in enumerate(card.ranked):
            top = y + 4 + rank * 42
            draw.rectangle((left, top, left + round(text_width * probability), top + 36), fill=BAR)
            colour = _SOFT
            if description == card.right:
                colour = _RIGHT
            elif rank == 0:
                colour = _WRONG
            for line, text in enumerate(_wrapped(description, 56)[:2]):
                draw.text((left + 6, top + 3 + 15 * line), text, fill=colour, font=font(13))
            draw.text((left + text_width - 44, top + 10), f"{probability:.0%}", fill=colour, font=font(14))
    return page


def draw_referring(rows: Sequence[Referring]) -> Image.Image:
    """Two columns of rows: phrase, picture, predicted mask with its IoU, true mask."""
    columns, head = 2, 26
    width, height = 3 * TILE + 3 * GAP, TILE + 30
    page = Image.new("RGB", (columns * width + GAP, head + -(-len(rows) // columns) * height), PAPER)
    draw = ImageDraw.Draw(page)
    for column in range(columns):
        for index, title in enumerate(("picture", "predicted", "true")):
            left = GAP + column * width + index * (TILE + 4)
            draw.text((left, 6), title, fill=_SOFT, font=font(13))
    for index, row in enumerate(rows):
        x, y = GAP + (index % columns) * width, head + (index // columns) * height
        agreement = iou(row.predicted, row.true)
        said = f"IoU {agreement:.2f}" if row.true.any() else ("nothing there" if agreement == 1 else "is not there")
        draw.text((x, y), f"“{row.phrase}”", fill=INK, font=font(15))
        # Under the predicted mask's right edge: how well it agrees.
        end = x + 3 * TILE + 8
        draw.text((end, y), said, fill=_RIGHT if agreement >= 0.5 else _WRONG, font=font(14), anchor="ra")
        for number, mask in enumerate((None, row.predicted, row.true)):
            page.paste(fitted(_marked(row.scene.image, mask)), (x + number * (TILE + 4), y + 20))
    return page


def _marked(image: Image.Image, mask: BoolMask | None) -> Image.Image:
    """The picture, greyed, with a mask in one strong colour; as it is without a mask."""
    if mask is None:
        return image
    pixels = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32) * 0.5 + 96
    pixels[mask] = 0.25 * pixels[mask] + 0.75 * np.array(_MASK)
    return Image.fromarray(pixels.astype(np.uint8))


def fitted(image: Image.Image) -> Image.Image:
    """The picture fitted into a square of `TILE` px, on grey."""
    small = image.copy()
    small.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (TILE, TILE), (246, 248, 250))
    tile.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    return tile


def _wrapped(text: str, limit: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > limit:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, `size` px high."""
    return ImageFont.load_default(size)


def save(page: Image.Image, path: Path) -> None:
    """Write a small PNG, and say how small."""
    # 256 colours, well chosen, cannot be told from all and make half the file.
    page.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Command line of `python -m vlm_core.demo.gallery`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=f"directory for {', '.join(PICTURES)}")
    parser.add_argument("--checkpoint", default="demo", help="what to show; it must know the scenes' words")
    parser.add_argument("--scenes", type=int, default=8, help="scenes on each picture")
    arguments = parser.parse_args()
    model = vlm_core.load(arguments.checkpoint)
    arguments.out.mkdir(parents=True, exist_ok=True)
    matching, referring = match_descriptions(model, arguments.scenes), refer(model, arguments.scenes)
    shapes = draw_shapes(mark_parts_and_holes(model, first_seed=FIRST_SEED))
    pages = (draw_matching(matching), draw_referring(referring), shapes)
    for name, page in zip(PICTURES, pages, strict=True):
        save(page, arguments.out / name)
    right = sum(card.ranked[0][0] == card.right for card in matching)
    agreement = np.mean([iou(row.predicted, row.true) for row in referring])
    print(f"right descriptions: {right} of {len(matching)}; mean IoU of the phrases: {agreement:.2f}")


if __name__ == "__main__":
    main()

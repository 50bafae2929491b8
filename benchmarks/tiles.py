"""Windows over large images: what they find and what they cost, on demo scenes of 2000 px.

    python benchmarks/tiles.py --scenes 12

A row a size of the objects, in parts of the scene's side; the last two are ordinary scenes, whose objects the whole
view sees: there windows can only do harm, most of all to phrases that relate things to the whole picture. `recall`
counts the objects of which at least half is marked; `wrong` is what is marked beside the objects, in parts of their
area.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vlm_core
from vlm_core.demo.scenes import Scene, generate_scene
from vlm_core.evaluate import iou
from vlm_core.model import Model
from vlm_core.runs import BoolMask, RunMask
from vlm_core.tiles import Tile

SIDE = 2000
FIRST_SEED = 2_000_000
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "tiles.png"
CASES: tuple[tuple[str, float | None, bool], ...] = (
    ("3 %", 0.03, False),
    ("6 %", 0.06, False),
    ("12 %", 0.12, False),
    ("20 %", 0.20, False),
    ("20 to 48 %", None, False),
    ("20 to 48 %, relations", None, True),
)
_PANEL = 560


@dataclass
class Tally:
    found: int = 0
    there: int = 0
    agreement: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def questions(scene: Scene, relations: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Shapes with at most one word more, or shapes with a place; words for sizes mean nothing here."""
    chosen = [
        (description.words(), meant)
        for description, meant in scene.true_descriptions
        if description.shape and description.size is None and description.attributes() <= 1
        and (description.position is not None) == relations
    ]  # fmt: skip
    return chosen[:6]


def measure(model: Model, scenes: list[Scene], relations: bool, tile: Tile) -> Tally:
    tally = Tally()
    for scene in scenes:
        asked = questions(scene, relations)
        if not asked:
            continue
        started = time.perf_counter()
        masks = model.segment(scene.image, [phrase for phrase, _ in asked], tile=tile).logits.numpy() > 0
        tally.seconds.append(time.perf_counter() - started)
        for mask, (_, meant) in zip(masks, asked, strict=True):
            truth = scene.union(meant)
            tally.agreement.append(iou(mask, truth))
            tally.wrong.append(float((mask & ~truth).sum() / truth.sum()))
            for index in meant:
                own = scene.objects[index].mask
                tally.there += 1
                tally.found += int((mask & own).sum() * 2 >= own.sum())
    return tally


def panel(scene: Scene, phrase: str, mask: BoolMask, title: str) -> Image.Image:
    pixels = np.asarray(scene.image.convert("L").convert("RGB"), dtype=np.float32) * 0.4 + 130
    for item in scene.objects:
        pixels[item.mask] = np.asarray(scene.image, np.float32)[item.mask]
    pixels[mask] = np.array((255, 0, 128))
    small = Image.fromarray(pixels.astype(np.uint8)).resize((_PANEL, _PANEL), Image.Resampling.LANCZOS)
    pen, scale = ImageDraw.Draw(small), _PANEL / SIDE
    for part in RunMask.from_array(mask).instances(9):
        box = part.box_xyxy_px
        if box is not None:
            pen.rectangle(
                (box[0] * scale - 5, box[1] * scale - 5, box[2] * scale + 5, box[3] * scale + 5), outline=(255, 0, 128)
            )
    out = Image.new("RGB", (_PANEL, _PANEL + 22), "white")
    out.paste(small, (0, 22))
    ImageDraw.Draw(out).text((2, 3), f"“{phrase}”, {title}", fill=(31, 35, 40), font=ImageFont.load_default(14))
    return out


def picture(model: Model) -> Image.Image:
    rows = []
    for diameter, relations in ((0.03, False), (None, True)):
        scene = next(
            s
            for s in (generate_scene(FIRST_SEED + n, size=SIDE, diameter=diameter) for n in range(20))
            if questions(s, relations)
        )
        phrase, _ = max(questions(scene, relations), key=lambda pair: len(pair[1]))
        views: tuple[tuple[Tile, str], ...] = ((None, "whole view"), ("auto", "with windows"))
        rows.append(
            [
                panel(scene, phrase, model.segment(scene.image, [phrase], tile=t).logits[0].numpy() > 0, w)
                for t, w in views
            ]
        )
    page = Image.new("RGB", (2 * _PANEL + 8, len(rows) * (_PANEL + 30)), "white")
    for row, panels in enumerate(rows):
        for column, one in enumerate(panels):
            page.paste(one, (column * (_PANEL + 8), row * (_PANEL + 30)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12, help="scenes a row; 0: the picture alone")
    parser.add_argument("--tile", type=int, nargs="*", default=[], help="sides of windows, px, beside none and auto")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    model = vlm_core.load("demo", device="cpu")
    tiles: list[Tile] = [None, "auto", *arguments.tile]
    if arguments.scenes:
        print("| objects | tile | recall | mean IoU | wrong, median | s an image |\n|---|---|---|---|---|---|")
    for name, diameter, relations in CASES if arguments.scenes else ():
        scenes = [generate_scene(FIRST_SEED + n, size=SIDE, diameter=diameter) for n in range(arguments.scenes)]
        for tile in tiles:
            tally = measure(model, scenes, relations, tile)
            print(
                f"| {name} | {tile or 'none'} | {tally.found / tally.there:.2f} of {tally.there} | "
                f"{np.mean(tally.agreement):.2f} | {np.median(tally.wrong):.2f} | {np.median(tally.seconds):.2f} |",
                flush=True,
            )
    picture(model).quantize(64, kmeans=3, dither=Image.Dither.NONE).save(arguments.picture, optimize=True)
    print(f"{arguments.picture}: {arguments.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

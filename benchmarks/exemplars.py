"""What exemplars do beside phrases, on demo scenes: a table and docs/pictures/exemplars.png.

    python benchmarks/exemplars.py                   the demo checkpoint, which was trained on phrases alone
    python benchmarks/exemplars.py --learn 600       and its decoder after so many updates with pictures mixed in

Each object's shape and colour ("red circle") is asked for in scenes of their own seeds, by the phrase, by three
pictures of such objects from other scenes, by both, and by pictures of something that is not there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vlm_core
from vlm_core import Prompt
from vlm_core.data import JsonlPhrases
from vlm_core.demo.scenes import Scene, generate_scene
from vlm_core.evaluate import iou
from vlm_core.model import Model
from vlm_core.recipes.train_clipseg import TrainClipsegSettings, train_clipseg
from vlm_core.runs import BoolMask
from vlm_core.visual_prompts import Exemplar, highlight

SHOWN_SEEDS = range(1_000_100, 1_000_200)
ASKED_SEEDS = range(2_000_000, 2_000_060)
TRAINING_SEEDS = range(900_000, 901_200)
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "exemplars.png"
_KINDS = ("phrase", "3 pictures", "half and half", "0.8 phrase", "pictures of another thing")
_TILE = 150


def things(scene: Scene) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, item in enumerate(scene.objects):
        if item.named:
            found.setdefault(f"{item.colour} {item.shape}", []).append(index)
    return found


def collect(seeds: range) -> dict[str, list[Exemplar]]:
    shown: dict[str, list[Exemplar]] = {}
    for seed in seeds:
        scene = generate_scene(seed)
        for name, indices in things(scene).items():
            shown.setdefault(name, []).append((scene.image, scene.objects[indices[0]].mask))
    return shown


def questions(name: str, scene: Scene, shown: dict[str, list[Exemplar]]) -> list[Prompt]:
    here = {item.shape for item in scene.objects} | {item.colour for item in scene.objects}
    other = next(key for key, some in sorted(shown.items()) if len(some) >= 3 and not here & set(key.split()))
    return [
        Prompt([name]),
        Prompt(exemplars=shown[name][:3]),
        Prompt([name], exemplars=shown[name][:3], text_weight=0.5),
        Prompt([name], exemplars=shown[name][:3], text_weight=0.8),
        Prompt(exemplars=shown[other][:3]),
    ]


def measure(model: Model, shown: dict[str, list[Exemplar]]) -> dict[str, float]:
    agreement: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for seed in ASKED_SEEDS:
        scene = generate_scene(seed)
        for name, indices in things(scene).items():
            if len(shown.get(name, [])) < 3:
                continue
            try:
                asked = questions(name, scene, shown)
            except StopIteration:  # all that was shown is here
                continue
            truth = scene.union(indices)
            masks = model.segment(scene.image, asked).logits.numpy() > 0
            for kind, mask in zip(_KINDS, masks, strict=True):
                marked = float(mask.mean()) if kind == _KINDS[-1] else iou(mask, truth)
                agreement[kind].append(marked)
    return {kind: float(np.mean(values)) for kind, values in agreement.items()} | {"asked": len(agreement["phrase"])}


def learn(folder: Path, steps: int) -> Model:
    lines = []
    for seed in TRAINING_SEEDS:
        scene = generate_scene(seed)
        scene.image.save(folder / f"{seed}.png")
        for slot, (name, indices) in enumerate(things(scene).items()):
            Image.fromarray(scene.union(indices)).convert("L").save(folder / f"{seed}-{slot}.png")
            lines.append({"image": f"{seed}.png", "phrase": name, "mask": f"{seed}-{slot}.png"})
    (folder / "phrases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = TrainClipsegSettings(
        clip="demo", keep_decoder=True, text_weight=(0.0, 1.0), steps=steps, learning_rate=1e-3, batch_size=16,
        phrases_per_image=3, dropout=0.0, evaluate_every=steps, save_every=steps,
    )  # fmt: skip
    source = JsonlPhrases(folder / "phrases.jsonl", absent=0.2, exemplars=True)
    return vlm_core.load(train_clipseg(settings, source, None, folder / "run"))


def draw(rows: list[tuple[str, list[Image.Image]]], titles: list[str]) -> Image.Image:
    head = 24
    page = Image.new("RGB", (len(titles) * (_TILE + 8) + 8, head + len(rows) * (_TILE + 8)), "white")
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        pen.text((8 + column * (_TILE + 8), 5), title, fill=(101, 109, 118), font=ImageFont.load_default(12))
    for number, (_, tiles) in enumerate(rows):
        for column, tile in enumerate(tiles):
            page.paste(
                tile.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (8 + column * (_TILE + 8), head + number * 158)
            )
    return page


def marked(image: Image.Image, mask: BoolMask) -> Image.Image:
    pixels = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32) * 0.5 + 96
    pixels[mask] = 0.25 * pixels[mask] + 0.75 * np.array((255, 0, 128))
    return Image.fromarray(pixels.astype(np.uint8))


def picture(models: dict[str, Model], shown: dict[str, list[Exemplar]]) -> Image.Image:
    rows = []
    for seed in ASKED_SEEDS:
        scene = generate_scene(seed)
        name = next((key for key in things(scene) if len(shown.get(key, [])) >= 3), None)
        if name is None:
            continue
        tiles = [scene.image, highlight(*shown[name][0])]
        for model in models.values():
            asked = [Prompt([name]), Prompt(exemplars=shown[name][:3])]
            tiles += [marked(scene.image, mask) for mask in model.segment(scene.image, asked).logits.numpy() > 0]
        rows.append((name, tiles))
        if len(rows) == 5:
            break
    titles = ["scene", "1 of 3 exemplars"]
    for name in models:
        titles += [f"{name}: phrase", f"{name}: exemplars"]
    return draw(rows, titles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", type=int, default=0, help="updates with pictures mixed in; 0: none")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to draw the first five scenes")
    arguments = parser.parse_args()
    shown = collect(SHOWN_SEEDS)
    models = {"demo": vlm_core.load("demo", device="cpu")}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.learn:
            models["learned"] = learn(Path(folder), arguments.learn)
    for name, model in models.items():
        figures = measure(model, shown)
        print(f"{name}, {figures.pop('asked'):.0f} questions")
        for kind, value in figures.items():
            print(f"  {kind:<28} {'share marked' if kind == _KINDS[-1] else 'mean IoU':<12} {value:.3f}", flush=True)
    page = picture(models, shown).quantize(256, kmeans=3, dither=Image.Dither.NONE)
    page.save(arguments.picture, optimize=True)
    print(f"{arguments.picture}: {arguments.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

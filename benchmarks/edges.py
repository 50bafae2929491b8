"""What pulling masks to edges gains and costs: the table of docs/decisions/edge-refinement.md.

    python benchmarks/edges.py                          the demo checkpoint's own masks on demo scenes
    python benchmarks/edges.py --photographs DIR        and true masks of photographs, made coarse and pulled back

DIR holds `labels.json`, `images/` and `masks/` as the folder `coco_photos` of the test data does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vlm_core
from vlm_core.demo.source import validation_samples
from vlm_core.edges import BAND, refine_to_edges
from vlm_core.evaluate import iou
from vlm_core.masks import upsample_logits
from vlm_core.runs import BoolMask

SCENE_SEEDS = range(2_000_000, 2_000_100)
GRIDS = (352, 88, 22)
"""CLIPSeg's output, four pixels of it in one, and the grid of its patches."""
_FOUND_IOU = 0.3
"""Masks that miss their object are not a matter of edges."""

Pair = tuple[Image.Image, BoolMask, BoolMask]


def of_scenes() -> Iterator[Pair]:
    """Picture, the demo checkpoint's mask, and the true one, where the object was found."""
    model = vlm_core.load("demo", device="cpu")
    for sample in validation_samples(SCENE_SEEDS):
        found = model.segment(sample.image, list(sample.phrases)).logits.numpy() >= 0
        for mask, truth in zip(found, sample.masks >= 0.5, strict=True):
            if truth.any() and iou(mask, truth) > _FOUND_IOU:
                yield sample.image, mask, truth


def of_photographs(folder: Path, side: int) -> Iterator[Pair]:
    """Picture, a true mask brought to a square grid and back, and the true mask."""
    for entry in json.loads((folder / "labels.json").read_text())["images"]:
        image = Image.open(folder / entry["image"]).convert("RGB")
        for segment in entry["segments"]:
            truth = np.asarray(Image.open(folder / segment["mask"]).convert("L")) >= 128
            share = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(truth).float()[None], side)
            yield image, upsample_logits(share - 0.5, truth.shape)[0].numpy() >= 0, truth


def row(name: str, pairs: Iterator[Pair]) -> str:
    before, gains, costs = [], [], []
    for image, mask, truth in pairs:
        started = time.perf_counter()
        refined = refine_to_edges(mask, image)
        costs.append(time.perf_counter() - started)
        before.append(iou(mask, truth))
        gains.append(iou(refined, truth) - before[-1])
    better = sum(gain > 0 for gain in gains) / len(gains)
    error = statistics.stdev(gains) / len(gains) ** 0.5
    return (
        f"| {name} | {len(gains)} | {statistics.mean(before):.3f} | {statistics.mean(gains):+.3f} ({error:.3f}) "
        f"| {better:.0%} | {1000 * statistics.median(costs):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder of photographs with true masks")
    folder = parser.parse_args().photographs
    print(f"band {BAND} of the longer side")
    print("| masks | number | IoU before | gain (standard error) | better | ms each |\n|---|---|---|---|---|---|")
    print(row("demo scenes, the model's own", of_scenes()), flush=True)
    for side in GRIDS if folder else ():
        print(row(f"photographs, true masks from a grid of {side}", of_photographs(folder, side)), flush=True)


if __name__ == "__main__":
    main()

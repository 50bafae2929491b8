"""What corrections teach on real photographs: defects of magnetic tiles as five labels.

    python -m benchmarks.magnetic_tile --data "$VLM_REALDATA/magnetic_tile" --checkpoint demo

100 of the 208 photographs (Huang et al., abin24/Magnetic-tile-defect-datasets.) are set aside to measure on, by class.
Of the others 25, 50 and 100 get the annotations that Label Studio's editor would make of their masks (brush regions,
encoded by Label Studio's SDK) and the class of the defect as a choice, and a training runs as the worker runs it, the
gate included. Measured is what would be marked and chosen by what was learned, published or not. Beside it the bars:
logistic regressions of the class from the same images on the model's image embeddings and on raw pixels (32 x 32,
grey), and of each cell of the patch grid on what the decoder reads of it and on its raw pixels (grey).
Writes its part of benchmarks/MAGNETIC_TILE.md, which is named after the checkpoint; one without a decoder ranks tags
only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vlm_core
from backend.label_studio.config import parse_label_config
from backend.settings import Settings
from backend.versions import StoredVersion, VersionStore
from tests.jobs.label_studio import LabelStudio, brush, serve
from tests.jobs.one_training import train
from training_jobs.recipes.config import read_recipe
from training_jobs.tag_ladder import answered
from vlm_core.model import Model

PAGE = Path(__file__).parent / "MAGNETIC_TILE.md"
DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
CLASSES = (*DEFECTS, "free")
CHOICES = (
    '<Choices name="defect" toName="image">'
    + "".join(f'<Choice value="{name}" prompt="a tile with a {name}"/>' for name in DEFECTS)
    + '<Choice value="free" prompt="a clean tile"/></Choices>'
)
SIZES = (25, 50, 100)
TEST_IMAGES = 100
PIXELS = (32, 32)


@dataclass(frozen=True)
class Photograph:
    """One of the set.

    Attributes:
        image: RGB.
        mask: of the defect, bool (H, W); all False where there is none.
        defect: one of `CLASSES`.
    """

    image: Image.Image
    mask: NDArray[np.bool_]
    defect: str


def read(data: Path) -> tuple[list[Photograph], list[Photograph]]:
    """The photographs to learn from and those to measure on, both mixed; the same every time."""
    items = json.loads((data / "labels.json").read_text())["images"]
    order = np.random.default_rng(0).permutation(len(items))
    found = []
    for index in order:
        item = items[index]
        image = Image.open(data / item["image"]).convert("RGB")
        mask = np.asarray(Image.open(data / item["mask"]).convert("L")) > 127
        found.append(Photograph(image, mask, item["choice"]))
    test: list[Photograph] = []
    for name in CLASSES:
        of_class = [one for one in found if one.defect == name]
        test += of_class[: round(TEST_IMAGES * len(of_class) / len(found))]
    kept = {id(one) for one in test}
    return [one for one in found if id(one) not in kept], test


def project_of(photographs: Sequence[Photograph]) -> LabelStudio:
    """A project with their annotations."""
    labels = "".join(f'<Label value="{name}"/>' for name in DEFECTS)
    head = '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">'
    config = f"{head}{labels}</BrushLabels>{CHOICES}</View>"
    label_studio = LabelStudio(config=config)
    for one in photographs:
        task_id = label_studio.add_task(np.asarray(one.image))
        chosen = {"id": "c", "from_name": "defect", "to_name": "image", "type": "choices"}
        drawn = [brush(one.defect, one.mask)] if one.mask.any() else []
        label_studio.annotate(task_id, [*drawn, {**chosen, "value": {"choices": [one.defect]}}])
    return label_studio


def learn(photographs: Sequence[Photograph], settings: Settings) -> tuple[str, StoredVersion | None, float]:
    """What the gate said, the version, and seconds."""
    began = time.monotonic()
    with serve(project_of(photographs)) as label_studio:
        result = train(label_studio, settings, read_recipe(None))
    store = VersionStore(settings.data_dir)
    version = None if result.version is None else store.get(7, result.version)
    return f"{result.outcome}: {result.reason}", version, time.monotonic() - began


def ious(model: Model, version: StoredVersion | None, test: Sequence[Photograph]) -> dict[str, float]:
    """Mean IoU of each defect where it is, and as "marked elsewhere" the share of other cases with a mark."""
    from backend.decoding import decode_label
    from backend.manifest import Cuts
    from vlm_core.evaluate import ABSENT_AREA

    if not model.can_segment:
        return dict.fromkeys((*DEFECTS, "marked elsewhere"), float("nan"))
    cuts = Cuts() if version is None else version.manifest
    served = model if version is None else model.with_learned(version.load_weights())
    conditions = served.encode_text(DEFECTS)
    found: dict[str, list[float]] = {name: [] for name in (*DEFECTS, "marked elsewhere")}
    for one in test:
        logits = served.decode(served.encode_image(one.image), conditions).logits.numpy()
        for row, name in enumerate(DEFECTS):
            decoded = decode_label(
                logits[row : row + 1],
                one.mask.shape,
                threshold=cuts.thresholds.get(name, 0.5),
                temperature=cuts.temperatures.get(name, 1.0),
                min_part_score=cuts.part_scores.get(name, 0.0),
            )
            marked = np.zeros_like(one.mask) if decoded.mask is None else decoded.mask.to_array()
            if one.defect != name:
                found["marked elsewhere"].append(float(marked.mean() > ABSENT_AREA))
            elif one.mask.any():
                found[name].append(float((marked & one.mask).sum() / (marked | one.mask).sum()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def chosen(model: Model, version: StoredVersion | None, embeds: NDArray[np.float32], true: Sequence[str]) -> float:
    """How often the class is chosen, exactly as when it is served."""
    served = model if version is None else model.with_learned(version.load_weights())
    control = parse_label_config(f'<View><Image name="image" value="$image"/>{CHOICES}</View>').controls[0]
    return float(np.mean([answered(control, served, one) == {name} for one, name in zip(embeds, true, strict=True)]))


def probe(learn: NDArray[np.float32], test: NDArray[np.float32], learned: Sequence[str], true: Sequence[str]) -> float:
    """Accuracy of a logistic regression (L2, standardised inputs)."""
    mean, spread = learn.mean(0), learn.std(0) + 1e-6
    x, y = (torch.from_numpy((part - mean) / spread).float() for part in (learn, test))
    target = torch.tensor([CLASSES.index(name) for name in learned])
    weight = torch.zeros(x.shape[1], len(CLASSES), requires_grad=True)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, target) + 0.01 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    best = (y @ weight + bias).argmax(1).tolist()
    return float(np.mean([CLASSES[index] == name for index, name in zip(best, true, strict=True)]))


def dense_probe(
    learn: NDArray[np.float32], test: NDArray[np.float32], learned: Sequence[Photograph], true: Sequence[Photograph]
) -> dict[str, float]:
    """IoU of each defect where it is, as `ious`, of a logistic regression of cells (L2, standardised inputs).

    Args:
        learn, test: what is known of each cell, (images, rows, columns, C).
        learned, true: the photographs.
    """
    _, rows, columns, width = learn.shape
    x, y = (torch.from_numpy(part).float() for part in (learn, test))
    mean, spread = x.mean((0, 1, 2)), x.std((0, 1, 2)) + 1e-6
    x, y = (x - mean) / spread, (y - mean) / spread
    target = torch.stack([_covered(one, (rows, columns)) for one in learned])
    weight = torch.zeros(width, len(DEFECTS), requires_grad=True)
    bias = torch.zeros(len(DEFECTS), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = x @ weight + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, target) + 0.01 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    found: dict[str, list[float]] = {name: [] for name in DEFECTS}
    with torch.no_grad():
        answers = (y @ weight + bias).movedim(-1, 1)
    for answer, one in zip(answers, true, strict=True):
        if one.mask.any():
            logits = answer[DEFECTS.index(one.defect)][None, None]
            marked = torch.nn.functional.interpolate(logits, one.mask.shape, mode="bilinear")[0, 0].numpy() >= 0
            found[one.defect].append(float((marked & one.mask).sum() / (marked | one.mask).sum()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _covered(one: Photograph, grid_hw: tuple[int, int]) -> torch.Tensor:
    """Share of each cell that each defect covers, (rows, columns, defects)."""
    covered = torch.zeros(*grid_hw, len(DEFECTS))
    if one.mask.any():
        mask = torch.from_numpy(one.mask).float()[None, None]
        covered[..., DEFECTS.index(one.defect)] = torch.nn.functional.adaptive_avg_pool2d(mask, grid_hw)[0, 0]
    return covered


def _cells(model: Model, photographs: Sequence[Photograph]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the decoder reads of each cell of the patch grid, and the cell's grey values, each (images, h, w, C)."""
    assert model.decoder is not None
    read, seen = [], []
    for one in photographs:
        features = model.encode_image(one.image)
        rows, columns = features.grid_hw
        tokens = torch.cat([tap[0, model.decoder.config.num_prefix_tokens :] for tap in features.taps], dim=-1)
        read.append(tokens.unflatten(0, (rows, columns)).numpy())
        height, width = (side // cells for side, cells in zip(model.mask_input_hw, (rows, columns), strict=True))
        grey = np.asarray(one.image.convert("L").resize((width * columns, height * rows)), dtype=np.float32)
        seen.append(grey.reshape(rows, height, columns, width).swapaxes(1, 2).reshape(rows, columns, -1))
    return np.stack(read), np.stack(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--note", default="", help="what the page says of the checkpoint")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    pool, test = read(arguments.data)
    model = vlm_core.load(arguments.checkpoint, "cpu", "float32")
    rows: list[dict[str, Any]] = [{"images": 0, "gate": "", "seconds": 0.0, "iou": ious(model, None, test)}]
    embedded, pixels = ([_embeds(model, part) for part in (pool, test)], [_pixels(part) for part in (pool, test)])
    names, true = [one.defect for one in pool], [one.defect for one in test]
    rows[0]["chosen"] = chosen(model, None, embedded[1], true)
    dense = [_cells(model, part) for part in (pool, test)] if model.can_segment else []
    for count in SIZES:
        with tempfile.TemporaryDirectory() as directory:
            settings = Settings(data_dir=Path(directory), checkpoint=arguments.checkpoint, device="cpu")
            gate, version, seconds = learn(pool[:count], settings)
            row: dict[str, Any] = {"images": count, "gate": gate, "seconds": seconds}
            row["iou"] = ious(model, version, test)
            row["chosen"] = chosen(model, version, embedded[1], true)
        row["probe"] = probe(embedded[0][:count], embedded[1], names[:count], true)
        row["pixels"] = probe(pixels[0][:count], pixels[1], names[:count], true)
        for kind in range(2) if dense else ():
            learned = dense_probe(dense[0][kind][:count], dense[1][kind], pool[:count], test)
            row["dense"] = [*row.get("dense", []), float(np.mean(list(learned.values())))]
        rows.append(row)
        print(json.dumps(row), flush=True)
    page = _page(model, rows, len(test), arguments.note)
    print(page)
    if arguments.write:
        _keep(model.name, page)


def _embeds(model: Model, photographs: Sequence[Photograph]) -> NDArray[np.float32]:
    encoded = [model.encode_image(one.image, masks=False, tags=True).image_embeds for one in photographs]
    return np.concatenate([one.float().cpu().numpy() for one in encoded])


def _pixels(photographs: Sequence[Photograph]) -> NDArray[np.float32]:
    small = [np.asarray(one.image.convert("L").resize(PIXELS), dtype=np.float32).reshape(-1) for one in photographs]
    return np.stack(small)


def _keep(name: str, part: str) -> None:
    """Replace one checkpoint's part of the page, or add it."""
    known = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    _, *parts = known.strip().split("\n## ")
    others = [one.strip() for one in parts if one.partition("\n")[0] != name]
    title = "# What corrections teach on photographs of tiles"
    head = f"{title}\n\nWritten by `python -m benchmarks.magnetic_tile`; its head says what is measured."
    PAGE.write_text("\n\n## ".join([head, *others, part.strip()]) + "\n", encoding="utf-8")


def _page(model: Model, rows: Sequence[dict[str, Any]], test: int, note: str) -> str:
    lines = [model.name, "", f"{test} images to measure on.{' ' if note else ''}{note}"]
    if model.can_segment:
        lines += [
            "IoU where the defect is; *elsewhere*: share of other labels and images with a mark. *Probes*: mean IoU of",
            "the regressions of cells, on what the decoder reads and on pixels.",
            "",
            f"| annotated | {' | '.join(DEFECTS)} | mean | elsewhere | probes | training, s |",
            "|---|" + "---|" * (len(DEFECTS) + 4),
        ]
        for row in rows:
            values = [row["iou"][name] for name in DEFECTS]
            figures = [
                *(f"{value:.3f}" for value in (*values, np.mean(values))),
                f"{row['iou']['marked elsewhere']:.2f}",
                ", ".join(f"{value:.3f}" for value in row.get("dense", [])),
            ]
            lines.append(f"| {row['images']} | {' | '.join(figures)} | {row['seconds']:.0f} |")
    lines += ["", "The gate:", "", *(f"- {row['images']}: {row['gate']}" for row in rows[1:]), ""]
    lines += [
        "Accuracy of the class of the defect; the version learns from three quarters of the annotated images, the",
        "probes learn from all of them:",
        "",
        "| annotated | chosen | probe, embeddings | probe, pixels |",
        "|---|---|---|---|",
        f"| 0 | {rows[0]['chosen']:.2f} | | |",
    ]
    lines += [
        f"| {row['images']} | {row['chosen']:.2f} | {row['probe']:.2f} | {row['pixels']:.2f} |" for row in rows[1:]
    ]
    lines.append("")
    lines.append(f"{platform.machine()}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

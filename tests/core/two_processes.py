"""What each of two processes does in `test_distributed`: `torchrun -m tests.core.two_processes DIRECTORY`."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from vlm_core.data import PairSource
from vlm_core.demo.source import SceneSource
from vlm_core.losses import contrastive_loss, contrastive_loss_of_part
from vlm_core.recipes.common import SettingsError
from vlm_core.recipes.distributed import DivergedError, Processes, joined
from vlm_core.recipes.train_clip import TrainClipSettings, train_clip

ROWS = 6
SETTINGS = TrainClipSettings(
    image_encoder="scratch:vit_tiny_patch16_224",
    image_args={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    text_encoder="scratch:distilbert",
    text_args={"dim": 24, "hidden_dim": 48, "n_layers": 1, "n_heads": 2},
    image_size=32,
    crop=False,
    max_tokens=24,
    projection_dim=16,
    steps=6,
    batch_size=8,
    micro_batch=3,
    evaluate_every=2,
    patience=2,
    learning_rate=3e-3,
    device="cpu",
)
"""With dropout: each process must go on with its own random numbers."""


class Stopped(SceneSource):
    """Scenes that stop coming after the first `left` images, on each process."""

    left = 10**9

    def image(self, index: int) -> Image.Image:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().image(index)


def features(side: int) -> torch.Tensor:
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(side))


def projections() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"image": nn.Linear(5, 4), "text": nn.Linear(5, 4)}).requires_grad_()


def whole_batch() -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one process with all rows."""
    model = projections()
    loss = contrastive_loss(3.0 * model["image"](features(1)) @ model["text"](features(2)).T)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gathered(processes: Processes) -> dict[str, object]:
    """The same with half of the rows on each."""
    model = projections()
    each = ROWS // processes.size
    own = slice(processes.rank * each, (processes.rank + 1) * each)
    image, text = model["image"](features(1)[own]), model["text"](features(2)[own])
    loss = contrastive_loss_of_part(
        3.0 * image @ processes.gather(text).T, 3.0 * text @ processes.gather(image).T, processes.rank * each
    )
    loss.backward()
    processes.average_gradients(model.parameters())
    return {
        "loss": processes.mean(loss.item()),
        "grads": {name: p.grad.tolist() for name, p in model.named_parameters() if p.grad is not None},
    }


def diverged(processes: Processes) -> str:
    model = projections()
    processes.check_equal(model)
    with torch.no_grad():
        model["text"].bias[processes.rank] *= -1  # on each process another weight
    try:
        processes.check_equal(model)
    except DivergedError as error:
        message = str(error)
    processes.copy_weights(model)
    processes.check_equal(model)
    return message


def refused(source: PairSource, out: Path, processes: Processes) -> list[str]:
    """What is said of a mistake that one process alone can see, and of one that both see."""
    found = []
    for changes in ({"projection_dim": 0} if processes.rank else {}, {"batch_size": 9}):
        try:
            train_clip(dataclasses.replace(SETTINGS, **changes), source, source, out / "none", quiet=True)  # type: ignore[arg-type]
        except SettingsError as error:
            found.append(str(error))
    return found


class OneText(SceneSource):
    """Texts of one length: as many units can drop out on each process."""

    def text(self, index: int, rng: np.random.Generator) -> str:
        return "a red circle"


def random_after_a_step(out: Path) -> list[int]:
    """The state of random numbers after a step in which each process has drawn as many."""
    settings = dataclasses.replace(SETTINGS, steps=1, patience=None)
    train_clip(settings, OneText(range(8), 32), None, out / "one-text", quiet=True)
    return [int(value) for value in torch.get_rng_state()]


def command(folder: Path) -> int:
    """`python -m backend.cli train clip ...`, as `torchrun -m` runs it; gives its exit code."""
    options = {
        "--train": f"{folder}/shards/{{0..1}}.tar",
        "--validation": f"{folder}/shards",
        "--out": f"{folder}/command",
        "--image-encoder": f"{folder}/vit",
        "--text-encoder": f"{folder}/bert",
        "--projection-dim": "16",
        "--steps": "4",
        "--batch-size": "8",
        "--micro-batch": "3",
        "--evaluate-every": "2",
        "--device": "cpu",
    }
    sys.argv = ["vlm", "train", "clip", "--train-image-encoder", "--train-text-encoder", "--quiet"]
    sys.argv += [word for option in options.items() for word in option]
    try:
        runpy.run_module("backend.cli", run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main(out: Path) -> None:
    with joined("cpu"):
        processes = Processes.joined("cpu")
        said = {"rank": processes.rank, **gathered(processes), "diverged": diverged(processes)}
        source = Stopped(range(24), 32)
        said["refused"] = refused(source, out, processes)
        train_clip(SETTINGS, source, source, out / "whole", quiet=True)
        training = Stopped(range(24), 32)
        training.left = 4 * 4 + 2  # four steps of this process's half, and a part of the fifth
        try:
            train_clip(SETTINGS, training, source, out / "resumed", quiet=True)
        except KeyboardInterrupt:
            training.left = 10**9
        train_clip(SETTINGS, training, source, out / "resumed", resume=True, quiet=True)
        said["random"] = random_after_a_step(out)
        said["command"] = command(out)
        (out / f"{processes.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""How long a training takes from corrections that are there to a verdict: `python -m benchmarks.training_time`.

In this process, without a worker's start: reading 100 corrected scenes from a small Label Studio over HTTP, encoding,
all fits, the gate, the version. Nothing is cached before. `--device cuda --checkpoint base` is the figure of a GPU at
the published size: `base` is a ViT-B/16 with random weights, which cost what learned ones cost. Prints how long each
phase took, and appends the run to benchmarks/TRAINING_TIME.md with `--write`.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import platform
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.demo.project import label_config, pictures
from backend.settings import Settings
from benchmarks.checkpoint import make_checkpoint
from benchmarks.serving import table
from tests.jobs.label_studio import LabelStudio, serve
from tests.jobs.one_training import train
from training_jobs.recipes.config import RecipeConfig
from training_jobs.version_record import Result

HERE = Path(__file__).parent
PAGE = HERE / "TRAINING_TIME.md"
FIRST_SEED = 2_400_000
_HEAD = """# From corrections to a verdict, measured

Appended to by `python -m benchmarks.training_time --write`: one row a run of a training with the default recipe and
nothing cached, without the start of a worker. The goals are 5 minutes for 100 corrections with the demo checkpoint on
two cores, and 20 s at ViT-B/16 size on a GPU."""
_COLUMNS = ["day", "machine", "checkpoint", "images", "s", "of it encoding", "outcome", "torch"]


class Phases:
    """Seconds of each phase, by the name without its numbers."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._now, self._since = "reading corrections", time.monotonic()

    def __call__(self, phase: str, share: float, loss: float | None) -> None:
        now = time.monotonic()
        self.seconds[self._now] = self.seconds.get(self._now, 0.0) + now - self._since
        self._now, self._since = phase.partition(",")[0], now

    def lines(self) -> Iterator[str]:
        for phase, seconds in self.seconds.items():
            yield f"  {phase:28} {seconds:7.1f} s"


def corrected(count: int, first_seed: int) -> LabelStudio:
    """A project of the demo's pictures, all with true annotations."""
    label_studio = LabelStudio(config=label_config())
    for picture in islice(pictures(count, first_seed=first_seed), count):
        label_studio.annotate(label_studio.add_task(np.asarray(picture.scene.image)), picture.annotation())
    return label_studio


def once(
    checkpoint: str, device: str, images: int, first_seed: int, profile: Path | None
) -> tuple[float, Phases, Result]:
    """One training: its seconds, where they went, what it came to."""
    phases = Phases()
    with serve(corrected(images, first_seed)) as label_studio, tempfile.TemporaryDirectory() as folder:
        settings = Settings(checkpoint=checkpoint, data_dir=Path(folder), device=device, label_studio_url=None)
        profiler = cProfile.Profile()
        began = time.monotonic()
        if profile is not None:
            profiler.enable()
        result = train(label_studio, settings, RecipeConfig(), report=phases)
        seconds = time.monotonic() - began
        phases("end", 1.0, None)
        if profile is not None:
            profiler.disable()
            text = io.StringIO()
            pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(70)
            profile.write_text(text.getvalue())
    return seconds, phases, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", default="demo", help="a name, a directory, or `base`")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--profile", type=Path, help="write where Python's time went, of the last run, to this file")
    parser.add_argument("--write", action="store_true", help=f"append to {PAGE.name}")
    arguments = parser.parse_args()
    checkpoint = str(make_checkpoint(HERE / "checkpoint")) if arguments.checkpoint == "base" else arguments.checkpoint
    for number in range(arguments.repeats):
        profile = arguments.profile if number == arguments.repeats - 1 else None
        seed = FIRST_SEED + 10_000 * number
        seconds, phases, result = once(checkpoint, arguments.device, arguments.images, seed, profile)
        print(f"{arguments.images} corrections on {_machine(arguments.device)}: {seconds:.1f} s")
        print(*phases.lines(), sep="\n")
        print(f"  {result.outcome}: {result.reason}", flush=True)
        if arguments.write:
            encoding = phases.seconds.get("encoding images", 0.0)
            _append(
                [
                    time.strftime("%Y-%m-%d"),
                    _machine(arguments.device),
                    {"base": "ViT-B/16, random"}.get(arguments.checkpoint, Path(arguments.checkpoint).name),
                    str(arguments.images),
                    f"{seconds:.1f}",
                    f"{encoding:.1f}",
                    result.outcome,
                    str(torch.__version__),
                ]
            )


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _append(row: list[str]) -> None:
    """One more row; those that are there stay."""
    rows = []
    if PAGE.exists():
        lines = PAGE.read_text(encoding="utf-8").splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| 2")]
    PAGE.write_text(f"{_HEAD}\n\n{table(_COLUMNS, [*rows, row])}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

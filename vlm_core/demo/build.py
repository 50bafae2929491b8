"""Rebuild the demo checkpoint: `python -m vlm_core.demo.build`.

Both recipes on generated scenes: a little of `train clip` on captions, then `train clipseg` three times with the
encoders learning on: on bare names of shapes, on all phrases with captions again, and on those of new scenes.
Interrupted, it goes on where it was when started again with `--resume`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlm_core import checkpoint
from vlm_core.checkpoint import DEMO_DIRECTORY
from vlm_core.demo.measure import measure_scenes
from vlm_core.demo.source import SceneSource, validation_samples
from vlm_core.files import read_json
from vlm_core.recipes import common
from vlm_core.recipes.train_clip import TrainClipSettings, train_clip
from vlm_core.recipes.train_clipseg import TrainClipsegSettings, train_clipseg

SIDE = 96
SCENES = 12_000
NEW_SCENES = 24_000
"""Scenes of the last part, none of them among the first."""
VALIDATION_SEEDS = range(1_000_000, 1_000_040)
FINAL_SEEDS = range(2_000_000, 2_000_300)

CLIP_SETTINGS = TrainClipSettings(
    image_encoder="scratch:vit_tiny_patch16_224",
    image_args={
        "img_size": SIDE,
        "patch_size": 8,
        "embed_dim": 128,
        "depth": 5,
        "num_heads": 4,
        "global_pool": "avg",
        "weight_init": "jax",
        "stem_widths": [32, 64, 128],
    },
    text_encoder="scratch:distilbert",
    text_args={
        "dim": 128,
        "hidden_dim": 512,
        "n_layers": 2,
        "n_heads": 4,
        "initializer_range": 0.06,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    image_size=SIDE,
    crop=False,
    max_tokens=32,
    projection_dim=128,
    steps=40,
    batch_size=32,
    learning_rate=3e-4,
    weight_decay=0.05,
    evaluate_every=40,
    validation_images=40,
    precision="bf16",
    name="demo",
)


NAMES_SETTINGS = TrainClipsegSettings(
    clip="",
    taps=(2, 4),
    reduce_dim=64,
    num_heads=2,
    mlp_width=256,
    dropout=0.0,
    normalise_inputs=True,
    train_encoders=True,
    word_weight=0.2,
    dice_weight=1.0,
    phrases_per_image=5,
    steps=800,
    batch_size=24,
    learning_rate=8e-4,
    weight_decay=0.02,
    evaluate_every=800,
    save_every=50,
    precision="bf16",
    store="float16",
    name="demo",
)
"""Second part: the shapes' bare names. With colours in the phrases from the start, colours are all that is learned."""

PHRASES_SETTINGS = replace(
    NAMES_SETTINGS, keep_decoder=True, contrastive_weight=0.3, steps=4500, evaluate_every=500, save_every=250
)
"""Third part: all phrases, and the captions again."""

AGAIN_SETTINGS = replace(PHRASES_SETTINGS, learning_rate=6e-4, steps=3000)
"""Fourth part: a second cycle on new scenes, with more phrases that nothing is true of."""


def build(work: Path, *, resume: bool, quiet: bool) -> Path:
    """Train all parts below `work` and return the finished checkpoint's directory.

    Args:
        work: a directory for the runs.
        resume: go on where the runs in `work` stopped; parts that are finished are kept.
        quiet: no progress bar.
    """

    def begun(run: Path) -> bool:
        return resume and (run / common.STATE_INFO).is_file()

    def go_on(part: str, settings: TrainClipsegSettings, clip: Path, source: SceneSource) -> Path:
        # Bare names are looked at in no validation: it asks for all phrases.
        validation = None if source.lesson == "names" else partial(validation_samples, VALIDATION_SEEDS)
        settings = replace(settings, clip=str(clip))
        return train_clipseg(settings, source, validation, work / part, resume=begun(work / part), quiet=quiet)

    source = SceneSource(range(SCENES), SIDE, present=0.5)
    captions = work / "captions" / common.CHECKPOINT
    if not (resume and captions.is_dir()):
        held_out = SceneSource(VALIDATION_SEEDS, SIDE)
        train_clip(CLIP_SETTINGS, source, held_out, work / "captions", resume=begun(work / "captions"), quiet=quiet)
    names = go_on("names", NAMES_SETTINGS, captions, source.of_lesson("names"))
    phrases = go_on("phrases", PHRASES_SETTINGS, names, source)
    del source  # and its drawings
    return go_on("again", AGAIN_SETTINGS, phrases, SceneSource(range(SCENES, SCENES + NEW_SCENES), SIDE, present=0.4))


def install(built: Path, target: Path = DEMO_DIRECTORY) -> dict[str, float]:
    """Measure a finished checkpoint on the final seeds and put it into the package.

    Args:
        built: what `build` returned.
        target: where to; files of other names there are kept.

    Returns:
        The figures, which the installed manifest holds too.
    """
    figures = measure_scenes(checkpoint.load(built), FINAL_SEEDS)
    target.mkdir(parents=True, exist_ok=True)
    for file in built.iterdir():
        shutil.copyfile(file, target / file.name)
    manifest = read_json(target / checkpoint.MANIFEST)
    parts = {
        "captions": CLIP_SETTINGS,
        "names": replace(NAMES_SETTINGS, clip="captions"),
        "phrases": replace(PHRASES_SETTINGS, clip="names"),
        "again": replace(AGAIN_SETTINGS, clip="phrases"),
    }
    manifest["about"] = {
        "recipe": "vlm_core.demo.build",
        "parts": {name: common.jsonable(settings) for name, settings in parts.items()},
        "training_scenes": SCENES + NEW_SCENES,
        "final_scenes": {
            "first_seed": FINAL_SEEDS.start,
            "scenes": len(FINAL_SEEDS),
            **{key: round(value, 4) for key, value in figures.items()},
        },
    }
    common.write_text(target / checkpoint.MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return figures


def main() -> None:
    """Command line of `python -m vlm_core.demo.build`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of the training runs")
    parser.add_argument("--resume", action="store_true", help="go on with the runs in --work")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--install", action="store_true", help="measure the result and put it into the package")
    arguments = parser.parse_args()
    started = time.monotonic()
    built = build(arguments.work, resume=arguments.resume, quiet=arguments.quiet)
    print(f"{built} after {(time.monotonic() - started) / 60:.0f} minutes")
    if arguments.install:
        for key, value in install(built).items():
            print(f"{key:15} {value:.4g}")


if __name__ == "__main__":
    main()

"""`vlm train clip`, `vlm train clipseg` and `vlm evaluate`: thin wrappers around `vlm_core`'s recipes and measures."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

train_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train models of one's own from JSONL files, one object a line, paths relative to the file.",
)


class Task(Enum):
    """What `vlm evaluate --task` can report on."""

    SEGMENTATION = "segmentation"
    MATCHING = "matching"
    TAGGING = "tagging"


_Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
_Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1. Default auto.")]
_Precision = Annotated[str | None, typer.Option(help="fp32, bf16, or auto (default): bf16 on a GPU.")]
_Seed = Annotated[int | None, typer.Option(help="Decides weights, order and dropout. Default 0.")]
_Name = Annotated[str | None, typer.Option(help="Name of the model, the start of its version names.")]
_Validation = Annotated[Path | None, typer.Option(help="JSONL file of the same layout, to measure on as it goes.")]


@train_app.command("clip")
def train_clip_command(
    train: Annotated[
        Path,
        typer.Option(
            help='JSONL file of {"image": ..., "text": ...}, paths relative to it; CSV or TSV file with these columns; '
            "or tar shards: a directory, 'data/*.tar' or 'data/{000..127}.tar' in quotes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the run: checkpoint/, metrics.jsonl, metrics.png.")],
    image_encoder: Annotated[
        str, typer.Option(help="timm model, hf-hub:owner/name, directory with config.json, or scratch:NAME.")
    ] = "vit_base_patch16_clip_quickgelu_224.openai",
    text_encoder: Annotated[
        str, typer.Option(help="Hub id or directory of DistilBERT or another BERT-like, or scratch:distilbert.")
    ] = "distilbert/distilbert-base-uncased",
    validation: Annotated[
        Path | None, typer.Option(help="Pairs in any of these layouts, to measure on as it goes.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Square input, px. Default: the image encoder's own.")] = None,
    crop: Annotated[
        bool | None, typer.Option("--crop/--squash", help="Cut the centre out (default) or squash the whole image.")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="Of the text encoder: mean (default) or first.")] = None,
    projection_dim: Annotated[int | None, typer.Option(help="Width of the shared space. Default 256.")] = None,
    train_image_encoder: Annotated[
        bool | None,
        typer.Option(
            "--train-image-encoder/--freeze-image-encoder",
            help="Default: only one from scratch learns. Frozen beside a text encoder that learns: LiT.",
        ),
    ] = None,
    train_text_encoder: Annotated[
        bool | None,
        typer.Option("--train-text-encoder/--freeze-text-encoder", help="Default: only one from scratch learns."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates. Default 200.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in an update, of all processes together. Default 32.")
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Images encoded at once; the loss is still over the whole batch. Default: all of it."),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the one-cycle schedule. Default 0.001.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Part of the steps up to the peak. Default 0.1.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Default 0.1.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Updates between measurements. Default 50.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="End after so many measurements without a better mean_recall; the best weights are saved."),
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Event files too, in --out; needs the extra 'tensorboard'.")
    ] = None,
    seed: _Seed = None,
    device: _Device = None,
    precision: _Precision = None,
    name: _Name = None,
    resume: _Resume = False,
    quiet: _Quiet = False,
) -> None:
    """Train a dual encoder (tags, not masks) on image-text pairs.

    The defaults are for little data and pre-trained encoders: with a few dozen to a few thousand pairs keep both
    encoders frozen (only the projections learn; each image is encoded once and the run takes seconds to minutes),
    and keep --steps low, since a small set is soon known by heart: watch one_of_four in metrics.jsonl. With
    tens of thousands of pairs try --train-text-encoder, then --train-image-encoder at --learning-rate 1e-5.

    Example: vlm train clip --train train.jsonl --validation val.jsonl --image-encoder vit_small_patch14_dinov2.lvd142m
    --text-encoder sentence-transformers/all-MiniLM-L6-v2 --image-size 224 --out runs/clip

    Example: torchrun --nproc-per-node 4 -m backend.cli train clip --train 'shards/{0000..0127}.tar' --out runs/clip
    --batch-size 8192 --micro-batch 256 --validation val.jsonl --steps 20000 --train-text-encoder --patience 5
    """
    from vlm_core.pair_files import open_pairs
    from vlm_core.recipes.distributed import joined
    from vlm_core.recipes.train_clip import TrainClipSettings, train_clip
    from vlm_core.shards import ShardPairs

    given = _given(
        image_size=image_size,
        crop=crop,
        pooling=pooling,
        projection_dim=projection_dim,
        train_image_encoder=train_image_encoder,
        train_text_encoder=train_text_encoder,
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        evaluate_every=evaluate_every,
        patience=patience,
        tensorboard=tensorboard,
        seed=seed,
        device=device,
        precision=precision,
        name=name,
    )
    settings = TrainClipSettings(image_encoder=image_encoder, text_encoder=text_encoder, **given)
    with joined(settings.device) as speaks:
        sources = [None if where is None else open_pairs(where) for where in (train, validation)]
        for source in sources:
            if speaks and isinstance(source, ShardPairs) and source.broken:
                typer.echo(source.summary(), err=True)
        assert sources[0] is not None  # --train is not optional
        written = train_clip(settings, sources[0], sources[1], out, resume=resume, quiet=quiet)
    if speaks:
        typer.echo(f"The model is in {written}, its curve in {out / 'metrics.png'}")


@train_app.command("clipseg")
def train_clipseg_command(
    train: Annotated[
        Path, typer.Option(help='JSONL file of {"image": ..., "phrase": ..., "mask": ... or null}, paths relative.')
    ],
    out: Annotated[Path, typer.Option(help="Directory of the run: checkpoint/, metrics.jsonl, metrics.png.")],
    clip: Annotated[str, typer.Option(help="The CLIP to build on: a run of vlm train clip, a directory or hub id.")],
    validation: _Validation = None,
    image_size: Annotated[int | None, typer.Option(help="Square input, px. Default: the CLIP's own.")] = None,
    refined_head: Annotated[bool, typer.Option("--refined-head", help="The finer, slower head.")] = False,
    train_encoders: Annotated[bool, typer.Option("--train-encoders", help="Let both encoders learn too.")] = False,
    contrastive_weight: Annotated[
        float | None, typer.Option(help="Weight of matching, with --train-encoders and texts in the data. Default 0.")
    ] = None,
    word_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the words that conditions must tell, with --train-encoders. Default 0."),
    ] = None,
    normalise_inputs: Annotated[
        bool, typer.Option("--normalise-inputs", help="Layer norms before the decoder: for encoders that learn.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="The CLIPSeg paper's settings; what is given beside it counts.")
    ] = False,
    template: Annotated[
        list[str] | None,
        typer.Option(help="Sentence with {} for the phrase; one is drawn each time. Repeatable; clipseg: its nine."),
    ] = None,
    text_weight: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Least and most weight of the text, mixed with a picture of the same phrase's object."),
    ] = None,
    crop: Annotated[
        bool | None, typer.Option("--crop/--no-crop", help="Random squares that show the object. Default: no.")
    ] = None,
    absent: Annotated[
        float, typer.Option(help="Share of phrases exchanged for another image's, with an empty mask.")
    ] = 0.2,
    phrases_per_image: Annotated[int | None, typer.Option(help="Decoded from one encoding. Default 4.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates. Default 2000.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in an update. Default 16.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the one-cycle schedule. Default 0.001.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Default 0.01.")] = None,
    dice_weight: Annotated[float | None, typer.Option(help="Of the Dice term; 0 is the paper's loss.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Updates between measurements. Default 200.")] = None,
    seed: _Seed = None,
    device: _Device = None,
    precision: _Precision = None,
    name: _Name = None,
    resume: _Resume = False,
    quiet: _Quiet = False,
) -> None:
    """Train a CLIPSeg decoder (masks) on phrases with masks, over a CLIP that stays frozen.

    Example: vlm train clipseg --train train.jsonl --validation val.jsonl --clip runs/clip/checkpoint --out runs/clipseg

    Example: vlm train clipseg --paper --train phrasecut.jsonl --clip openai/clip-vit-base-patch16 --out runs/rd64
    """
    from vlm_core.data import JsonlPhrases
    from vlm_core.prompts import named_templates
    from vlm_core.recipes.train_clipseg import PAPER, REFINED_STEPS, TrainClipsegSettings, train_clipseg

    given = _given(
        image_size=image_size,
        contrastive_weight=contrastive_weight,
        word_weight=word_weight,
        phrases_per_image=phrases_per_image,
        templates=named_templates(template) if template else None,
        text_weight=text_weight,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        dice_weight=dice_weight,
        evaluate_every=evaluate_every,
        save_every=evaluate_every,
        seed=seed,
        device=device,
        precision=precision,
        name=name,
    )
    published = {**PAPER, **({"steps": REFINED_STEPS} if refined_head else {})} if paper else {}
    settings = TrainClipsegSettings(
        clip=clip,
        refined_head=refined_head,
        normalise_inputs=normalise_inputs,
        train_encoders=train_encoders,
        **{**published, **given},
    )
    source = JsonlPhrases(
        train,
        absent=absent,
        crop=paper if crop is None else crop,
        exemplars=settings.text_weight is not None,
    )
    held_out = None if validation is None else JsonlPhrases(validation).every_sample
    written = train_clipseg(settings, source, held_out, out, resume=resume, quiet=quiet)
    typer.echo(f"The model is in {written}, its curve in {out / 'metrics.png'}")


def evaluate_command(
    checkpoint: Annotated[str, typer.Option(help="Hub id, directory, or demo.")] = "demo",
    task: Annotated[Task | None, typer.Option(help="What to report on; with --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for report.html and report.json, with --task.")] = None,
    phrases: Annotated[Path | None, typer.Option(help="JSONL file of phrases and masks.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="JSONL file of images and texts: one-of-four matching.")] = None,
    tags: Annotated[Path | None, typer.Option(help='JSONL file of {"image": ..., "tags": [...]}, for tagging.')] = None,
    scenes: Annotated[int, typer.Option(help="Measure on so many generated scenes, for the demo checkpoint.")] = 0,
    first_seed: Annotated[
        int, typer.Option(help="Seed of the first scene; from 2000000 on never trained on.")
    ] = 2_000_000,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Probability from which a pixel is marked.")] = 0.5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    quiet: _Quiet = False,
) -> None:
    """Measure masks (mIoU, foreground IoU, absent phrases) and matching (the right text out of four).

    With --task and --out it writes a report to look at, with plots and the best and worst cases; docs/evaluation.md
    defines its figures.

    Example: vlm evaluate --checkpoint runs/clipseg/checkpoint --phrases test.jsonl

    Example: vlm evaluate --checkpoint demo --scenes 300

    Example: vlm evaluate --task segmentation --phrases test.jsonl --out report
    """
    if (task is None) != (out is None):
        raise typer.BadParameter("--task and --out go together: give both for a report, neither for lines")
    if task is not None and out is not None:
        file = {Task.SEGMENTATION: phrases, Task.MATCHING: pairs, Task.TAGGING: tags}[task]
        _report(task, out, checkpoint, file, range(first_seed, first_seed + scenes), threshold, device, json_, quiet)
        return
    if phrases is None and pairs is None and scenes < 1:
        raise typer.BadParameter("give --phrases FILE, --pairs FILE or --scenes N")
    import vlm_core
    from vlm_core.data import JsonlPairs, JsonlPhrases
    from vlm_core.demo.measure import measure_scenes
    from vlm_core.evaluate import evaluate_matching, evaluate_segmentation

    model = vlm_core.load(checkpoint, device)
    measured: dict[str, Any] = {}
    if phrases is not None:
        samples = JsonlPhrases(phrases).every_sample()
        measured["phrases"] = evaluate_segmentation(model, samples, threshold=threshold).to_dict()
    if pairs is not None:
        source = JsonlPairs(pairs)
        right = [source.texts_of(index) for index in range(len(source))]
        images = (source.image(index) for index in range(len(source)))
        one_of_four = evaluate_matching(model, images, [own[0] for own in right], right=right)
        measured["pairs"] = {"one_of_four": one_of_four, "images": len(source)}
    if scenes:
        measured["scenes"] = measure_scenes(model, range(first_seed, first_seed + scenes), threshold=threshold)
    if json_:
        typer.echo(json.dumps(measured, indent=1))
        return
    for part, values in measured.items():
        for key, value in values.items():
            typer.echo(f"{part:8} {key:15} {value:.4g}")


def _report(
    task: Task,
    out: Path,
    checkpoint: str,
    file: Path | None,
    seeds: range,
    threshold: float,
    device: str,
    json_: bool,
    quiet: bool,
) -> None:
    """Measure one task on a file or on scenes, and write its report."""
    if (file is None) == (len(seeds) == 0):
        option = {Task.SEGMENTATION: "--phrases", Task.MATCHING: "--pairs", Task.TAGGING: "--tags"}[task]
        raise typer.BadParameter(f"--task {task.value} needs either {option} FILE or --scenes N")
    import vlm_core
    from vlm_core.evaluation.report import report_json, write_report
    from vlm_core.evaluation.runs import report_on_file, report_on_scenes

    model = vlm_core.load(checkpoint, device)
    quiet = quiet or json_
    if file is not None:
        report = report_on_file(model, task.value, file, threshold=threshold, quiet=quiet)
    else:
        report = report_on_scenes(model, task.value, seeds, threshold=threshold, quiet=quiet)
    page, data = write_report(report, out)
    if json_:
        typer.echo(json.dumps(report_json(report), indent=1))
        return
    for figure in report.figures:
        typer.echo(f"{figure.name:28} {figure.value:.4g}")
    typer.echo(f"The report is {page}, its figures are {data}")


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given: what was not keeps the recipe's default."""
    return {key: value for key, value in options.items() if value is not None}

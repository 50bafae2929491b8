"""`vlm predict`: masks and tags of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.commands.settings import settings_or_exit


def predict_command(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option(help="Directory for overlays, masks and predictions.json.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A phrase to mark; 'a | b' are alternatives. Repeatable.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A description to rank. Repeatable.")] = None,
    not_prompt: Annotated[
        list[str] | None, typer.Option(help="A phrase for what no prompt may include. Repeatable.")
    ] = None,
    exemplar: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE:MASK",
            help="A picture of one more thing to mark, and where it is: a mask file, or x0,y0,x1,y1 in px. Several "
            "show the same thing. Repeatable.",
        ),
    ] = None,
    text_weight: Annotated[
        float | None, typer.Option(help="Mix the exemplars into every prompt: so much of its text, 0 to 1.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="Sentence with {} for a phrase; several are averaged. Repeatable; clipseg: its nine."),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(help="Find small things in large images through windows so many px wide; auto chooses."),
    ] = None,
    edges: Annotated[
        bool, typer.Option("--edges", help="Pull masks to the image's edges, for things that stand out clearly.")
    ] = False,
    checkpoint: Annotated[str | None, typer.Option(help="Hub id, directory, or demo (VLM_CHECKPOINT).")] = None,
    threshold: Annotated[float, typer.Option(help="Probability from which a pixel is marked, 0 to 1.")] = 0.5,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 (VLM_DEVICE).")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print predictions.json instead of a table.")] = False,
) -> None:
    """Draw masks for phrases and rank descriptions, for image files.

    Example: vlm predict street.jpg --prompt "left player" --tag "a train on a track" --tag "a cat" --out seen/

    Example: vlm predict field.jpg --exemplar other.jpg:sheep-mask.png --tile auto --out seen/
    """
    if tile is not None and tile != "auto" and not tile.isdecimal():
        raise typer.BadParameter(f"--tile {tile} must be auto or a number of pixels")
    settings = settings_or_exit(checkpoint=checkpoint, device=device)
    import vlm_core
    from backend.terminal import print_predictions, progress_bar
    from vlm_core.predict_files import make_prompts, predict_files, read_exemplar
    from vlm_core.prompts import named_templates

    # Before the checkpoint is loaded: what was mistyped is told at once.
    prompts = make_prompts(
        prompt or [],
        not_prompts=not_prompt or [],
        exemplars=[read_exemplar(text) for text in exemplar or []],
        text_weight=text_weight,
        templates=named_templates(template) if template else ("{}",),
    )

    model = vlm_core.load(settings.checkpoint, settings.device, settings.dtype)
    with progress_bar("predicting", len(images)) as advance:
        results = predict_files(
            model,
            images,
            prompts=prompts,
            tags=tag or [],
            out=out,
            threshold=threshold,
            tile="auto" if tile == "auto" else None if tile is None else int(tile),
            edges=edges,
            on_image=lambda _: advance(),
        )
    if json_:
        typer.echo((out / "predictions.json").read_text(), nl=False)
    else:
        print_predictions(results, out)
    raise typer.Exit(1 if any(r.error for r in results) else 0)

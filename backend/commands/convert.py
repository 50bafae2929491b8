"""`vlm convert`: data sets -> the JSONL files that `vlm train` and `vlm evaluate` read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vlm_core.convert.dataset import DatasetWriter, Progress, Summary

convert_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Turn data sets into the JSONL files that train and evaluate read: phrases.jsonl, pairs.jsonl and masks/.",
)

_SHOWN_PHRASES = 20

_Out = Annotated[Path, typer.Option(help="Directory for the JSONL files and masks/.")]
_Copy = Annotated[bool, typer.Option("--copy", help="Copy the images too; else they are named where they are.")]
_Limit = Annotated[int | None, typer.Option(min=1, help="Most images in each file, to try it out.")]
_Seed = Annotated[int, typer.Option(help="Decides what is drawn: the validation part and absent phrases.")]
_ValShare = Annotated[
    float, typer.Option(help="Share of images that go to a validation file; each image to one part. Default: no parts.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON instead of lines.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


@convert_app.command("coco")
def convert_coco_command(
    images: Annotated[Path, typer.Option(help="Folder of the images, as train2017.")],
    out: _Out,
    instances: Annotated[Path | None, typer.Option(help="instances_*.json: category names become phrases.")] = None,
    captions: Annotated[Path | None, typer.Option(help="captions_*.json: image-text pairs.")] = None,
    absent: Annotated[
        int, typer.Option(min=0, help="For each image so many categories that are not in it, with an empty mask.")
    ] = 0,
    val_share: _ValShare = 0.0,
    seed: _Seed = 0,
    limit: _Limit = None,
    copy: _Copy = False,
    json_: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Convert COCO: instances to phrases (one mask for all objects of a category), captions to pairs.

    Example: vlm convert coco --instances annotations/instances_train2017.json --captions
    annotations/captions_train2017.json --images train2017 --out data/coco
    """
    if instances is None and captions is None:
        raise typer.BadParameter("give --instances FILE, --captions FILE or both")
    from vlm_core.convert.coco import convert_captions, convert_instances
    from vlm_core.convert.dataset import DatasetWriter

    with DatasetWriter(out, copy=copy, val_share=val_share, seed=seed, limit=limit) as writer:
        if instances is not None:
            with _progress("instances", quiet) as progress:
                convert_instances(instances, images, writer, absent=absent, progress=progress)
        if captions is not None:
            with _progress("captions", quiet) as progress:
                convert_captions(captions, images, writer, progress=progress)
    _finish(writer, json_)


@convert_app.command("refcoco")
def convert_refcoco_command(
    refs: Annotated[Path, typer.Argument(help="refs(unc).p, refs(umd).p or refs(google).p.")],
    images: Annotated[Path, typer.Option(help="Folder of COCO's train2014 images.")],
    out: _Out,
    instances: Annotated[Path | None, typer.Option(help="Default: instances.json beside it.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Only this one: train, val, test, testA, testB. Repeatable.")
    ] = None,
    limit: _Limit = None,
    copy: _Copy = False,
    json_: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Convert RefCOCO, RefCOCO+ or RefCOCOg: one file for each of its splits.

    Example: vlm convert refcoco "refcoco/refs(unc).p" --images train2014 --out data/refcoco
    """
    from vlm_core.convert.dataset import DatasetWriter
    from vlm_core.convert.refcoco import convert_refcoco

    with DatasetWriter(out, copy=copy, limit=limit) as writer, _progress("references", quiet) as progress:
        convert_refcoco(refs, images, writer, instances=instances, splits=split or (), progress=progress)
    _finish(writer, json_)


@convert_app.command("phrasecut")
def convert_phrasecut_command(
    folder: Annotated[Path, typer.Argument(help="VGPhraseCut_v0: refer_*.json and image_data_split3000.json.")],
    out: _Out,
    images: Annotated[Path | None, typer.Option(help="Visual Genome's images. Default: images in the folder.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this one: train, val, test, miniv. Repeatable.")] = None,
    negatives: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of phrases exchanged, once and for all, for one that the image has not, with an empty mask; "
            "0.2 in the CLIPSeg paper. For training leave it at 0: train's --absent exchanges afresh each time.",
        ),
    ] = 0.0,
    seed: _Seed = 0,
    limit: _Limit = None,
    copy: _Copy = False,
    json_: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Convert PhraseCut: one file for each of its splits.

    Example: vlm convert phrasecut VGPhraseCut_v0 --split val --negatives 0.2 --out data/phrasecut
    """
    from vlm_core.convert.dataset import DatasetWriter
    from vlm_core.convert.phrasecut import convert_phrasecut

    with DatasetWriter(out, copy=copy, seed=seed, limit=limit) as writer, _progress("phrases", quiet) as progress:
        convert_phrasecut(folder, writer, images=images, splits=split or (), negatives=negatives, progress=progress)
    _finish(writer, json_)


@convert_app.command("label-studio")
def convert_label_studio_command(
    export: Annotated[Path, typer.Argument(help="A project's export as JSON (not JSON-MIN).")],
    images: Annotated[Path, typer.Option(help="Folder that holds the images, as media or the local storage.")],
    out: _Out,
    config: Annotated[
        Path | None,
        typer.Option(help="The labelling config: labels become their prompts, and unused labels count as absent."),
    ] = None,
    val_share: _ValShare = 0.0,
    seed: _Seed = 0,
    limit: _Limit = None,
    copy: _Copy = False,
    json_: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Convert a Label Studio export: regions to phrases, choices to pairs.

    Example: vlm convert label-studio project-1.json --config config.xml --images media/upload --out data/project
    """
    from backend.label_studio.export import convert_label_studio
    from vlm_core.convert.dataset import DatasetWriter
    from vlm_core.errors import DataError

    try:
        text = None if config is None else config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{config} cannot be read as UTF-8 text: {error}") from error
    with (
        DatasetWriter(out, copy=copy, val_share=val_share, seed=seed, limit=limit) as writer,
        _progress("images", quiet) as progress,
    ):
        convert_label_studio(export, images, writer, config=text, progress=progress)
    _finish(writer, json_)


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Progress]:
    """A progress bar on stderr for work whose size is known when it has begun; it moves to and fro until then."""
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _finish(writer: DatasetWriter, as_json: bool) -> None:
    """Print what was written; without a single line that is an error."""
    if as_json:
        typer.echo(json.dumps(writer.summary.to_dict(), indent=1, ensure_ascii=False))
    else:
        _print_summary(writer.summary, writer.out, typer.echo)
    if not writer.summary.files:
        typer.echo("vlm: nothing could be converted: the reasons are above", err=True)
        raise typer.Exit(1)


def _print_summary(summary: Summary, out: Path, echo: Callable[[str], None]) -> None:
    for name, counts in summary.files.items():
        absent = f", {counts['absent']} of them absent" if counts["absent"] else ""
        echo(f"{out / name}: {counts['lines']} lines about {counts['images']} images{absent}")
    phrases = summary.to_dict()["phrases"]
    if phrases:
        echo(f"\n{len(phrases)} phrases, by lines with a mask (and absent):")
    for phrase, counts in list(phrases.items())[:_SHOWN_PHRASES]:
        echo(f"  {counts['lines']:7} ({counts['absent']})  {phrase}")
    if len(phrases) > _SHOWN_PHRASES:
        echo(f"  and {len(phrases) - _SHOWN_PHRASES} more; --json lists all")
    if summary.left_out:
        echo("\nLeft out:")
    for reason, entry in summary.left_out.items():
        examples = ", ".join(filter(None, entry.examples))
        echo(f"  {entry.count:7}  {reason}" + (f" ({examples}{' ...' if entry.count > 3 else ''})" if examples else ""))
    for note in summary.notes:
        echo(f"\nNote: {note}.")
